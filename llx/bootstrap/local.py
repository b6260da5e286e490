"""`llx up` and `llx down` of a cluster on this machine. Tells an observer; prints nothing.

    up:    preflight → node environment → tiny model → head → instances, gateway → first token
    down:  streams finish → gateway, instances, head end → files of the start are removed

`up` holds the cluster's lock. Interrupted, it takes away what it started. Failing, it leaves the
cluster as it is, to be looked at; `down` clears whatever is left, head or no head.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from llx.api import ClusterStatus, InstanceState
from llx.bootstrap import preflight
from llx.bootstrap.cluster_dir import (
    PROCS,
    clear,
    cluster_lock,
    running_settings,
    write_private,
)
from llx.bootstrap.gateway_tls import authority_of, keep_authority, made_here
from llx.bootstrap.key_rotation import is_unfinished, replace_keys
from llx.bootstrap.local_ports import Control, LocalPorts, Observer
from llx.bootstrap.plan import Plan
from llx.bootstrap.readiness import (
    Outside,
    Readiness,
    StartError,
    lists_all,
    reason,
    step,
    tail,
)
from llx.client import TOKEN_FILE
from llx.curve import KEYS_FILE, load_ring
from llx.errors import ConflictError, DeadlineError, UnreachableError
from llx.settings import differing_keys
from llx.specs import GATEWAY_CERTIFICATE

__all__ = ["Before", "StartError", "UpResult", "check", "log_end", "look", "up"]

_POLL_S = 0.2
_HEAD_START_S = 60.0
_ABORT_GRACE_S = 3.0


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
    name = plan.settings.cluster
    earlier = running_settings(plan.state_dir) if plan.state_dir.is_dir() else None
    if earlier is not None and earlier.hosts:
        raise ConflictError(
            f"cluster {name} is up on hosts: {', '.join(host.name for host in earlier.hosts)}",
            remedy=f"llx down --context {name}, or give this one another name (`cluster:`)",
        )
    if not alive:
        return Before.NOTHING
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

    def run(self) -> UpResult:
        before = look(self._plan, self._ports)
        match before:
            case Before.NOTHING:
                self._preflight()
                python = self._node()
                self._tiny_model(python)
                with self._undone_if_interrupted():
                    self._certificate()
                    self._start_head(python)
                    return self._finish(was_running=False)
            case Before.HEADLESS:
                self._certificate()
                self._start_head(self._node())
                self._rotate_keys()
                return self._finish(was_running=True)
            case Before.RUNNING:
                self._certificate()
                self._rotate()
                self._await_head()
                self._restart_failed()
                self._rotate_keys()
                return self._finish(was_running=True)
        assert_never(before)

    def _preflight(self) -> None:
        with step("preflight", self._observe) as say:
            facts = self._ports.gather(self._plan, frozenset())
            preflight.check(self._plan.settings, facts, self._ports.arguments())
            gpus = f", {len(facts.gpus)} GPUs" if facts.gpus else ""
            memory = facts.memory_available_bytes / preflight.GIB
            say.conclude(f"{facts.cpu_count} cores, {memory:.0f} GiB free{gpus}")

    def _node(self) -> Path:
        with step("node environment", self._observe) as say:
            python = self._ports.install(self._plan.node, say)
            say.conclude(str(python))
            return python

    def _tiny_model(self, python: Path) -> None:
        if self._plan.tiny_model is not None:
            with step("tiny model", self._observe) as say:
                self._ports.make_tiny_model(python, self._plan.tiny_model)
                say.conclude(str(self._plan.tiny_model))

    @contextmanager
    def _undone_if_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            with step("interrupted: taking away what was started", self._observe) as say:
                self._ports.stop_everything(self._plan.state_dir, _ABORT_GRACE_S)
                clear(self._plan.state_dir)
                say.conclude("nothing is left running")
            raise

    def _certificate(self) -> None:
        """What the gateway shows its clients; one that runs takes up another by itself."""
        gateway, state_dir = self._plan.settings.gateway, self._plan.state_dir
        if gateway.tls is None:
            return
        with step("certificate", self._observe) as say:
            path = state_dir / GATEWAY_CERTIFICATE
            there = path.read_text(errors="replace") if path.exists() else ""
            given = self._plan.certificate
            kept = "" if self._plan.rotates else there
            pem = made_here(gateway.host, kept) if given is None else given.pem
            if pem.reveal() != there:
                write_private(path, pem.reveal())
            keep_authority(state_dir, authority_of(pem.reveal()) if given is None else "")
            say.conclude("as it was" if pem.reveal() == there else "laid out")

    def _rotate(self) -> None:
        """Another control token; a head that starts makes one in any case."""
        if self._plan.rotates:
            with step("control token", self._observe) as say:
                write_private(self._plan.state_dir / TOKEN_FILE, secrets.token_urlsafe(32))
                say.conclude("replaced: the former one is refused")

    def _rotate_keys(self) -> None:
        """Those of the cluster's sockets; also if a call before this one has begun with it."""
        path = self._plan.state_dir / KEYS_FILE
        if not self._plan.rotates and not is_unfinished(path):
            return
        with step("keys", self._observe) as say, self._ports.control(self._plan.state_dir) as head:
            replace_keys(
                load_ring(path),
                lambda text: write_private(path, text.reveal()),
                head.keys,
                clock=self._ports.clock,
                sleep=self._ports.sleep,
                say=say,
            )
            say.conclude("replaced: the former ones are refused")

    def _start_head(self, python: Path) -> None:
        with step("head", self._observe) as say:
            with self._ports.shield():
                self._ports.launch_head(self._plan, python, self._child_environment())
            self._until_head_answers()
            say.conclude("control API answers")

    def _await_head(self) -> None:
        """One that was killed a moment ago is being started again by its keeper."""
        if not self._is_head_up():
            with step("head", self._observe) as say:
                self._until_head_answers()
                say.conclude("control API answers again")

    def _until_head_answers(self) -> None:
        deadline = self._ports.clock() + _HEAD_START_S
        while not self._is_head_up():
            if self._ports.clock() > deadline:
                raise DeadlineError(
                    f"the head does not answer after {_HEAD_START_S:.0f} s",
                    detail=tail(log_end(self._head_log)),
                    remedy="llx logs head; llx down",
                )
            self._ports.sleep(_POLL_S)

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
                f"the head ended{how}{reason(log_end(self._head_log))}; log: {self._head_log}",
                is_partial=False,
                detail=tail(log_end(self._head_log)),
                remedy="llx logs head; llx down",
            )

    def _restart_failed(self) -> None:
        with self._ports.control(self._plan.state_dir) as control:
            for each in control.status().instances:
                if each.state is InstanceState.FAILED:
                    control.restart_instance(each.name)

    def _finish(self, *, was_running: bool) -> UpResult:
        procs = self._plan.state_dir / PROCS
        with self._ports.control(self._plan.state_dir) as control:
            outside = Outside(
                status=lambda: self._status(control),
                log_end=lambda name: log_end(procs / name / "log"),
                log_place=lambda name: str(procs / name / "log"),
                clock=self._ports.clock,
                sleep=self._ports.sleep,
            )
            readiness = Readiness(outside, self._observe)
            timeout_s = self._plan.settings.runtime.start_timeout_s
            status = readiness.wait(timeout_s, self._is_complete)
            readiness.require_all(status)
            if self._plan.can_probe:
                readiness.first_token(status, self._probe)
            else:
                readiness.skip_first_token("only hashes of API keys are known")
            return UpResult(
                control.status(), was_running=was_running, is_probed=self._plan.can_probe
            )

    def _status(self, control: Control) -> ClusterStatus:
        try:
            return control.status()
        except UnreachableError:
            self._require_head()
            raise

    def _is_complete(self, status: ClusterStatus) -> bool:
        return lists_all(status, self._plan.settings)

    def _probe(self, status: ClusterStatus, model: str) -> None:
        self._ports.first_token(status, model, self._plan.probe_key)


def log_end(path: Path) -> str:
    """The last part of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65536))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
