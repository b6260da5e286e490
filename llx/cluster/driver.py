"""The driver: makes what runs match what should run, again and again.

Level-triggered: each round looks at the processes (shims and status files), compares with what is
desired and acts on the difference; nothing depends on having seen a change happen. So a driver that
starts beside running processes adopts them, and one that is killed leaves them serving.

One asyncio task owns all state. What blocks (starting, stopping, reading files) runs in threads, at
most one action per unit at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from llx.agent.log_file import read_log
from llx.agent.node import HEAD, NodeAgent, Observed
from llx.api import ClusterStatus, InstanceState, InstanceStatus, LogSlice, StopReport
from llx.cluster.audit import AuditTrail
from llx.cluster.desired import need_of
from llx.cluster.fleet import Fleet
from llx.cluster.starting import start_unit
from llx.cluster.stopping import StopCount
from llx.cluster.unit import Unit, assess
from llx.errors import ConflictError, LlxError, NotFoundError
from llx.log import get_log
from llx.specs import GatewaySpec, InstanceSpec

log = get_log(__name__)

_POLL_S = 0.5
_POLL_WHILE_CHANGING_S = 0.1
_GRACE_S = 15.0
_START_S = 5.0
_TAIL_LINES = 20


class ClusterDriver:
    """Drives one cluster on this host.

    Args:
        fleet: The units; the driver alone changes them.
        agent: Runs them.
        audit: Where what happens is written down.
    """

    def __init__(self, fleet: Fleet, agent: NodeAgent, audit: AuditTrail) -> None:
        self.fleet = fleet
        self._agent = agent
        self._audit = audit
        self._stop_task: asyncio.Task[StopReport] | None = None
        self._wake = fleet.line.changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._strays: set[str] = set()
        specs = [unit.spec for unit in fleet.instances.values()]
        self._needs = [need_of(spec) for spec in specs if isinstance(spec, InstanceSpec)]
        self.stopped = asyncio.Event()
        """Set when `stop` is through: the head's cue to end."""

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Reconcile until cancelled. What was started goes on running."""
        self._audit.record("head.started", term=self.fleet.term)
        line = asyncio.create_task(self.fleet.line.run())
        try:
            while not line.done():
                try:
                    await self._round()
                except (LlxError, OSError) as error:  # no descriptor, no space: try again
                    log.error("driver.round_failed", error=error)
                await self._wait()
            line.result()
        finally:
            # Whoever clears up after this head should find every process that it began to start.
            starting = [u.task for u in self.fleet.units() if u.task and _is_starting(u)]
            if starting:
                await asyncio.wait(starting, timeout=_START_S)
            tasks = [*self._tasks, line]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _round(self) -> None:
        # An observation is older than an action that ended while it was made: such a unit waits.
        idle = {unit.name: unit.task for unit in self.fleet.units() if not unit.is_busy}
        seen = await asyncio.to_thread(self._agent.observe)
        for unit in self.fleet.units():
            if unit.name not in idle or unit.is_busy or unit.task is not idle[unit.name]:
                continue
            unit.observed = seen.get(unit.name)
            if self._stop_task is None:
                self._advance(unit, unit.observed)
        if self._stop_task is None:
            self._end_strays(seen)
        await self._publish()
        self.fleet.has_served = self.fleet.has_served or self.fleet.is_ready()

    async def _wait(self) -> None:
        is_changing = any(not unit.is_settled for unit in self.fleet.units())
        timeout_s = _POLL_WHILE_CHANGING_S if is_changing else _POLL_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()

    async def _publish(self) -> None:
        members = self.fleet.members()
        self.fleet.loads.follow(members)
        await self.fleet.line.publish(members)

    # ------------------------------------------------------------------ one unit, one step

    def _advance(self, unit: Unit, seen: Observed | None) -> None:
        if unit.state in {InstanceState.FAILED, InstanceState.STOPPED}:
            return
        if not unit.is_ours:
            if seen is None or not seen.is_running:
                self._act(unit, self._start(unit))
                return
            self._adopt(unit, seen)
        if seen is None:
            self._fail(unit, "its files are gone")
            return
        timeout_s = self.fleet.settings.runtime.start_timeout_s
        found = assess(seen, now=time.time(), start_timeout_s=timeout_s)
        if found.state is InstanceState.FAILED:
            self._fail(unit, found.detail)
            return
        was, unit.state, unit.detail = unit.state, found.state, found.detail
        if found.state is InstanceState.READY:
            if was is not InstanceState.READY and seen.said is not None:
                unit.ready_after_s = round(max(0.0, seen.said.at - seen.record.started_at), 3)
                self._note("ready", unit, after_s=unit.ready_after_s)
            if seen.spec != unit.spec:
                unit.detail = "runs with older settings until it is restarted"

    def _adopt(self, unit: Unit, seen: Observed) -> None:
        unit.is_ours = True
        held = self._agent.ledger.held().get(unit.name)
        unit.devices = [] if held is None else held.devices
        self._note("adopted", unit, pid=seen.record.child_pid)

    def _fail(self, unit: Unit, reason: str) -> None:
        """Into `failed`, with the end of its log; what still runs of it is ended."""
        tail = ""
        if unit.observed is not None:
            with contextlib.suppress(NotFoundError, OSError):
                path = self._agent.procs_dir / unit.name / "log"
                tail = read_log(path, None, limit=8192, tail=_TAIL_LINES).text.rstrip()
        unit.state = InstanceState.FAILED
        unit.detail = f"{reason}\n{tail}" if tail else reason
        self._note("failed", unit, reason=reason.partition("\n")[0])
        if isinstance(unit.spec, GatewaySpec):
            self.fleet.line.drop(unit.name)
        if unit.pid is not None and not unit.is_busy:
            self._act(unit, self._end(unit))

    def _end_strays(self, seen: Mapping[str, Observed]) -> None:
        """End what runs and is no longer asked for."""
        wanted = {unit.name for unit in self.fleet.units()}
        for name, each in seen.items():
            if each.is_running and name not in wanted and name not in self._strays:
                self._strays.add(name)
                self._audit.record("process.removed", name=name)
                self._own(asyncio.create_task(self._end_stray(name)))

    async def _end_stray(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._agent.stop, name, _GRACE_S)
            self._agent.forget(name)
            self._agent.ledger.release(name)
        except LlxError as error:
            log.error("process.not_removed", name=name, error=error)
        finally:
            self._strays.discard(name)

    # ------------------------------------------------------------------ actions

    def _act(self, unit: Unit, action: Coroutine[Any, Any, None]) -> None:
        assert not unit.is_busy, f"{unit.name}: one action at a time"
        unit.task = asyncio.create_task(self._guarded(unit, action), name=f"act-{unit.name}")
        self._own(unit.task)

    async def _guarded(self, unit: Unit, action: Coroutine[Any, Any, None]) -> None:
        try:
            await action
        except LlxError as error:
            self._fail(unit, str(error))
        except Exception as error:
            log.exception("unit.action_failed", name=unit.name)
            self._fail(unit, f"{type(error).__name__}: {error}")
        finally:
            self._wake.set()

    async def _start(self, unit: Unit) -> None:
        unit.observed = None
        cores_each = self.fleet.settings.runtime.cpu_threads
        await start_unit(unit, self._agent, self._needs, cores_each)
        self._note("started", unit)

    async def _restart(self, unit: Unit) -> None:
        await self._publish()  # gateways let go of it before it ends
        await self._end(unit)
        unit.restarts += 1
        if self._stop_task is None:
            await self._start(unit)

    async def _end(self, unit: Unit) -> None:
        await asyncio.to_thread(self._agent.stop, unit.name, _GRACE_S)

    # ------------------------------------------------------------------ what the API asks

    def status(self) -> ClusterStatus:
        """Everything, now."""
        return self.fleet.status()

    def instance(self, name: str) -> InstanceStatus:
        """One instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self.fleet.instance(name)

    def restart(self, name: str, user: str) -> InstanceStatus:
        """Begin to stop an instance, if it runs, and to start it anew.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: It is being stopped or started, or the cluster is being stopped.
        """
        unit = self.fleet.instance_unit(name)
        if self._stop_task is not None:
            raise ConflictError(f"{self.fleet.settings.cluster} is being stopped")
        if unit.is_busy or unit.state is InstanceState.STOPPING:
            raise ConflictError(f"{name} is being stopped or started", remedy="try again shortly")
        self._note("restarting", unit, user=user)
        unit.state, unit.detail = InstanceState.STOPPING, "restart asked for"
        self._act(unit, self._restart(unit))
        return self.instance(name)

    def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogSlice:
        """Part of the log of the head, a gateway or an instance; blocking.

        Raises:
            NotFoundError: There is no such process, or it has no log yet.
        """
        known = [HEAD, *(unit.name for unit in self.fleet.units())]
        if name not in known:
            raise NotFoundError(f'no process "{name}"', remedy=f"there are: {', '.join(known)}")
        part = read_log(self._agent.procs_dir / name / "log", offset, limit=limit, tail=tail)
        return LogSlice(name=name, text=part.text, next_offset=part.next_offset)

    # ------------------------------------------------------------------ the end

    async def stop(self, deadline_s: float, user: str) -> StopReport:
        """Stop everything: the gateway first, its streams may finish until the deadline.

        Asked again with a shorter deadline it cuts the first short; both get the same report.
        """
        kind = "cluster.stopping" if self._stop_task is None else "cluster.stopping_again"
        self._audit.record(kind, user=user, deadline_s=deadline_s)
        log.info(kind, user=user, deadline_s=deadline_s)
        if self._stop_task is None:
            self.fleet.is_stopping = True
            self._stop_task = asyncio.create_task(self._stop_all(deadline_s, user))
            self._stop_task.add_done_callback(lambda _: self.stopped.set())
        else:
            await asyncio.to_thread(self._agent.stop, self.fleet.gateway.name, deadline_s)
        return await asyncio.shield(self._stop_task)

    async def _stop_all(self, deadline_s: float, user: str) -> StopReport:
        units, gateway = self.fleet.units(), self.fleet.gateway
        await asyncio.gather(*(unit.task for unit in units if unit.task is not None))
        count = StopCount(self.fleet.report_of_gateway)
        was_killed = await self._stop_unit(gateway, deadline_s)
        report = count.report(was_killed=was_killed)
        self.fleet.line.drop(gateway.name)
        await asyncio.gather(
            *(self._stop_unit(unit, _GRACE_S) for unit in self.fleet.instances.values())
        )
        self._audit.record("cluster.stopped", user=user, finished=report.finished, cut=report.cut)
        return report

    async def _stop_unit(self, unit: Unit, grace_s: float) -> bool:
        """Returns whether it had to be killed."""
        unit.state, unit.detail = InstanceState.STOPPING, "the cluster is being stopped"
        record = None
        try:
            record = await asyncio.to_thread(self._agent.stop, unit.name, grace_s)
            self._agent.ledger.release(unit.name)
        except LlxError as error:
            log.error("unit.not_stopped", name=unit.name, error=error)
        unit.state, unit.detail = InstanceState.STOPPED, ""
        return record is not None and record.signal is not None

    # ------------------------------------------------------------------ leaves

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, what: str, unit: Unit, user: str = "", **fields: str | float | None) -> None:
        kind = "gateway" if isinstance(unit.spec, GatewaySpec) else "instance"
        log.info(f"{kind}.{what}", **{kind: unit.name}, **fields)
        self._audit.record(f"{kind}.{what}", user=user, name=unit.name, **fields)


def _is_starting(unit: Unit) -> bool:
    return unit.is_busy and unit.state is InstanceState.STARTING
