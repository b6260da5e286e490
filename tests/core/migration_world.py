"""A world for migrations to go wrong in: one gateway, some instances, a hostile network.

Messages are numbered as they are sent, and each may have a `Fate`; deeds (`World.at`) happen right
before message k is sent or right after it has arrived. Everything else is regular: so a run is
fixed by a few small values, and hypothesis can shrink it. Time is virtual and costs nothing.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from llx.core import epochs
from llx.core.model import Epoch, InstanceId, RequestId
from llx.core.streams import Streams, Verdict
from llx.wire import Abort, AskOwner, Moving, Ruling
from tests.core.migration_engine import Is, Output, reference
from tests.core.migration_llumlet import Instance, Stage

LATENCY_S = 0.001
NOTICE_S = 0.5
"""Until a lost session is noticed."""
GRACE_S = 5.0
"""How long a stream whose owner is lost waits for the target to take over."""
_MOST_EVENTS = 60_000


class Fate(Enum):
    """What the network does with one message."""

    DROPPED = "dropped"
    DOUBLED = "doubled"
    DOUBLED_LATE = "doubled late"
    SLOW = "slow"
    LATE = "late"
    LAST = "last"


_MORE: dict[Fate | None, tuple[float, ...]] = {
    None: (0.0,),
    Fate.DROPPED: (),
    Fate.DOUBLED: (0.0, 0.003),
    Fate.DOUBLED_LATE: (0.0, 40.0),
    Fate.SLOW: (0.03,),
    Fate.LATE: (3.0,),
    Fate.LAST: (400.0,),
}
"""Seconds that a message takes more than usual, each time it arrives."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was sent."""

    number: int
    sender: str
    receiver: str
    message: object

    @property
    def kind(self):
        return type(self.message).__name__


class Stream:
    """One stream as its client sees it."""

    def __init__(self, expected):
        self.expected = expected
        self.tokens = []
        self.end = ""
        """finished, failed or cancelled"""


class Gateway:
    """The arbiter: judges outputs, answers questions, ends streams."""

    def __init__(self, world):
        self.world = world
        self.streams = Streams()
        self.clients: dict[str, Stream] = {}
        self.early: dict[str, list[tuple[str, Output]]] = {}
        self.connected = set(world.instances)
        self.is_dead = False
        self.num_moves = 0

    def receive(self, sender, message):
        if sender not in self.connected:
            return  # of a session that is over
        match message:
            case Output():
                self._output(sender, message)
            case AskOwner(request=request, epoch=epoch):
                if answer := self.streams.ask(request, InstanceId(sender), epoch):
                    self._send(sender, Ruling(request, answer.epoch, answer.is_yours))
                self._judge_again(request)
            case Moving(request=request, epoch=epoch, target=target):
                self.streams.note_target(request, InstanceId(sender), epoch, target)

    def _output(self, sender, output):
        request = output.request
        former = self.streams.get(request)
        former = former and former.owner
        verdict = self.streams.judge(request, InstanceId(sender), output.epoch, output.offset, 1)
        match verdict:
            case Verdict.COUNTS | Verdict.MOVES:
                if verdict is Verdict.MOVES:
                    self.num_moves += 1
                    self._send(former, Ruling(request, output.epoch, is_yours=False))
                self._deliver(request, output)
            case Verdict.EARLY:
                self.early.setdefault(request, []).append((sender, output))
            case Verdict.STALE:
                self._send(sender, Abort([(request, output.epoch)]))
            case Verdict.GAP:
                self._end(request, "failed")
            case Verdict.PAST | Verdict.REPEATED:
                pass

    def _deliver(self, request, output):
        client = self.clients[request]
        client.tokens.append(output.token)
        if output.is_last:
            client.end = "finished"
            self.streams.end(request)
        self._judge_again(request)

    def _judge_again(self, request):
        kept = self.early.pop(request, [])
        for sender, output in sorted(kept, key=lambda each: each[1].offset):
            self._output(sender, output)

    def add(self, request, instance):
        self.clients[request] = Stream(reference(*self.world.requests[request]))
        return self.streams.own(RequestId(request), InstanceId(instance))

    def cancel(self, request):
        if not self.is_dead and request in self.streams:
            self._end(request, "cancelled")

    def _end(self, request, how):
        stream = self.streams.end(request)
        self.clients[request].end = how
        if stream.owner in self.connected:
            self._send(stream.owner, Abort([(request, stream.epoch)]))
        self._judge_again(request)

    def instance_lost(self, name):
        self.connected.discard(name)
        for request, kept in self.early.items():
            # What a lost instance has said too early may not make it the owner: it never tells the
            # rest. The owner will ask, and have the stream back.
            self.early[request] = [each for each in kept if each[0] != name]
        for request in self.streams.owned_by(InstanceId(name)):
            stream = self.streams.get(request)
            if stream.target in self.connected:
                self.world.after(GRACE_S, lambda each=request: self._fail_if_owned(each, name))
            else:
                self._end(request, "failed")

    def _fail_if_owned(self, request, name):
        stream = self.streams.get(request)
        if not self.is_dead and stream is not None and stream.owner == name:
            self._end(request, "failed")

    def _send(self, receiver, message):
        if receiver in self.connected:
            self.world.send("gateway", receiver, message)


