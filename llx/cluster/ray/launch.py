"""Starts the processes of one Ray node and ends: ``python -m llx.cluster.ray.launch SPEC``.

Run by the keeper, which watches them from then on. Not ``ray start``: that one adds a process that
counts usage, Ray Client's server and an autoscaler on the head, which cost 190 MiB and four seconds
and open two ports, and none of which a command line option can turn off. What is used of Ray here
(`Node`, `RayParams`) is what ``ray start`` itself uses, of the one version that the locks pin.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llx.agent.shim import start_time
from llx.cluster.ray.paths import HOST_LABEL, NAMESPACE, SCHEDULER, SESSION, RayPaths
from llx.host_ports import HostPorts
from llx.log import configure_logging, get_log
from llx.specs import HostSpec, load_spec, save_spec

log = get_log("llx.cluster.ray")

_OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray takes; two actors exchange kilobytes."""
_SCHEDULER_S = 15.0
_RAYLET_S = 240.0
"""So long a raylet may take to make itself known; Ray itself gives it up after 30 s, for good."""
_ASK_EVERY_S = 0.2
_MAX_CHARS = 800
_FATAL = re.compile(
    r"\[[-0-9]+ [0-9:,]+ C \d+ \d+\] \(raylet\) \S+ +(An unexpected .* fix it\. )?(?P<words>.*)"
)
"""``[2026-01-31 12:00:00,123 C 1 1] (raylet) main.cc:1: words``; some have a plea before them."""


class RayletError(Exception):
    """A node's raylet has failed while it was waited for.

    Args:
        ended: What was seen of it.
        words: What it has said of it; empty: nothing.
    """

    def __init__(self, ended: str, words: str = "") -> None:
        super().__init__(f"the raylet has failed: {words}" if words else ended)
        self.words = words


class RayProcess(msgspec.Struct, frozen=True):
    """A process that may be waited for: a number alone could be somebody else's by then."""

    name: str
    pid: int
    started: int


class RayNode(msgspec.Struct, frozen=True):
    """One life of Ray on a host."""

    node_id: str
    processes: list[RayProcess]


def main(argv: list[str]) -> int:
    """Start a node as the spec file describes it; writes `RayNode`, or why there is none.

    Returns:
        The exit code.
    """
    configure_logging()
    spec = load_spec(Path(argv[0]), HostSpec)
    paths = RayPaths(spec)
    try:
        save_spec(paths.node, _launch(spec))
    except RayletError as error:
        log.error("raylet.failed", error=error)
        if error.words:
            paths.failure.write_text(str(error), encoding="utf-8")
        return 1
    if spec.is_head and not paths.stopped.exists():
        try:
            _begin_scheduler(spec)
        except Exception:
            log.exception("scheduler.not_made")  # the keeper will miss it
    return 0


def _begin_scheduler(spec: HostSpec) -> None:
    """Have the scheduler's actor made. While it is being made its maker must not end."""
    import ray

    connect(spec)
    ray.wait([make_scheduler(spec).is_serving.remote()], timeout=_SCHEDULER_S)


def connect(spec: HostSpec) -> None:
    """Make this process a driver of the cluster's Ray."""
    import ray

    ray.init(
        address=f"{spec.head_address}:{HostPorts(spec.first_port).gcs}",
        _node_ip_address=spec.address,
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
    )


def make_scheduler(spec: HostSpec) -> Any:
    """The scheduler's actor, made if there is none; does not wait until it serves."""
    import ray

    from llx.cluster.scheduler_actor import SchedulerActor

    return (
        ray.remote(SchedulerActor)
        .options(
            name=SCHEDULER,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            label_selector={HOST_LABEL: spec.head},
        )
        .remote()
    )


def _launch(spec: HostSpec) -> RayNode:
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray.exceptions import RaySystemError

    logs = RayPaths(spec).session_logs

    class LeanNode(Node):
        """A node without a dashboard: all that its process would do is to count usage."""

        def start_api_server(self, *, include_dashboard: object, raise_on_failure: object) -> None:
            del include_dashboard, raise_on_failure

        def start_ray_processes(self) -> None:
            super().start_ray_processes()
            (raylet,) = self.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
            not_yet = (RuntimeError, RaySystemError)  # not found; the store could not be reached
            services.get_node = _patient(services.get_node, raylet.process, not_yet, logs)

    node = LeanNode(
        _parameters(spec), head=spec.is_head, shutdown_at_exit=False, spawn_reaper=False
    )
    pids = {name: each[0].process.pid for name, each in node.all_processes.items()}
    return RayNode(
        str(node.node_id),
        [RayProcess(name, pid, start_time(pid) or 0) for name, pid in pids.items()],
    )


def _patient(
    ask: Callable[[str, str], Any],
    raylet: "subprocess.Popen[bytes]",
    not_yet: tuple[type[Exception], ...],
    logs: Path,
) -> Callable[[str, str], Any]:
    """`services.get_node`, which raises one of `not_yet` until the control store knows the raylet.

    A raylet first waits for two agents, which import for some seconds of CPU: on a host that is
    busy otherwise it takes longer than Ray has patience for, and to begin anew makes it no quicker.
    One that says that it cannot go on would take half a minute to end: it is killed.

    Raises:
        RayletError: From what is returned: the raylet has ended, or cannot go on.
    """

    def wait(address: str, node_id: str) -> Any:
        deadline = time.monotonic() + _RAYLET_S
        while True:
            try:
                return ask(address, node_id)
            except not_yet:
                code, words = raylet.poll(), _last_words(logs)
                if words or code is not None:
                    raylet.kill()
                    raylet.wait()
                    ended = f"the raylet has ended (exit code {code})"
                    raise RayletError(ended, words) from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(_ASK_EVERY_S)

    return wait


def _last_words(logs: Path) -> str:
    """What a raylet has said of why it cannot go on; empty if it has not."""
    try:
        lines = (logs / "raylet.out").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    fatal = [found["words"] for line in lines if (found := _FATAL.match(line))]
    return " ".join(fatal)[:_MAX_CHARS]


def _parameters(spec: HostSpec) -> Any:
    from ray._private.parameter import RayParams

    ports = HostPorts(spec.first_port)
    first_worker, last_worker = ports.ray_workers
    parameters = RayParams(
        node_ip_address=spec.address,
        node_name=spec.host,
        session_name=SESSION,
        temp_dir=str(RayPaths(spec).temp_dir),
        labels={HOST_LABEL: spec.host},
        num_cpus=1,
        num_gpus=0,
        object_store_memory=_OBJECT_STORE_BYTES,
        node_manager_port=ports.node_manager,
        object_manager_port=ports.object_manager,
        runtime_env_agent_port=ports.runtime_env_agent,
        dashboard_agent_listen_port=ports.dashboard_agent,
        metrics_agent_port=ports.dashboard_agent_grpc,
        metrics_export_port=ports.metrics_export,
        min_worker_port=first_worker,
        max_worker_port=last_worker,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        log_to_stderr=False,
    )
    if spec.is_head:
        parameters.gcs_server_port = ports.gcs
    else:
        parameters.gcs_address = f"{spec.head_address}:{ports.gcs}"
    return parameters


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray's own handlers would end what was started
