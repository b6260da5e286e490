"""Emptying one instance of its requests: they move to others, what cannot may finish.

The instance is cordoned by whoever asks for it. It is empty when every gateway knows that, and
nothing has been running or waiting there for a moment.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from llx.agent.link import report_interval_s
from llx.api import InstanceState
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.migrations import Migrations
from llx.cluster.moves.moving_off import MovingOff
from llx.log import get_log

log = get_log(__name__)

EMPTY = "takes nothing new"
_POLL_S = 0.05
_KNOWN_S = 5.0
"""A gateway that does not take in a new list is not waited for longer."""
_SILENT_S = 5.0
"""An instance that has not been heard for so long cannot be emptied; a link may blink."""
_CALM_S = 0.1
"""So long, and for two reports, nothing may run: a request may be on its way from a gateway."""
_LAST_MOVES_S = 2.0
"""What is under way at the deadline may still arrive."""


@dataclass(slots=True)
class Drained:
    """What became of an instance's requests; `left`: it has so many yet.

    `not_moved`: which could not move, and why; among them are some of those that finished.
    """

    moved: int = 0
    finished: int = 0
    left: int = 0
    not_moved: list[str] = field(default_factory=list)


class Draining:
    """Drains instances of a fleet."""

    def __init__(
        self, fleet: Fleet, migrations: Migrations, publish: Callable[[], Awaitable[None]]
    ) -> None:
        self._fleet = fleet
        self._migrations = migrations
        self._publish = publish

    async def drain(
        self,
        unit: Unit,
        deadline_s: float,
        *,
        user: str = "",
        why: str = "",
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Drained:
        """Wait until an instance has no requests, for `deadline_s` at most, moving them away.

        It ends early when it is not wanted any more, or when the cluster stops.
        """

        def goes_on() -> bool:
            return is_wanted() and not self._fleet.is_stopping

        await self._publish()
        mover = MovingOff(self._fleet, self._migrations, unit, user=user, why=why)
        moving = asyncio.create_task(mover.run(), name=f"moving-off-{unit.name}")
        try:
            first, last = await self._wait_until_idle(unit, deadline_s, goes_on)
        finally:
            moving.cancel()
            (ending,) = await asyncio.gather(moving, return_exceptions=True)
            if isinstance(ending, Exception):  # a bug: they may finish where they are
                log.error("draining.failed", instance=unit.name, error=repr(ending))
        has_more = bool(last) and goes_on()
        await mover.finish(_LAST_MOVES_S if has_more else 0.0)
        if has_more:
            left = await mover.num_left()
            last = (self._requests(unit) or 0) if left is None else left
        moved = len(mover.moved)
        return Drained(
            moved=moved,
            finished=max(0, first - last - moved),
            left=last,
            not_moved=mover.not_moved(),
        )

    async def _wait_until_idle(
        self, unit: Unit, deadline_s: float, goes_on: Callable[[], bool]
    ) -> tuple[int, int]:
        """Requests at the beginning and at the end."""
        begun = time.monotonic()
        calm_s = _CALM_S + 2 * report_interval_s(len(self._fleet.instances))
        version = self._fleet.line.version
        first = last = self._requests(unit)
        calm_since: float | None = None
        silent_since: float | None = None
        while (now := time.monotonic()) < begun + deadline_s and goes_on():
            found = self._requests(unit)
            if found is None:
                silent_since = silent_since or now
                if now - silent_since >= _SILENT_S:  # nobody can reach it
                    break
                calm_since = None
                await asyncio.sleep(_POLL_S)
                continue
            silent_since = None
            first, last = found if first is None else max(first, found), found
            self._tell(unit, found)
            version = version or self._fleet.line.version  # of a new head none is out yet
            is_known = self._is_known(version) or now > begun + _KNOWN_S
            if found or self._fleet.moves.leaving(unit.name) or not is_known:
                calm_since = None
            else:
                calm_since = calm_since or now
                if now - calm_since >= calm_s:
                    break
            await asyncio.sleep(_POLL_S)
        return first or 0, last or 0

    def _tell(self, unit: Unit, requests: int) -> None:
        if unit.state is not InstanceState.DRAINING:
            return
        moving = len(self._fleet.moves.leaving(unit.name))
        parts = [EMPTY, *([f"{requests} requests left"] if requests else [])]
        unit.detail = "; ".join([*parts, *([f"{moving} moving"] if moving else [])])

    def _is_known(self, version: int) -> bool:
        """Whether every gateway has that list, also those that a new head has not met yet."""
        running = [u for u in self._fleet.gateways.values() if u.state is InstanceState.READY]
        are_met = all(self._fleet.is_heard(unit) for unit in running)
        return version > 0 and are_met and self._fleet.line.is_known(version)

    def _requests(self, unit: Unit) -> int | None:
        found = self._fleet.loads.load(unit.name)
        return None if found is None else found[0].num_running + found[0].num_waiting