class World:
    """Args:
    requests: Name → (prompt, tokens to make).
    fates: Message number → what becomes of it.
    is_rough: Whether outputs may be lost and overtaken too. Sessions keep them in order and
        whole, and without that a stream may end in an error.
    copy_s: What a stage of the copy takes.
    cached_tokens: What every engine has of every prompt in its prefix cache.
    not_ready: How often a target's engine needs a moment more before it can reserve.
    rules: Of every source (`SourceRules`).
    """

    def __init__(
        self,
        requests,
        *,
        names="AB",
        num_blocks=40,
        fates=None,
        is_rough=False,
        copy_s=LATENCY_S,
        not_ready=0,
        cached_tokens=0,
        **rules,
    ):
        self.now = 0.0
        self.requests = requests
        self.fates = fates or {}
        self.is_rough = is_rough
        self._copy_s = copy_s
        self.sent: list[Sent] = []
        self.sessions: dict[frozenset[str], int] = {}
        self.had_trouble = False
        """Whether somebody was killed, or cut off from the gateway."""
        self._before: dict[int, list[Callable[[], None]]] = {}
        self._after: dict[int, list[Callable[[], None]]] = {}
        self._events = []
        self._order = itertools.count()
        self._not_ready = not_ready
        self._line: dict[tuple[str, str], float] = {}
        self.instances = {name: Instance(self, name, num_blocks, **rules) for name in names}
        for instance in self.instances.values():
            instance.engine.cached_tokens = cached_tokens
        self.gateway = Gateway(self)

    # ------------------------------------------------------------------ what is done to it

    def start(self, request, instance="A"):
        epoch = self.gateway.add(request, instance)
        prompt, max_tokens = self.requests[request]
        engine = self.instances[instance].engine
        self.instances[instance].core(lambda: engine.add(request, prompt, max_tokens, 0, epoch))

    def at(self, number, deed, *, is_after=False):
        """Do `deed` right before message `number` is sent, or right after it has arrived."""
        (self._after if is_after else self._before).setdefault(number, []).append(deed)

    def order(self, migration, request, source, target):
        session = self.sessions.get(frozenset((source, target)), 0)
        if not self.instances[source].is_dead:
            self.instances[source].order(migration, request, InstanceId(target), session)

    def move(self, migration, request, target):
        """Order a move from wherever the request is by now; away from `target` itself nowhere."""
        for name, instance in self.instances.items():
            held = instance.engine.held.get(request)
            if held is not None and held.state is not Is.CUT and name != target:
                self.order(migration, request, name, target)

    def kill(self, name):
        self.had_trouble = True
        if name == "gateway":
            self.gateway.is_dead = True
            for instance in self.instances.values():
                self.after(10.0, lambda each=instance: self._unless_dead(each, "gateway_lost", 0))
            return
        self.instances[name].is_dead = True
        self.after(NOTICE_S, lambda: self._unless_dead(self.gateway, "instance_lost", name))
        for other in self.instances:
            if other != name:
                self.cut(name, other)

    def cut(self, one, other):
        """End the session of two; what is on its way in it is lost. Each notices on its own."""
        if "gateway" in (one, other):
            name = one if other == "gateway" else other
            self.had_trouble = True
            self._new_session(one, other)
            self.after(NOTICE_S, lambda: self._unless_dead(self.gateway, "instance_lost", name))
            instance = self.instances[name]
            self.after(2 * NOTICE_S, lambda: self._unless_dead(instance, "gateway_lost", 0))
            return
        session = self._new_session(one, other)
        for each, (name, away) in enumerate(((one, other), (other, one))):
            instance = self.instances[name]
            self.after(
                NOTICE_S * (1 + each),
                lambda instance=instance, away=away: self._unless_dead(
                    instance, "peer_lost", away, session
                ),
            )

    def break_copies(self, one, other):
        """The connections that KV travels by break; the session stands."""
        self._unless_dead(self.instances[one], "copy_lost", other)
        self._unless_dead(self.instances[other], "copy_lost", one)

    def _new_session(self, one, other):
        pair = frozenset((one, other))
        session = self.sessions.get(pair, 0)
        self.sessions[pair] = session + 1
        return session

    def _unless_dead(self, who, what, *args):
        if not who.is_dead:
            getattr(who, what)(*args)

    def is_not_ready(self):
        """Whether a target's engine needs a moment more."""
        self._not_ready -= 1
        return self._not_ready >= 0

    # ------------------------------------------------------------------ network

    def after(self, delay, action):
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def send(self, sender, receiver, message, session=None):
        number = len(self.sent)
        sent = Sent(number, sender, receiver, message)
        self.sent.append(sent)
        pair = frozenset((sender, receiver))
        if session is None:
            session = self.sessions.get(pair, 0) if "gateway" not in pair else 0
        for deed in self._before.pop(number, ()):
            deed()
        if self._party(sender).is_dead:
            return
        for due in self._due(sent):
            heapq.heappush(
                self._events, (due, next(self._order), lambda: self._arrive(sent, session))
            )

    def _due(self, sent):
        """When a message arrives, as often as it does."""
        fate = self.fates.get(sent.number)
        usual = self._copy_s if isinstance(sent.message, Stage) else LATENCY_S
        due = [self.now + usual + delay for delay in _MORE[fate]]
        if sent.receiver != "gateway" or self.is_rough:
            return due
        # A session to the gateway keeps its order, and loses no output while it stands.
        if isinstance(sent.message, Output) and not due:
            due = [self.now + usual + delay for delay in _MORE[Fate.LATE]]
        line = (sent.sender, sent.receiver)
        due = [max(each, self._line.get(line, 0.0)) for each in due]
        self._line[line] = due[0] if due else self._line.get(line, 0.0)
        return due

    def _arrive(self, sent, session):
        receiver = self._party(sent.receiver)
        pair = frozenset((sent.sender, sent.receiver))
        if receiver.is_dead or self.sessions.get(pair, 0) != session:
            return
        if sent.receiver == "gateway":
            receiver.receive(sent.sender, sent.message)
        else:
            receiver.receive(sent.sender, session, sent.message)
        for deed in self._after.pop(sent.number, ()):
            deed()

    def _party(self, name):
        return self.gateway if name == "gateway" else self.instances[name]

    # ------------------------------------------------------------------ running and checking

    def run(self):
        """Until nothing more happens; checks at every moment what must always hold."""
        for count in itertools.count():
            if not self._events:
                break
            assert count < _MOST_EVENTS, "it does not end"
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.check_owners()
        if self.is_rough and not self.gateway.is_dead and len(self.gateway.streams):
            for request in self.requests:
                self.gateway.cancel(request)
            self.run()

    def check_owners(self):
        """At most one instance goes on with a request under an epoch that the arbiter accepts."""
        for request, client in self.gateway.clients.items():
            assert client.tokens == client.expected[: len(client.tokens)], "tokens were corrupted"
            stream = self.gateway.streams.get(RequestId(request))
            if stream is None or self.gateway.is_dead:
                continue
            owners = [
                (name, held.epoch)
                for name, instance in self.instances.items()
                if not instance.is_dead
                and (held := instance.engine.held.get(request)) is not None
                and held.state is not Is.CUT
                and _is_accepted(stream, name, held.epoch)
            ]
            assert len(owners) <= 1, f"{owners} all go on with {request}"

    def check_end(self):
        """Nothing is left anywhere; every stream has ended, and well unless there was trouble."""
        for name, instance in self.instances.items():
            if not instance.is_dead:
                left = {what: amount for what, amount in instance.left_behind().items() if amount}
                assert not left, f"{name} has {left} left"
                assert not instance.engine.held, f"{name} holds {instance.engine.held}"
        if self.gateway.is_dead:
            return
        for request, client in self.gateway.clients.items():
            assert client.end, f"the stream of {request} never ended"
            if client.end == "finished":
                assert client.tokens == client.expected
            elif not self.had_trouble and not self.is_rough:
                assert client.end == "cancelled", f"{request} {client.end} without any trouble"

    def outcome(self, migration):
        """How a migration ended at its source; empty if it never began."""
        for instance in self.instances.values():
            if migration in instance.leaving:
                return instance.leaving[migration].machine.state.value
        return ""


def _is_accepted(stream, name, epoch):
    if epochs.follows(Epoch(epoch), stream.epoch):
        return True
    return stream.owner == name and stream.epoch == epoch
