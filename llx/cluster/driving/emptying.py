"""Taking units from their hosts without cutting streams: one unit, or all of a host.

An instance is cordoned at the gateways and drained (`llx.cluster.driving.draining`): its requests
move to other instances or finish; then, or when the deadline has come, gateways let go of it and it
ends. A gateway drains by itself: told to end, it takes no new connection and lets its streams
finish.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from llx.agent.processes import ShimRecord
from llx.api import InstanceState, StopReport
from llx.cluster.driving.actions import GRACE_S, Actions
from llx.cluster.driving.draining import EMPTY, Draining
from llx.cluster.driving.stopping import StopCount
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.errors import LlxError
from llx.log import get_log
from llx.specs import GatewaySpec
from llx.wire import GatewayReport

log = get_log(__name__)


@dataclass(slots=True)
class Emptied:
    """What became of streams and requests; `left`: what could not be reached and may still run.

    `moved` and `not_moved`: see `llx.api.StopReport`.
    """

    finished: int = 0
    cut: int = 0
    left: list[str] = field(default_factory=list)
    moved: int = 0
    not_moved: list[str] = field(default_factory=list)

    def report(self) -> StopReport:
        """As the control API tells it."""
        return StopReport(
            finished=self.finished,
            cut=self.cut,
            not_stopped=self.left,
            moved=self.moved,
            not_moved=self.not_moved,
        )


class Emptying:
    """Empties units and hosts of a fleet."""

    def __init__(
        self,
        fleet: Fleet,
        actions: Actions,
        draining: Draining,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._actions = actions
        self._draining = draining
        self._publish = publish

    async def empty(
        self,
        units: Sequence[Unit],
        deadline_s: float,
        user: str = "",
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Emptied:
        """Take all these units from their hosts, at once; they have none afterwards.

        An instance that is not empty yet is left as it is as soon as that is not wanted any more.
        """
        done = Emptied()
        await asyncio.gather(
            *(self._empty(unit, deadline_s, user, is_wanted, done) for unit in units)
        )
        return done

    async def _empty(
        self,
        unit: Unit,
        deadline_s: float,
        user: str,
        is_wanted: Callable[[], bool],
        done: Emptied,
    ) -> None:
        while unit.is_busy and unit.task is not None:
            await asyncio.wait([unit.task])
        if not unit.host or not is_wanted():
            return
        if self._fleet.is_stopping:  # that ends it, too
            done.left.append(unit.name)
            return
        if isinstance(unit.spec, GatewaySpec):
            action = self._empty_gateway(unit, deadline_s, done)
        else:
            action = self._empty_instance(unit, deadline_s, user, is_wanted, done)
        await asyncio.wait([self._actions.act(unit, action)])

    async def _empty_instance(
        self,
        unit: Unit,
        deadline_s: float,
        user: str,
        is_wanted: Callable[[], bool],
        done: Emptied,
    ) -> None:
        if unit.known:
            unit.state, unit.detail = InstanceState.DRAINING, EMPTY
            self._actions.note("draining", unit, deadline_s=deadline_s)
            why = f"{unit.name} is emptied"
            drained = await self._draining.drain(
                unit, deadline_s, user=user, why=why, is_wanted=is_wanted
            )
            if not is_wanted():
                unit.state, unit.detail = InstanceState.READY, ""
                await self._publish()
                return
            done.moved += drained.moved
            done.finished += drained.finished
            done.not_moved += drained.not_moved
            if self._fleet.is_stopping:  # that lets streams finish, and ends it afterwards
                done.left.append(unit.name)
                return
            done.cut += drained.left
        unit.known = []
        unit.state, unit.detail = InstanceState.STOPPING, "is taken from its host"
        await self._publish()
        await self._take_away(unit, GRACE_S, done)
        unit.leave_host()

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
