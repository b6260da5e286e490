"""What the driver does to one unit: start, restart, end, bury.

Each unit has one action at a time, a task. An action that loses its host's agent leaves the unit to
what is seen of it when the agent is back.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from llx.agent.processes import ShimRecord
from llx.api import HostState, InstanceState
from llx.cluster.driving.desired import need_of
from llx.cluster.driving.stopping import Deadline
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.agents import AgentPort
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import MAX_FAILURES, Unit
from llx.errors import ConflictError, DeadlineError, LlxError, UnreachableError
from llx.log import get_log
from llx.specs import GatewaySpec, InstanceSpec

log = get_log(__name__)

GRACE_S = 15.0
DRAIN_S = 60.0
"""So long streams may go on where nobody has said how long."""
_CANCEL_S = 5.0
_ASK_AGAIN_S = 0.5
_LAST_TRIES_S = 10.0
"""So long after a deadline an agent that is away may still come back and tell how it ended."""
_TAIL_S = 3.0
_TAIL_LINES = 20
_TAIL_BYTES = 8192

T = TypeVar("T")

Publish = Callable[[], Awaitable[None]]


class Actions:
    """Acts on units of a fleet.

    Args:
        fleet: The units.
        audit: Where what happens is written down.
        publish: Tells gateways which instances they may use.
    """

    def __init__(self, fleet: Fleet, audit: AuditTrail, publish: Publish) -> None:
        self._fleet = fleet
        self._audit = audit
        self._publish = publish
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ends: dict[tuple[str, str], Deadline] = {}
        self.ended_at: dict[tuple[str, str], float] = {}
        """By host and name: when a process was ended for good. News from before is out of date."""

    # ------------------------------------------------------------------ tasks

    def own(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run it until it ends, or until `cancel`."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """End every task."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)

    def act(self, unit: Unit, action: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin an action on a unit that is not busy."""
        assert not unit.is_busy, f"{unit.name}: one action at a time"
        unit.task = self.own(self._guarded(unit, action), f"act-{unit.name}")
        return unit.task

    def wake(self) -> None:
        """Have the driver look at once."""
        self._fleet.line.changed.set()

    async def _guarded(self, unit: Unit, action: Coroutine[Any, Any, None]) -> None:
        try:
            await action
        except (UnreachableError, DeadlineError) as error:
            log.warning("unit.agent_away", name=unit.name, host=unit.host, error=error.message)
            if unit.state in {InstanceState.STARTING, InstanceState.STOPPING}:
                if unit.state is InstanceState.STARTING:
                    unit.doubt = error.message
                unit.is_ours, unit.state = False, InstanceState.STARTING
                unit.detail = f"waiting for {unit.host}: {error.message}"
        except LlxError as error:
            await self._fail_here(unit, str(error))
        except Exception as error:
            log.exception("unit.action_failed", name=unit.name)
            await self._fail_here(unit, f"{type(error).__name__}: {error}")
        finally:
            unit.acted_at = time.monotonic()
            self.wake()

    # ------------------------------------------------------------------ starting

    async def start(self, unit: Unit) -> None:
        """Start its process on its host; it says itself how it gets on from there.

        An instance leaves a host that has no devices for it.

        Raises:
            ConflictError: It runs already.
            RemoteError: It cannot be started; says why.
            UnreachableError: Nobody knows whether it was.
        """
        unit.state, unit.detail, unit.is_ours = InstanceState.STARTING, "starting its process", True
        unit.observed = unit.retry_at = unit.ready_after_s = unit.ready_since = None
        unit.known, unit.owes_pause, unit.doubt, unit.started = [], False, "", unit.spec
        match unit.spec:
            case InstanceSpec() as spec:
                await self._start_instance(unit, spec)
            case GatewaySpec() as spec:
                await self._agent(unit).start_gateway(spec)
        if unit.host:
            self.note("started", unit, host=unit.host)

    async def _start_instance(self, unit: Unit, spec: InstanceSpec) -> None:
        agent = self._agent(unit)
        specs = [each.spec for each in self._fleet.units_on(unit.host)]
        needs = [need_of(each) for each in specs if isinstance(each, InstanceSpec)]
        cores_each = self._fleet.settings.runtime.cpu_threads
        try:
            unit.devices = await agent.start_instance(spec, needs, cores_each)
        except ConflictError as error:
            seen = (await agent.observe()).processes.get(unit.name)
            if seen is not None and seen.is_running:
                raise  # not for want of devices
            await agent.release(unit.name)
            self.note("refused", unit, host=unit.host, reason=error.message)
            unit.note_refusal(error.message, time.monotonic())

    async def start_again(self, unit: Unit) -> None:
        """Start what has ended."""
        unit.restarts += 1
        await self.start(unit)

    async def restart(self, unit: Unit) -> None:
        """End an instance, if it runs, and start it anew; earlier failures count no more."""
        unit.known, unit.retry_at, unit.failures = [], None, 0
        await self._publish()  # gateways let go of it before it ends
        await self.end(unit)
        if not self._fleet.is_stopping:
            await self.start_again(unit)

    async def renew(self, unit: Unit, deadline_s: float = DRAIN_S) -> None:
        """End a gateway once its streams have finished, and start it anew."""
        unit.retry_at, unit.failures = None, 0
        unit.state, unit.detail = InstanceState.DRAINING, "lets its streams finish"
        self.note("draining", unit, deadline_s=deadline_s)
        await self.end_surely(unit.host, unit.name, Deadline.after(deadline_s))
        self._fleet.line.drop(unit.name)
        if not self._fleet.is_stopping:
            await self.start_again(unit)

    async def redirect(self, unit: Unit) -> None:
        """Tell a running gateway where the head is now."""
        assert isinstance(unit.started, GatewaySpec), f"{unit.name} is a gateway that runs"
        assert isinstance(unit.spec, GatewaySpec), f"{unit.name} is a gateway"
        address = unit.spec.scheduler_address
        told = msgspec.structs.replace(unit.started, scheduler_address=address)
        await self._agent(unit).start_gateway(told)
        unit.started = told
        self.note("redirected", unit, host=unit.host)

    # ------------------------------------------------------------------ ending

    async def end(self, unit: Unit, grace_s: float = GRACE_S) -> ShimRecord | None:
        """End its process; it keeps its devices."""
        return await self._agent(unit).stop(unit.name, grace_s)

    async def end_for_good(self, unit: Unit, grace_s: float = GRACE_S) -> ShimRecord | None:
        """End its process, give its devices back and forget it.

        Raises:
            UnreachableError: Its host's agent does not answer.
        """
        return await self.end_process(unit.host, unit.name, grace_s)

    async def end_process(self, host: str, name: str, grace_s: float) -> ShimRecord | None:
        """`end_for_good`, of whatever runs there under that name."""
        deadline = Deadline.after(grace_s)
        record = await self.end_surely(host, name, deadline)
        await self._insist(host, lambda agent: agent.release(name), deadline)
        await self._insist(host, lambda agent: agent.forget(name), deadline)
        self.ended_at[host, name] = time.monotonic()
        return record

    async def end_surely(self, host: str, name: str, deadline: Deadline) -> ShimRecord | None:
        """End a process, killed at the deadline; ask again if its agent falls silent meanwhile.

        To be asked again does the process no harm: its shim keeps to the deadline it was given.

        Raises:
            UnreachableError: The host is lost, or its agent did not come back in time.
        """
        self._ends[host, name] = deadline
        try:
            return await self._insist(
                host, lambda agent: agent.stop(name, deadline.left_s()), deadline
            )
        finally:
            self._ends.pop((host, name), None)

    async def hurry(self, unit: Unit, deadline_s: float) -> None:
        """Bring forward the end of a unit that is being ended.

        Raises:
            UnreachableError: Its host's agent does not answer: it is told when it does.
        """
        deadline = self._ends.get((unit.host, unit.name))
        if deadline is not None:
            deadline.shorten(deadline_s)
        await self._agent(unit).stop(unit.name, deadline_s)

    async def _insist(
        self, host: str, ask: Callable[[AgentPort], Awaitable[T]], deadline: Deadline
    ) -> T:
        """What the host's agent answers, now or when it is back."""
        is_away = False
        while True:
            found = self._fleet.hosts.get(host)
            if found is None or found.state is HostState.LOST:
                raise UnreachableError(f"{host} is lost")
            try:
                return await ask(found.agent)
            except (UnreachableError, DeadlineError) as error:
                if time.monotonic() > deadline.at + _LAST_TRIES_S:
                    raise
                if not is_away:
                    log.warning("agent.is_asked_again", host=host, error=error.message)
                is_away = True
            await asyncio.sleep(_ASK_AGAIN_S)

    # ------------------------------------------------------------------ failing

    def fail(self, unit: Unit, reason: str, *, is_excused: bool = False) -> None:
        """It has ended by itself or must be: to be started again in a while, or not at all.

        `is_excused`: see `Unit.note_failure`.
        """
        if self._note_failure(unit, reason, is_excused=is_excused):
            if unit.pid is not None:
                self.act(unit, self._end_quietly(unit))
            return
        if unit.state is InstanceState.READY:
            unit.state, unit.detail = InstanceState.STOPPING, reason
        self.act(unit, self._bury(unit, reason))

    async def _fail_here(self, unit: Unit, reason: str) -> None:
        """`fail`, within the unit's action."""
        if not self._note_failure(unit, reason):
            await self._bury(unit, reason)

    def _note_failure(self, unit: Unit, reason: str, *, is_excused: bool = False) -> bool:
        now = time.monotonic()
        first_line = reason.partition("\n")[0]
        is_again = unit.note_failure(first_line, now, is_excused=is_excused)
        if isinstance(unit.spec, GatewaySpec):
            self._fleet.line.drop(unit.name)
        if not is_again:
            return False
        self.note("failed", unit, reason=first_line, failures=unit.failures)
        tell_wait(unit, now)
        return True

    async def _bury(self, unit: Unit, reason: str) -> None:
        """Into `failed`, with the end of its log; what still runs of it is ended."""
        tail = ""
        with contextlib.suppress(LlxError, OSError, TimeoutError):
            agent = self._agent(unit)
            async with asyncio.timeout(_TAIL_S):
                part = await agent.read_log(unit.name, None, _TAIL_BYTES, _TAIL_LINES)
            tail = part.text.rstrip()
        if unit.failures >= MAX_FAILURES:
            reason = f"failed {unit.failures} times in a row; last: {reason}"
        unit.state = InstanceState.FAILED
        unit.detail = f"{reason}\n{tail}" if tail else reason
        self.note("failed", unit, reason=unit.last_failure, failures=unit.failures)
        await self._end_quietly(unit)

    async def _end_quietly(self, unit: Unit) -> None:
        try:
            await self.end(unit)
        except LlxError as error:
            log.warning("unit.not_ended", name=unit.name, error=error)

    # ------------------------------------------------------------------ leaves

    def note(self, what: str, unit: Unit, user: str = "", **fields: str | float | None) -> None:
        """An event of a unit, to log and audit trail."""
        kind = "gateway" if isinstance(unit.spec, GatewaySpec) else "instance"
        log.info(f"{kind}.{what}", **{kind: unit.name}, **fields)
        self._audit.record(f"{kind}.{what}", user=user, name=unit.name, **fields)

    def note_host(self, what: str, host: str, user: str = "", **fields: str | float | None) -> None:
        """An event of a host, likewise."""
        log.info(f"host.{what}", host=host, **fields)
        self._audit.record(f"host.{what}", user=user, name=host, **fields)

    def _agent(self, unit: Unit) -> AgentPort:
        return self._fleet.agent_of(unit.host)


def tell_wait(unit: Unit, now: float) -> None:
    """It is starting: say in its detail when, and why it has to be."""
    assert unit.retry_at is not None, f"{unit.name} waits for nothing"
    wait_s = max(1, round(unit.retry_at - now))
    unit.state = InstanceState.STARTING
    unit.detail = f"restarts in {wait_s} s; last: {unit.last_failure}"
