"""Stopping all of a cluster: the gateways first, so that their streams may finish.

That it was asked for lies in a file before it begins, so that a head which falls on the way does
not start everything again: the next one goes on. Whoever wants the cluster up again removes the
file.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

from llx.api import InstanceState, StopReport
from llx.cluster.driving.actions import GRACE_S, Actions
from llx.cluster.driving.stopping import Deadline, StopCount
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.placement_file import StopOrder, load_stop_order, save_stop_order
from llx.cluster.state_dir import StateDir
from llx.errors import LlxError, UnreachableError
from llx.log import get_log
from llx.wire import GatewayReport

log = get_log(__name__)


class Ending:
    """The end of a cluster: asked for, asked for again, gone on with.

    Args:
        fleet: What is stopped.
        actions: Acts on it.
        audit: Where it is written down.
        state: Keeps that it was asked for.
        save: Keeps what the next head must know.
    """

    def __init__(
        self,
        fleet: Fleet,
        actions: Actions,
        audit: AuditTrail,
        state: StateDir,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._actions = actions
        self._audit = audit
        self._state = state
        self._save = save
        self._task: asyncio.Task[StopReport] | None = None
        self._deadline = Deadline(0.0)
        self.done = asyncio.Event()
        """Set when everything is stopped, or is named as out of reach."""

    async def ask(self, deadline_s: float, user: str) -> StopReport:
        """Stop everything.

        Asked again with a shorter deadline it cuts the first short; both get the same report. One
        that failed can be asked for again.
        """
        kind = "cluster.stopping" if self._task is None else "cluster.stopping_again"
        self._audit.record(kind, user=user, deadline_s=deadline_s)
        log.info(kind, user=user, deadline_s=deadline_s)
        if self._task is None:
            self._deadline = Deadline.after(deadline_s)
            self._keep(user)
            task = self._begin(user)
        else:
            task = self._task
            self._deadline.shorten(deadline_s)
            self._keep(user)
            await self._hurry_gateways()
        return await asyncio.shield(task)

    def go_on(self) -> None:
        """Go on with what a former head had begun, if it had."""
        order = load_stop_order(self._state.stopping)
        if order is not None:
            self._audit.record("cluster.stop_resumed", user=order.user)
            log.info("cluster.stop_resumed", user=order.user)
            self._deadline = Deadline.after(max(0.0, order.deadline - time.time()))
            self._begin(order.user)

    def _keep(self, user: str) -> None:
        """On disk, for the next head; a full disk must not keep anybody from stopping."""
        order = StopOrder(time.time() + self._deadline.left_s(), user)
        try:
            save_stop_order(self._state.stopping, order)
        except OSError as error:
            log.error("cluster.stop_not_kept", error=error)

    def _begin(self, user: str) -> asyncio.Task[StopReport]:
        self._fleet.is_stopping = True
        self._task = task = self._actions.own(self._stop_all(user), "stop")
        task.add_done_callback(self._conclude)
        return task

    def _conclude(self, task: asyncio.Task[StopReport]) -> None:
        if task.cancelled():  # the head ends; the next one goes on
            return
        error = task.exception()
        if error is None:
            self.done.set()
            return
        log.error("cluster.not_stopped", error=repr(error))
        self._task = None

    # ------------------------------------------------------------------ what is done

    async def _stop_all(self, user: str) -> StopReport:
        """Stop every unit; what an action is under way on, when that is over."""
        await self._hurry_gateways()
        busy = [unit.task for unit in self._fleet.units() if unit.task is not None]
        await asyncio.gather(*busy, return_exceptions=True)
        left: list[str] = []
        gateways = [unit for unit in self._fleet.gateways.values() if unit.host]
        reports = await asyncio.gather(*(self._stop_gateway(unit, left) for unit in gateways))
        instances = [unit for unit in self._fleet.instances.values() if unit.host]
        await asyncio.gather(
            *(self._stop(unit, Deadline.after(GRACE_S), left) for unit in instances)
        )
        report = StopReport(
            finished=sum(each.finished for each in reports),
            cut=sum(each.cut for each in reports),
            not_stopped=left,
        )
        try:
            await self._save()
        except OSError as error:
            log.error("placements.not_saved", error=error)
        self._audit.record("cluster.stopped", user=user, finished=report.finished, cut=report.cut)
        return report

    async def _stop_gateway(self, unit: Unit, left: list[str]) -> StopReport:
        count = StopCount(partial(_report, self._fleet, unit))
        was_killed = await self._stop(unit, self._deadline, left)
        report = count.report(was_killed=was_killed, is_gone=unit.name not in left)
        self._fleet.line.drop(unit.name)
        return report

    async def _stop(self, unit: Unit, deadline: Deadline, left: list[str]) -> bool:
        """Returns whether it had to be killed; whom nobody could reach is added to `left`."""
        if unit.state is not InstanceState.LOST:
            unit.state, unit.detail = InstanceState.STOPPING, "the cluster is being stopped"
        record = None
        try:
            record = await self._actions.end_surely(unit.host, unit.name, deadline)
            with contextlib.suppress(UnreachableError):  # an agent that is new knows who has ended
                await self._fleet.agent_of(unit.host).release(unit.name)
        except (LlxError, OSError) as error:
            log.error("unit.not_stopped", name=unit.name, host=unit.host, error=error)
            left.append(unit.name)
        unit.known = []
        unit.state, unit.detail = InstanceState.STOPPED, ""
        return record is not None and record.signal is not None

    async def _hurry_gateways(self) -> None:
        """Cut short whatever ends gateways now."""

        async def hurry(unit: Unit) -> None:
            try:
                await self._actions.hurry(unit, self._deadline.left_s())
            except (LlxError, OSError) as error:
                log.warning("unit.not_hurried", name=unit.name, error=error)

        ending = {InstanceState.DRAINING, InstanceState.STOPPING}
        units = [each for each in self._fleet.gateways.values() if each.host]
        await asyncio.gather(*(hurry(unit) for unit in units if unit.state in ending))


def _report(fleet: Fleet, unit: Unit) -> GatewayReport | None:
    view = fleet.line.view(unit.name)
    return None if view is None else view.report
