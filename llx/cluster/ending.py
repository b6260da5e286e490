"""Stopping all of a cluster: the gateways first, so that their streams may finish."""

import asyncio
from functools import partial

from llx.api import HostState, InstanceState, StopReport
from llx.cluster.actions import GRACE_S, Actions
from llx.cluster.fleet import Fleet
from llx.cluster.stopping import StopCount
from llx.cluster.unit import Unit
from llx.errors import LlxError, UnreachableError
from llx.log import get_log
from llx.wire import GatewayReport

log = get_log(__name__)


async def stop_fleet(fleet: Fleet, actions: Actions, deadline_s: float) -> StopReport:
    """Stop every unit; what an action is under way on, when that is over."""
    await hurry_gateways(fleet, deadline_s, InstanceState.DRAINING)
    busy = [unit.task for unit in fleet.units() if unit.task is not None]
    await asyncio.gather(*busy, return_exceptions=True)
    stop = _Stop(fleet, actions)
    gateways = [unit for unit in fleet.gateways.values() if unit.host]
    counts = [StopCount(partial(_report, fleet, unit)) for unit in gateways]
    were_killed = await asyncio.gather(*(stop.unit(unit, deadline_s) for unit in gateways))
    reports = [
        count.report(was_killed=was_killed)
        for count, was_killed in zip(counts, were_killed, strict=True)
    ]
    for unit in gateways:
        fleet.line.drop(unit.name)
    instances = [unit for unit in fleet.instances.values() if unit.host]
    await asyncio.gather(*(stop.unit(unit, GRACE_S) for unit in instances))
    return StopReport(
        finished=sum(each.finished for each in reports),
        cut=sum(each.cut for each in reports),
        not_stopped=stop.left,
    )


async def hurry_gateways(
    fleet: Fleet, deadline_s: float, state: InstanceState = InstanceState.STOPPING
) -> None:
    """Cut short the stop of every gateway in that state."""

    async def hurry(unit: Unit) -> None:
        try:
            await fleet.agent_of(unit.host).stop(unit.name, deadline_s)
        except LlxError as error:
            log.warning("unit.not_hurried", name=unit.name, error=error)

    units = [each for each in fleet.gateways.values() if each.host and each.state is state]
    await asyncio.gather(*map(hurry, units))


class _Stop:
    """Stops units and keeps whom it could not reach."""

    def __init__(self, fleet: Fleet, actions: Actions) -> None:
        self._fleet = fleet
        self._actions = actions
        self.left: list[str] = []

    async def unit(self, unit: Unit, grace_s: float) -> bool:
        """Returns whether it had to be killed."""
        if unit.state is not InstanceState.LOST:
            unit.state, unit.detail = InstanceState.STOPPING, "the cluster is being stopped"
        record = None
        try:
            agent = self._fleet.agent_of(unit.host)
            if self._fleet.hosts[unit.host].state is HostState.LOST:
                raise UnreachableError(f"{unit.host} is lost")
            record = await agent.stop(unit.name, grace_s)
            await agent.release(unit.name)
        except LlxError as error:
            log.error("unit.not_stopped", name=unit.name, host=unit.host, error=error)
            self.left.append(unit.name)
        unit.known = []
        unit.state, unit.detail = InstanceState.STOPPED, ""
        return record is not None and record.signal is not None


def _report(fleet: Fleet, unit: Unit) -> GatewayReport | None:
    view = fleet.line.view(unit.name)
    return None if view is None else view.report
