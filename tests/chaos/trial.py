"""One case, carried out and judged."""

import os
import signal
import time

from llx.core.migration import source as source_end
from llx.core.model import MigrationId
from tests.chaos.cases import Case, Step
from tests.chaos.faulty_instance import LEASE_S
from tests.chaos.world import NUM_LASTING, NUM_TO_END, QUICK_S, ROLES, SIM, Client, World
from tests.contract.peer import Peer

FREEZE_S = 0.3
HANG_S = LEASE_S + 1.5
SETTLED_S = (
    max(
        LEASE_S,
        source_end._RULING_S + source_end._ASK_AGAIN_S,
        source_end._ANSWER_S,
    )
    + QUICK_S
)
"""The longest wait that a fault may cause, by the product's own deadlines, and the rest of the
request."""
SETTLED_UNHEARD_S = source_end._FIRST_TOKEN_S + QUICK_S
"""The same where a source has heard `Committed` and then no more: it waits for the first token."""


def settled_s(case: Case) -> float:
    """So long it may take until all is settled."""
    is_unheard = any(step.is_lost and step.point.message == "ruling" for step in case.steps)
    return SETTLED_UNHEARD_S if is_unheard else SETTLED_S


OF_THE_LLUMLET = {"reserve", "reserved", "extend", "commit", "committed", "kv", "kv-last"}
"""What holds no thread of the source's endpoint."""


