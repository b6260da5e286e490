"""Starting a head, and ending everything of a cluster without one.

What `llx up` and `llx down` do on the head's host before there is a control API, or when there is
none any more. Blocking.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llx.agent.processes import Process, attach, list_processes, spawn
from llx.cluster.state_dir import HeadSpec, StateDir, write_private
from llx.errors import ConfigError, ConflictError, RemoteError
from llx.specs import GatewaySpec, load_spec, save_spec

_HEAD_GRACE_S = 10.0
_INSTANCE_GRACE_S = 15.0
"""Whoever is stopped after the gateways has no streams to wait for."""
_ROUNDS = 3


def launch_head(spec: HeadSpec, cluster_yaml: str, environment: Mapping[str, str]) -> Process:
    """Write the state directory and start the head under a shim.

    Returns once its process is there; `Cluster.for_cluster` works a moment later, and
    ``procs/head/status.json`` says why if it never does.

    Args:
        spec: The head.
        cluster_yaml: The resolved settings, API keys replaced by their hashes.
        environment: What every process of the cluster inherits.

    Raises:
        ConflictError: The cluster's head is running.
        RemoteError: It cannot be started; says why.
    """
    state = StateDir(Path(spec.state_dir))
    running = head_process(state.path)
    if running is not None:
        raise ConflictError(
            f'cluster "{spec.cluster}" is running', remedy="llx status, or llx down first"
        )
    state.create()
    state.stopping.unlink(missing_ok=True)
    write_private(state.settings, cluster_yaml)
    save_spec(state.head_spec, spec)
    (state.head / "status.json").unlink(missing_ok=True)
    command = [spec.python, "-m", "llx.cluster.head_keeper", str(state.head_spec)]
    return spawn(state.head, command, environment)


def head_process(state_dir: Path) -> Process | None:
    """The cluster's head, if it is running."""
    process = attach(StateDir(state_dir).head)
    return process if process is not None and process.is_alive() else None


def stop_everything(
    state_dir: Path, grace_s: float, stop: Callable[[Process, float], object] = Process.stop
) -> list[str]:
    """End every process of a cluster by its shim: the head, then the gateways, then the rest.

    For a cluster whose head is gone or does not answer. A gateway lets its streams finish for
    `grace_s`, and what they come from runs on until it has ended. Returns the names of what was
    running.

    Args:
        state_dir: The cluster's.
        grace_s: For streams.
        stop: Stops one process.

    Raises:
        RemoteError: Something cannot be killed; everything else has been stopped.
    """
    procs = StateDir(state_dir).procs
    ended: list[str] = []
    problems: list[RemoteError] = []

    def end(process: Process, grace_s: float) -> None:
        try:
            stop(process, grace_s)
        except RemoteError as error:
            problems.append(error)

    def end_all(processes: Sequence[Process], grace_s: float) -> None:
        if processes:
            with ThreadPoolExecutor(max_workers=len(processes)) as pool:
                list(pool.map(lambda process: end(process, grace_s), processes))

    head = head_process(state_dir)
    if head is not None:
        end(head, min(grace_s, _HEAD_GRACE_S))
        ended.append(head.name)
    deadline = time.monotonic() + grace_s
    # Looked at anew each time: a head that was killed may have had a start under way.
    for _ in range(_ROUNDS):
        running = [each for each in list_processes(procs) if each.is_alive()]
        if not running:
            break
        gateways = [each for each in running if _is_gateway(each)]
        end_all(gateways, max(0.0, deadline - time.monotonic()))
        others = [each for each in running if each not in gateways]
        end_all(others, min(grace_s, _INSTANCE_GRACE_S))
        ended += [each.name for each in running]
    if problems:
        raise problems[0]
    return ended


def _is_gateway(process: Process) -> bool:
    try:
        load_spec(process.directory / "spec.json", GatewaySpec)
    except ConfigError:
        return False
    return True
