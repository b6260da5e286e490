"""`llx down`: with the head's help if it answers, without it if not; safe to repeat."""

import contextlib
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from llx.api import StopReport
from llx.bootstrap.cluster_dir import PROCS, clear, cluster_lock, purge, running_settings
from llx.bootstrap.contexts import contexts
from llx.bootstrap.local_ports import LocalPorts, Observer, StepEvent, StepState
from llx.bootstrap.node_env import LOCK_NAME, NodePlatform, default_prefix
from llx.environment import Environment
from llx.errors import ConflictError, LlxError

_POLL_S = 0.25
_HEAD_END_S = 15.0
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class DownResult:
    """What `down` did. `report` is the head's; None when it could not be asked."""

    was_running: bool
    report: StopReport | None
    removed: tuple[Path, ...]


def down(
    state_dir: Path,
    ports: LocalPorts,
    observe: Observer,
    *,
    deadline_s: float = 60.0,
    user: str = "",
) -> DownResult:
    """Take the cluster down; streams may finish until the deadline. Logs are kept.

    Raises:
        ConflictError: Another llx is at work on it.
    """
    if not state_dir.is_dir():
        return DownResult(was_running=False, report=None, removed=())
    with cluster_lock(state_dir, "down"):
        return _down(state_dir, ports, observe, deadline_s, user)


def down_and_purge(
    state_dir: Path,
    environment: Environment,
    ports: LocalPorts,
    observe: Observer,
    *,
    deadline_s: float = 60.0,
    user: str = "",
) -> DownResult:
    """`down`, then remove the cluster's directory, the node environment and the tiny model."""
    with cluster_lock(state_dir, "down"):
        doomed = purge_list(state_dir, environment)
        result = _down(state_dir, ports, observe, deadline_s, user)
        observe(StepEvent("purge", StepState.RUNNING))
        purge(state_dir)
        for each in doomed:
            observe(StepEvent("purge", StepState.RUNNING, str(each)))
            shutil.rmtree(each, ignore_errors=True)
        observe(StepEvent("purge", StepState.DONE, f"{1 + len(doomed)} directories"))
        return DownResult(result.was_running, result.report, (state_dir, *doomed))


def purge_list(state_dir: Path, environment: Environment) -> list[Path]:
    """What `--purge` removes besides the cluster's directory: only what llx itself made.

    Node environment and tiny model stay while another cluster is up; an environment that
    ``LLX_NODE_PREFIX`` names always stays: whoever names it looks after it.
    """
    others = [c for c in contexts(environment) if c.is_up and c.state_dir != state_dir]
    if others:
        return []
    candidates = [default_prefix(each, environment.xdg_data_home) for each in NodePlatform]
    with contextlib.suppress(ConflictError):
        settings = running_settings(state_dir)
        if settings is not None and settings.runtime.prefix is not None:
            candidates.append(settings.runtime.prefix)
    found = [
        each
        for each in dict.fromkeys(candidates)
        if (each / LOCK_NAME).exists() and each != environment.node_prefix
    ]
    if environment.tiny_model.is_dir():
        found.append(environment.tiny_model)
    return found


def _down(
    state_dir: Path, ports: LocalPorts, observe: Observer, deadline_s: float, user: str
) -> DownResult:
    alive = [each for each in ports.list_processes(state_dir / PROCS) if each.is_alive()]
    report = None
    if any(each.name == "head" for each in alive):
        report = _ask_head(state_dir, ports, observe, deadline_s, user)
    if alive:
        step = "processes"
        observe(StepEvent(step, StepState.RUNNING))
        _wait_head_end(state_dir, ports, report)
        ports.stop_everything(state_dir, _GRACE_S)
        left = [each.name for each in alive if each.is_alive()]
        if left:
            observe(StepEvent(step, StepState.FAILED, ", ".join(left)))
            raise LlxError(f"cannot stop {', '.join(left)}", remedy="llx down once more")
        observe(StepEvent(step, StepState.DONE, f"{len(alive)} ended"))
    clear(state_dir)
    return DownResult(was_running=bool(alive), report=report, removed=())


def _ask_head(
    state_dir: Path, ports: LocalPorts, observe: Observer, deadline_s: float, user: str
) -> StopReport | None:
    """Have the head stop everything, telling how many streams are left; None if it cannot."""
    reports: list[StopReport] = []
    failures: list[LlxError] = []

    def ask() -> None:
        try:
            with ports.control(state_dir) as control:
                reports.append(control.stop(deadline_s=deadline_s, user=user))
        except LlxError as error:
            failures.append(error)

    observe(StepEvent("streams", StepState.RUNNING, f"may finish within {deadline_s:.0f} s"))
    asking = threading.Thread(target=ask, name="stop", daemon=True)
    asking.start()
    while asking.is_alive():
        asking.join(_POLL_S)
        with contextlib.suppress(LlxError), ports.control(state_dir) as control:
            count = sum(each.in_flight for each in control.status().gateways)
            if count:
                observe(StepEvent("streams", StepState.RUNNING, f"{count} still going"))
    if reports:
        cut = f", {reports[0].cut} cut at the deadline" if reports[0].cut else ""
        observe(StepEvent("streams", StepState.DONE, f"{reports[0].finished} finished{cut}"))
        return reports[0]
    note = "the head does not answer" if not failures else failures[0].message
    observe(StepEvent("streams", StepState.SKIPPED, note))
    return None


def _wait_head_end(state_dir: Path, ports: LocalPorts, report: StopReport | None) -> None:
    """A head that has answered ends by itself a moment later."""
    if report is None:
        return
    head = ports.attach(state_dir / PROCS / "head")
    deadline = ports.clock() + _HEAD_END_S
    while head is not None and head.is_alive() and ports.clock() < deadline:
        ports.sleep(_POLL_S)
