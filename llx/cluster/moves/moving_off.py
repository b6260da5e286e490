"""Moving the requests of one instance to others of its pool, until it has none.

Each request goes to whoever is freest at that moment, what is on its way there counted; only some
are under way at a time, so that the next ones are placed by what has become of the first. One that
is kept is tried again, after a growing pause and elsewhere if there is an elsewhere. What cannot
move is left to finish.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from llx.api import MoveOutcome
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.migrations import Migrations, as_movable
from llx.cluster.moves.movability import pool_of, why_no_source, why_no_target, why_pinned
from llx.cluster.moves.move_log import Move
from llx.cluster.requests.listing import Located, list_requests
from llx.core.dispatch import Candidate, freest
from llx.core.model import Blocks, InstanceId, RequestId, blocks_for
from llx.core.request_choice import choose, shortest
from llx.errors import UnreachableError

_QUEUED = 2
"""So many more than it moves at a time are given to a source, that it need not wait for orders."""
_LOOK_S = 0.25
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_MAX_NAMED = 100


@dataclass(slots=True)
class _Try:
    """What has come of moving one request. `not_before` is on the monotonic clock."""

    label: str
    reason: str = ""
    count: int = 0
    not_before: float = 0.0
    failed_at: set[InstanceId] = field(default_factory=set)


class MovingOff:
    """Moves requests off one instance.

    Args:
        fleet: Whose instances.
        migrations: Gives the orders.
        unit: The instance; it is cordoned, else this has no end.
        user: Who wants it empty.
        why: What for, in words.
    """

    def __init__(
        self, fleet: Fleet, migrations: Migrations, unit: Unit, *, user: str, why: str
    ) -> None:
        self._fleet = fleet
        self._migrations = migrations
        self._unit = unit
        self._user = user
        self._why = why
        self._open: list[Move] = []
        self._tries: dict[RequestId, _Try] = {}
        self._silence = ""
        self.moved: set[RequestId] = set()
        """Those that have."""

    async def run(self) -> None:
        """Move what can be moved, until cancelled."""
        while True:
            self._settle()
            room = self._fleet.settings.migration.max_out + _QUEUED - len(self._open)
            is_full = room > 0 and await self._order_some(room)
            await self._wait(_LOOK_S, is_for_one=is_full or room <= 0)

    async def finish(self, within_s: float) -> None:
        """Let what is under way end; nothing more is begun, `run` has been cancelled."""
        end = time.monotonic() + within_s
        while self._open and (left_s := end - time.monotonic()) > 0:
            await self._wait(left_s, is_for_one=True)
            self._settle()
        self._settle()

    async def num_left(self) -> int | None:
        """How many requests the instance has that have not moved; None: it does not say.

        Its load reports are no answer: the last may be older than the news of a move.
        """
        listing = await list_requests(self._fleet.loads, [self._unit.name])
        if listing.not_asked:
            return None
        return sum(each.request not in self.moved for each in listing.requests)

    def not_moved(self) -> list[str]:
        """What could not be moved, ``request: reason``."""
        found = [f"{each.label}: {each.reason}" for each in self._tries.values() if each.reason]
        if len(found) > _MAX_NAMED:
            found[_MAX_NAMED:] = [f"{len(found) - _MAX_NAMED} more"]
        return [self._silence, *found] if self._silence else found

    # ------------------------------------------------------------------ the rounds

    async def _order_some(self, room: int) -> bool:
        """Order up to `room` moves; returns whether more wait for room."""
        listing = await list_requests(self._fleet.loads, [self._unit.name])
        self._silence = listing.not_asked[0] if listing.not_asked else ""
        due = self._due(listing.requests)
        for located in due[:room]:
            target = self.target_for(located)
            if isinstance(target, str):
                self._note(located, target)
                continue
            try:
                move = self._migrations.order(located, target, user=self._user, why=self._why)
            except UnreachableError as error:
                self._note(located, error.message)
            else:
                self._open.append(move)
        return len(due) > room

    def _due(self, requests: Sequence[Located]) -> list[Located]:
        """Those to be moved now, the shortest first."""
        now = time.monotonic()
        own = {each.request for each in self._open}
        due = {}
        for each in requests:
            if each.request in own:
                continue
            reason = why_pinned(self._fleet, each)
            if reason:
                self._note(each, reason)
            elif now >= self._try_of(each).not_before:
                due[each.request] = each
        movable = [as_movable(each) for each in due.values()]
        return [due[each.request] for each in choose(movable, shortest, None)]

    def _settle(self) -> None:
        """Take note of moves that are over."""
        for move in [each for each in self._open if not each.is_open]:
            self._open.remove(move)
            found = self._tries[move.request]
            match move.outcome:
                case MoveOutcome.MOVED:
                    self.moved.add(move.request)
                    del self._tries[move.request]
                case MoveOutcome.GONE:
                    found.reason = ""
                case _:
                    found.count += 1
                    found.failed_at.add(move.target)
                    found.reason = move.reason or f"was kept by {move.source}"
                    pause_s = _FIRST_PAUSE_S * 2.0 ** (found.count - 1)
                    found.not_before = time.monotonic() + min(_LONGEST_PAUSE_S, pause_s)

    async def _wait(self, timeout_s: float, *, is_for_one: bool) -> None:
        """Until some time has passed; `is_for_one`: or one move is over, which makes room."""
        if not (is_for_one and self._open):
            await asyncio.sleep(timeout_s)
            return
        waits = [asyncio.create_task(each.over.wait()) for each in self._open]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    # ------------------------------------------------------------------ where to

    def target_for(self, located: Located) -> Unit | str:
        """The freest instance that has room, or why there is none."""
        reason = why_no_source(self._fleet, self._unit)
        if reason:
            return f"{self._unit.name} {reason}"
        pool = pool_of(self._unit)
        others = [
            each
            for each in self._fleet.instances.values()
            if each is not self._unit and pool_of(each) == pool
        ]
        if not others:
            return f"{self._unit.name} is the only instance of {pool}"
        reasons = {each.name: why_no_target(self._fleet, each) for each in others}
        if all(reasons.values()):
            return "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        candidates = [
            found
            for each in others
            if not reasons[each.name] and (found := self._candidate(each, located)) is not None
        ]
        if not candidates:
            return "no other instance has room for it"
        failed_at = self._try_of(located).failed_at
        fresh = [each for each in candidates if each.instance not in failed_at]
        decision = freest(fresh or candidates, Blocks(located.view.num_blocks))
        return self._fleet.instances[decision.chosen]

    def _candidate(self, unit: Unit, located: Located) -> Candidate | None:
        """The instance with what is on its way there; None: no room, or nothing known of it."""
        found = self._fleet.loads.load(unit.name)
        coming = self._fleet.moves.coming(unit.name)
        if found is None or len(coming) >= self._fleet.settings.migration.max_in:
            return None
        load = found[0]
        on_its_way = Blocks(sum(each.num_blocks for each in coming))
        view = located.view
        demand = max(view.num_blocks, blocks_for(view.num_tokens, load.block_size))
        if demand > load.free - load.waiting_demand - on_its_way:
            return None
        return Candidate(InstanceId(unit.name), load, len(coming), on_its_way)

    # ------------------------------------------------------------------ leaves

    def _try_of(self, located: Located) -> _Try:
        return self._tries.setdefault(located.request, _Try(located.label))

    def _note(self, located: Located, reason: str) -> None:
        self._try_of(located).reason = reason
