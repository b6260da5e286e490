"""Taking units from their hosts without cutting streams: one unit, or all of a host.

An instance is cordoned at the gateways first; when they know it, and it has nothing running or
waiting any more (or the deadline has come), gateways let go of it and it ends. A gateway drains by
itself: told to end, it takes no new connection and lets its streams finish.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llx.agent.processes import ShimRecord
from llx.api import InstanceState
from llx.cluster.actions import GRACE_S, Actions
from llx.cluster.fleet import Fleet
from llx.cluster.stopping import StopCount
from llx.cluster.unit import Unit
from llx.errors import LlxError
from llx.log import get_log
from llx.specs import GatewaySpec
from llx.wire import GatewayReport

log = get_log(__name__)

_EMPTY = "takes nothing new"
_POLL_S = 0.1
_KNOWN_S = 5.0
"""A gateway that does not take in a new list is not waited for longer."""
_SILENT_S = 5.0
"""An instance that has not been heard for so long cannot be emptied; a link may blink."""
_CALM_S = 0.3
"""So long nothing may run: a request may be on its way from a gateway."""


@dataclass(slots=True)
class Emptied:
    """What became of streams; `left`: what could not be reached and may still run."""

    finished: int
    cut: int
    left: list[str]


class Emptying:
    """Empties units and hosts of a fleet."""

    def __init__(
        self, fleet: Fleet, actions: Actions, publish: Callable[[], Awaitable[None]]
    ) -> None:
        self._fleet = fleet
        self._actions = actions
        self._publish = publish

    async def empty(self, units: Sequence[Unit], deadline_s: float) -> Emptied:
        """Take all these units from their hosts, at once; they have none afterwards."""
        done = Emptied(0, 0, [])
        await asyncio.gather(*(self._empty(unit, deadline_s, done) for unit in units))
        return done

    async def _empty(self, unit: Unit, deadline_s: float, done: Emptied) -> None:
        while unit.is_busy and unit.task is not None:
            await asyncio.wait([unit.task])
        if not unit.host:
            return
        if self._fleet.is_stopping:  # that ends it, too
            done.left.append(unit.name)
            return
        if isinstance(unit.spec, GatewaySpec):
            action = self._empty_gateway(unit, deadline_s, done)
        else:
            action = self._empty_instance(unit, deadline_s, done)
        await asyncio.wait([self._actions.act(unit, action)])

    async def _empty_instance(self, unit: Unit, deadline_s: float, done: Emptied) -> None:
        if unit.known:
            unit.state, unit.detail = InstanceState.DRAINING, _EMPTY
            self._actions.note("draining", unit, deadline_s=deadline_s)
            await self._publish()
            before, after = await self._wait_until_idle(unit, deadline_s)
            done.finished += max(0, before - after)
            if self._fleet.is_stopping:  # that lets streams finish, and ends it afterwards
                done.left.append(unit.name)
                return
            done.cut += after
        unit.known = []
        unit.state, unit.detail = InstanceState.STOPPING, "is taken from its host"
        await self._publish()
        await self._take_away(unit, GRACE_S, done)
        unit.leave_host()

    async def _wait_until_idle(self, unit: Unit, deadline_s: float) -> tuple[int, int]:
        """Requests at the beginning and at the end."""
        begun = time.monotonic()
        version = self._fleet.line.version
        first = last = self._requests(unit)
        calm_since: float | None = None
        silent_since: float | None = None
        while (now := time.monotonic()) < begun + deadline_s and not self._fleet.is_stopping:
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
            unit.detail = f"takes nothing new; {found} requests left" if found else _EMPTY
            version = version or self._fleet.line.version  # of a new head none is out yet
            is_known = self._is_known(version) or now > begun + _KNOWN_S
            if found or not is_known:
                calm_since = None
            else:
                calm_since = calm_since or now
                if now - calm_since >= _CALM_S:
                    break
            await asyncio.sleep(_POLL_S)
        return first or 0, last or 0

    def _is_known(self, version: int) -> bool:
        """Whether every gateway has that list, also those that a new head has not met yet."""
        running = [u for u in self._fleet.gateways.values() if u.state is InstanceState.READY]
        are_met = all(self._fleet.is_heard(unit) for unit in running)
        return version > 0 and are_met and self._fleet.line.is_known(version)

    def _requests(self, unit: Unit) -> int | None:
        found = self._fleet.loads.load(unit.name)
        return None if found is None else found[0].num_running + found[0].num_waiting

    async def _empty_gateway(self, unit: Unit, deadline_s: float, done: Emptied) -> None:
        count = StopCount(lambda: self._report(unit))
        unit.state, unit.detail = InstanceState.DRAINING, "lets its streams finish"
        self._actions.note("draining", unit, deadline_s=deadline_s)
        record = await self._take_away(unit, deadline_s, done)
        was_killed = record is not None and record.signal is not None
        report = count.report(was_killed=was_killed, is_gone=unit.name not in done.left)
        done.finished += report.finished
        done.cut += report.cut
        unit.leave_host()  # not before: its last word counts as long as it is where it was
        self._fleet.line.drop(unit.name)

    async def _take_away(self, unit: Unit, grace_s: float, done: Emptied) -> ShimRecord | None:
        """End it for good; returns how it ended, if that could be learned."""
        record = None
        try:
            record = await self._actions.end_for_good(unit, grace_s)
        except LlxError as error:
            log.error("unit.not_stopped", name=unit.name, host=unit.host, error=error)
            done.left.append(unit.name)
        self._actions.note("removed", unit, host=unit.host)
        return record

    def _report(self, unit: Unit) -> GatewayReport | None:
        view = self._fleet.line.view(unit.name)
        return None if view is None else view.report
