"""`llx up` and `llx down` of a cluster on this machine. Tells an observer; prints nothing.

    up:    preflight → node environment → tiny model → head → instances, gateway → first token
    down:  streams finish → gateway, instances, head end → files of the start are removed

`up` holds the cluster's lock. Interrupted, it takes away what it started. Failing, it leaves the
cluster as it is, to be looked at; `down` clears whatever is left, head or no head.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from llx.api import ClusterStatus, GatewayStatus, InstanceState, InstanceStatus
from llx.bootstrap import preflight
from llx.bootstrap.cluster_dir import PROCS, clear, cluster_lock, running_settings
from llx.bootstrap.local_ports import Control, LocalPorts, Observer, StepEvent, StepState
from llx.bootstrap.plan import Plan
from llx.errors import (
    ConflictError,
    DeadlineError,
    EngineError,
    ExitCode,
    LlxError,
    RemoteError,
    UnreachableError,
)
from llx.settings import differing_keys

TAIL_LINES = 20

_POLL_S = 0.2
_HEAD_START_S = 60.0
_FIRST_TOKEN_S = 60.0
_ABORT_GRACE_S = 3.0
_ERROR_LINE = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .+")
_TERMINAL = frozenset({InstanceState.READY, InstanceState.FAILED, InstanceState.STOPPED})


class Before(StrEnum):
    """What `up` finds."""

    NOTHING = "nothing"
    HEADLESS = "headless"
    """Processes run, but no head: a new one adopts them."""
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class UpResult:
    """A cluster that answers."""

    status: ClusterStatus
    was_running: bool
    is_probed: bool


class StartError(EngineError):
    """Some of the cluster did not start. The exit code says whether the rest serves."""

    def __init__(self, message: str, *, is_partial: bool, detail: str, remedy: str) -> None:
        super().__init__(message, detail=detail, remedy=remedy)
        self.exit_code = ExitCode.PARTIAL if is_partial else ExitCode.FAILURE


def check(plan: Plan, ports: LocalPorts) -> None:
    """The preflight alone, as `up --dry-run` does it.

    Raises:
        PreflightError: With all findings.
        ConflictError: The cluster runs with other settings.
    """
    before = look(plan, ports)
    if before is Before.NOTHING:
        preflight.check(plan.settings, ports.gather(plan, frozenset()), ports.arguments())


def look(plan: Plan, ports: LocalPorts) -> Before:
    """What runs of this cluster.

    Raises:
        ConflictError: It runs with other settings.
    """
    alive = [each.name for each in ports.list_processes(plan.state_dir / PROCS) if each.is_alive()]
    if not alive:
        return Before.NOTHING
    name = plan.settings.cluster
    earlier = running_settings(plan.state_dir)
    if earlier is None:
        raise ConflictError(
            f"cluster {name}: {', '.join(alive)} left over from an earlier start",
            remedy=f"llx down --context {name}",
        )
    differing = differing_keys(earlier, plan.settings)
    if differing:
        raise ConflictError(
            f"cluster {name} is up with other settings: {', '.join(differing)}",
            remedy=f"llx down --context {name}, then llx up again",
        )
    return Before.RUNNING if "head" in alive else Before.HEADLESS


def up(plan: Plan, ports: LocalPorts, observe: Observer) -> UpResult:
    """Bring the cluster up, or see that it is, starting again what has failed.

    Raises:
        PreflightError: Before anything is changed.
        ConflictError: Another llx is at work on it, or it runs with other settings.
        InstallError: The node environment cannot be made.
        StartError: A process did not come up; the cluster is left for inspection.
        DeadlineError: Not ready in time; likewise.
        KeyboardInterrupt: Interrupted; what this call started is gone again.
    """
    with cluster_lock(plan.state_dir, "up"):
        return _Up(plan, ports, observe).run()


class _Up:
    """One run of `up`."""

    def __init__(self, plan: Plan, ports: LocalPorts, observe: Observer) -> None:
        self._plan = plan
        self._ports = ports
        self._observe = observe
        self._head_log = plan.state_dir / PROCS / "head" / "log"
        self._seen: dict[str, tuple[InstanceState, str]] = {}

    def run(self) -> UpResult:
        before = look(self._plan, self._ports)
        match before:
            case Before.NOTHING:
                self._preflight()
                python = self._node()
                self._tiny_model(python)
                with self._undone_if_interrupted():
                    self._start_head(python)
                    return self._finish(was_running=False)
            case Before.HEADLESS:
                self._start_head(self._node())
                return self._finish(was_running=True)
            case Before.RUNNING:
                self._restart_failed()
                return self._finish(was_running=True)
        assert_never(before)

    def _preflight(self) -> None:
        with self._step("preflight") as say:
            facts = self._ports.gather(self._plan, frozenset())
            preflight.check(self._plan.settings, facts, self._ports.arguments())
            gpus = f", {len(facts.gpus)} GPUs" if facts.gpus else ""
            memory = facts.memory_available_bytes / preflight.GIB
            say.conclude(f"{facts.cpu_count} cores, {memory:.0f} GiB free{gpus}")

    def _node(self) -> Path:
        with self._step("node environment") as say:
            python = self._ports.install(self._plan.node, say)
            say.conclude(str(python))
            return python

    def _tiny_model(self, python: Path) -> None:
        if self._plan.tiny_model is not None:
            with self._step("tiny model") as say:
                self._ports.make_tiny_model(python, self._plan.tiny_model)
                say.conclude(str(self._plan.tiny_model))

    @contextmanager
    def _undone_if_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            with self._step("interrupted: taking away what was started") as say:
                self._ports.stop_everything(self._plan.state_dir, _ABORT_GRACE_S)
                clear(self._plan.state_dir)
                say.conclude("nothing is left running")
            raise

    def _start_head(self, python: Path) -> None:
        with self._step("head") as say:
            with self._ports.shield():
                self._ports.launch_head(self._plan, python, self._child_environment())
            deadline = self._ports.clock() + _HEAD_START_S
            while not self._is_head_up():
                if self._ports.clock() > deadline:
                    raise DeadlineError(
                        f"the head does not answer after {_HEAD_START_S:.0f} s",
                        detail=tail(self._head_log),
                        remedy="llx logs head; llx down",
                    )
                self._ports.sleep(_POLL_S)
            say.conclude("control API answers")

    def _child_environment(self) -> dict[str, str]:
        """What processes of the cluster inherit: ours, without API keys and our own venv."""
        hidden = {*self._plan.secret_variables, "LLX_API_KEY", "VIRTUAL_ENV", "PYTHONHOME"}
        variables = self._plan.environment.variables
        return {name: value for name, value in variables.items() if name not in hidden}

    def _is_head_up(self) -> bool:
        try:
            with self._ports.control(self._plan.state_dir) as control:
                control.status()
            return True
        except UnreachableError:
            self._require_head()
            return False

    def _require_head(self) -> None:
        process = self._ports.attach(self._plan.state_dir / PROCS / "head")
        if process is None or not process.is_alive():
            how = "" if process is None else f" ({process.status().ending})"
            raise StartError(
                f"the head ended{how}{reason(self._head_log)}; log: {self._head_log}",
                is_partial=False,
                detail=tail(self._head_log),
                remedy="llx logs head; llx down",
            )

    def _restart_failed(self) -> None:
        with self._ports.control(self._plan.state_dir) as control:
            for each in control.status().instances:
                if each.state is InstanceState.FAILED:
                    control.restart_instance(each.name)

    def _finish(self, *, was_running: bool) -> UpResult:
        with self._ports.control(self._plan.state_dir) as control:
            status = self._wait_ready(control)
            self._require_all(status)
            is_probed = self._first_token(status)
            return UpResult(control.status(), was_running=was_running, is_probed=is_probed)

    def _wait_ready(self, control: Control) -> ClusterStatus:
        """The first status in which nothing is on its way any more."""
        timeout_s = self._plan.settings.runtime.start_timeout_s
        deadline = self._ports.clock() + timeout_s
        wanted = set(self._plan.instance_names)
        while True:
            try:
                status = control.status()
            except UnreachableError:
                self._require_head()
                raise
            rows = _rows(status)
            self._tell(rows)
            is_complete = wanted <= {each.name for each in status.instances} and status.gateways
            waiting = [each for each in rows if each.state not in _TERMINAL]
            if is_complete and not waiting:
                return status
            if self._ports.clock() > deadline:
                names = ", ".join(f"{each.name} ({each.state})" for each in waiting) or "instances"
                for each in waiting:
                    self._observe(StepEvent(_step_of(each), StepState.FAILED, "out of time"))
                raise DeadlineError(
                    f"not ready after {timeout_s:.0f} s: {names}",
                    detail=tail(self._log(waiting[0])) if waiting else "",
                    remedy="llx logs NAME; llx down; raise runtime.start_timeout_s",
                )
            self._ports.sleep(_POLL_S)

    def _tell(self, rows: Sequence[InstanceStatus | GatewayStatus]) -> None:
        """Pass on what has changed."""
        for each in rows:
            if self._seen.get(each.name) == (each.state, each.detail):
                continue
            self._seen[each.name] = (each.state, each.detail)
            match each.state:
                case InstanceState.READY:
                    state = StepState.DONE
                case InstanceState.FAILED | InstanceState.STOPPED:
                    state = StepState.FAILED
                case _:
                    state = StepState.RUNNING
            lines = each.detail.strip().splitlines()
            detail = lines[-1] if lines and state is not StepState.DONE else str(each.state)
            self._observe(StepEvent(_step_of(each), state, detail))

    def _require_all(self, status: ClusterStatus) -> None:
        bad = [each for each in _rows(status) if each.state is not InstanceState.READY]
        if not bad:
            return
        serves = all(each.instances_ready > 0 for each in status.models) and any(
            each.state is InstanceState.READY for each in status.gateways
        )
        first = bad[0]
        names = ", ".join(each.name for each in bad)
        raise StartError(
            f"{names} did not start{reason(self._log(first))}; log: {self._log(first)}",
            is_partial=serves,
            detail=tail(self._log(first)) or first.detail,
            remedy=f"llx logs {first.name}; "
            + ("llx inst restart, or llx down" if serves else "llx down"),
        )

    def _first_token(self, status: ClusterStatus) -> bool:
        if not self._plan.can_probe:
            note = "only hashes of API keys are known"
            self._observe(StepEvent("first token", StepState.SKIPPED, note))
            return False
        with self._step("first token") as say:
            deadline = self._ports.clock() + _FIRST_TOKEN_S
            for model in status.models:
                self._probe(status.url, model.name, deadline)
            say.conclude(", ".join(model.name for model in status.models))
        return True

    def _probe(self, url: str, model: str, deadline: float) -> None:
        """One tiny request; a gateway that has not yet met its instances says it is busy."""
        while True:
            try:
                return self._ports.first_token(url, model, self._plan.probe_key)
            except RemoteError as error:
                if self._ports.clock() > deadline:
                    raise StartError(
                        f"the gateway gives no first token of {model}: {error.message}",
                        is_partial=False,
                        detail=tail(self._plan.state_dir / PROCS / "gateway-0" / "log"),
                        remedy="llx logs gateway-0; llx down",
                    ) from None
            self._ports.sleep(_POLL_S)

    @contextmanager
    def _step(self, name: str) -> Iterator["_Say"]:
        say = _Say(name, self._observe)
        self._observe(StepEvent(name, StepState.RUNNING))
        try:
            yield say
        except LlxError:
            self._observe(StepEvent(name, StepState.FAILED))
            raise
        self._observe(StepEvent(name, StepState.DONE, say.conclusion))

    def _log(self, each: InstanceStatus | GatewayStatus) -> Path:
        return self._plan.state_dir / PROCS / each.name / "log"


class _Say:
    """Passes on what a step is doing, and keeps what is to be said when it is done."""

    def __init__(self, step: str, observe: Observer) -> None:
        self._step = step
        self._observe = observe
        self.conclusion = ""

    def __call__(self, detail: str) -> None:
        self._observe(StepEvent(self._step, StepState.RUNNING, detail))

    def conclude(self, detail: str) -> None:
        self.conclusion = detail


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty if there is none."""
    return "\n".join(_end(path).splitlines()[-lines:])


def reason(path: Path) -> str:
    """``: XyzError: …``, the first error that the end of a log speaks of; else empty.

    The first, because the end of a dying engine's log is about its dying.
    """
    found = _ERROR_LINE.search(_end(path))
    return f": {found.group(0)[:300]}" if found else ""


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65536))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _rows(status: ClusterStatus) -> list[InstanceStatus | GatewayStatus]:
    return [*status.instances, *status.gateways]


def _step_of(each: InstanceStatus | GatewayStatus) -> str:
    return each.name if isinstance(each, GatewayStatus) else f"instance {each.name}"