class Trial:
    """A case in a world."""

    def __init__(self, world: World, case: Case) -> None:
        self._world = world
        self._case = case
        self._lost: set[str] = set()
        """Parties that were killed, cut off or silent for longer than a lease."""
        self._has_left = False
        self._has_hung = False
        """Whether sessions were lost that must be made anew; with the scheduler's, news is lost."""
        self._fillers: list[Peer] = []
        self._migration = MigrationId("")
        self._client: Client

    def run(self) -> None:
        """Carry it out; an AssertionError says what is not as it should be."""
        world = self._world
        if not world.counts:
            self._check_next()  # what a move leaves in each process for good, without a fault
        world.mend(is_tcp=self._case.is_tcp)
        self._client = world.open(NUM_TO_END if self._case.is_read_to_end else NUM_LASTING)
        steps = self._case.steps
        self._arm(steps[0])
        self._migration = world.order(self._client)
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            self._take(step, following)
        if self._has_hung:
            for party in self._lost & ROLES.keys():
                world.listen_anew(ROLES[party])
        outcome = self._outcome()
        self._check_stream()
        if outcome is not None:
            self._check_outcome(outcome)
        for filler in self._fillers:
            filler.bye()
            filler.close()
        self._check_empty()
        self._check_next()

    # ------------------------------------------------------------------ the deed

    def _arm(self, step: Step) -> None:
        point, child = step.point, self._world.child(step.point.party)
        child.reins.tell("arm", edge=point.edge, message=point.message, nth=point.nth)
        self._world.answer(child, "armed")

    def _take(self, step: Step, following: Step | None) -> None:
        world, holder = self._world, self._world.child(step.point.party)
        world.answer(holder, "held")
        if following is not None and holder.is_alive:
            self._arm(following)
        self._do(step, is_last=following is None)
        if holder.is_alive:
            holder.reins.tell("go", is_lost=step.is_lost)

    def _do(self, step: Step, *, is_last: bool) -> None:
        world, whom = self._world, step.whom
        match step.deed:
            case "kill":
                world.child(whom).kill()
                self._lost.add(whom)
            case "freeze" | "hang":
                self._freeze(whom, FREEZE_S if step.deed == "freeze" else HANG_S)
            case "isolate":
                for way in world.places[ROLES[whom]].to_gateway:
                    way.cut()
                self._lost.add(whom)
            case "cut":
                self._cut(whom)
            case "cancel":
                world.cancel(self._migration)
                if is_last:
                    self._sync(step)
            case "leave":
                self._leave(step, is_awaited=is_last)
            case "fill":
                self._fill()
            case "outlast":
                self._outcome()
            case "":
                pass
            case _:
                raise AssertionError(f"no such deed: {step.deed}")

    def _freeze(self, whom: str, duration_s: float) -> None:
        child = self._world.child(whom)
        child.signal(signal.SIGSTOP)
        deadline = time.monotonic() + QUICK_S
        while child.state() != "T":
            assert time.monotonic() < deadline, f"{whom} does not stop"
            os.sched_yield()
        self._world.pass_time(duration_s)
        if duration_s > LEASE_S:
            self._lost.add(whom)
            self._has_hung = True
            self._world.ready = []  # it will say anew whom it reaches, once it knows what was lost
        child.signal(signal.SIGCONT)

    def _cut(self, what: str) -> None:
        if what == "llumlets":
            for way in self._world.places["b"].to_llumlet:
                way.cut()
            return
        source = self._world.child("source")
        deadline = time.monotonic() + QUICK_S
        num = 0
        while num == 0:  # it may still be on its way there
            assert time.monotonic() < deadline, "there is no KV connection"
            source.reins.tell("cut-kv")
            num = self._world.answer(source, "kv-cut")["num"]
        assert num == 1, "there is one KV connection"

    def _leave(self, step: Step, *, is_awaited: bool) -> None:
        world, gateway = self._world, self._world.child("gateway")
        gateway.reins.tell("leave", request=self._client.request)
        self._has_left = True
        if is_awaited and step.point.party != "gateway":
            world.answer(gateway, "left")

    def _sync(self, step: Step) -> None:
        """What was sent has reached the llumlet: an instance reads one message after the other.

        Unless one of the threads that would have to answer is the one that is held.
        """
        if step.point.party != "source" or step.point.message in OF_THE_LLUMLET:
            self._world.places["a"].scheduler.sync()

    def _fill(self) -> None:
        """Somebody else takes nearly all blocks of the target."""
        world, place = self._world, self._world.places["b"]
        scheduler = place.scheduler
        world.until(lambda: scheduler.loads, "the target reports its load", QUICK_S)
        free = scheduler.loads[-1].free
        filler = Peer(world.keys, *place.addresses)
        self._fillers.append(filler)
        filler.join()
        stream = filler.add("filler", range(1, (free - 4) * SIM.block_size), max_tokens=8 * 64)
        filler.until(lambda: len(stream.tokens) > 0)

    # ------------------------------------------------------------------ the verdict

    def _is_alive(self, party: str) -> bool:
        return self._world.child(party).is_alive

    def _check_stream(self) -> None:
        """Every token once, in order, and the right one; and an end, unless nobody is to see it."""
        world, client = self._world, self._client
        is_read = self._is_alive("gateway") and not self._has_left
        if is_read:
            world.read_on(client, settled_s(self._case))
            if self._case.is_read_to_end:
                world.until(lambda: client.finish is not None, "the stream ends", QUICK_S)
        num = len(client.tokens)
        assert client.tokens == client.expected[:num], f"a wrong token among the first {num}"
        if not is_read:
            return
        match client.finish:
            case None:
                world.leave(client)
            case "LENGTH":
                assert num == len(client.expected), "an end before the last token"
            case finish:
                assert finish == "ERROR", f"it ended with {finish}"
                assert not self._case.must_finish, "the stream was lost, and need not have been"
                assert "gateway" in self._lost, "the stream was lost, with an instance to spare"

    def _outcome(self) -> str | None:
        """What the source says that came of it; None if there is no source to say it."""
        if not self._is_alive("source") or (self._has_hung and "source" in self._lost):
            return None
        news = self._world.places["a"].scheduler.news
        over = self._world.until(
            lambda: (each := news.get(self._migration)) is not None and each.is_over and each,
            "the source says how the move ended",
            settled_s(self._case),
        )
        return str(over.outcome)

    def _check_outcome(self, outcome: str) -> None:
        may_be = self._case.outcomes
        assert not may_be or outcome in may_be, f"{outcome} instead of {' or '.join(may_be)}"
        client = self._client
        is_seen = self._is_alive("gateway") and not self._has_left and "gateway" not in self._lost
        match outcome:
            case "moved":
                assert client.is_moved or not is_seen, "moved, but the gateway knows nothing of it"
            case "kept":
                assert not client.is_moved, "kept, but the stream went on at the target"
            case "gone":
                # Without its gateway's session the source ends the request here, moved or not.
                is_known = is_seen and "source" not in self._lost
                assert not (is_known and client.is_moved), "gone, but the stream went on elsewhere"
            case _:
                raise AssertionError(f"no such outcome: {outcome!r}")

    def _check_empty(self) -> None:
        """Nothing is held by anybody who lives, and the gateway has nothing in hand."""
        world = self._world
        for party, name in ROLES.items():
            if self._is_alive(party):
                world.until(
                    lambda name=name: world.is_empty(name),
                    f"{party} is empty",
                    settled_s(self._case),
                )
        if self._is_alive("gateway"):
            gateway = world.child("gateway")
            gateway.reins.tell("in-flight")
            assert world.answer(gateway, "in-flight")["num"] == 0, "a request in flight for ever"

    def _check_next(self) -> None:
        """Who has survived, or come instead, moves the next request, and has gathered nothing."""
        world = self._world
        world.mend()
        client = world.open()
        migration = world.order(client)
        news = world.places["a"].scheduler.news
        over = world.until(
            lambda: (each := news.get(migration)) is not None and each.is_over and each,
            "the next move ends",
            QUICK_S,
        )
        assert over.outcome == "moved", f"the next move: {over.outcome} ({over.reason})"
        world.read_on(client, QUICK_S)
        assert client.finish is None, "the next stream ends"
        assert client.tokens == client.expected[: len(client.tokens)], "a wrong token of the next"
        world.leave(client)
        for name in ROLES.values():
            world.until(lambda name=name: world.is_empty(name), f"{name} is empty again", QUICK_S)
        world.check_leaks()
