"""The head of a cluster on hosts: an actor of Ray on the head's host, in which the driver runs.

Ray starts its process again whenever it ends; so does the keeper (`llx.cluster.ray.keeper`), should
Ray itself have lost the actor. Each start raises the term. Instances and gateways run on meanwhile.
Nothing here imports Ray at the top: an actor can be made of any class.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llx.agent.actor import log_to
from llx.agent.names import HOST_SPEC, status_path
from llx.cluster.ray.paths import RayPaths
from llx.cluster.serve import HeadSeat, bind_control, serve, tell_ready
from llx.cluster.state_dir import StateDir
from llx.environment import Environment
from llx.errors import LlxError
from llx.host_ports import HostPorts
from llx.log import get_log
from llx.open_files import raise_file_limit
from llx.settings import load_cluster
from llx.specs import HostSpec, Phase, StatusFile, load_spec

log = get_log("llx.cluster.head")

_BEAT_S = 1.0
_BEFORE_RESTART_S = 2.0


class SchedulerActor:
    """Serves from the moment it is made, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=_run, name="head", daemon=True)
        self._thread.start()

    def is_serving(self) -> bool:
        """Whether it serves, or is about to; false once the cluster has been stopped."""
        return self._thread.is_alive()


def _run() -> None:
    """The thread: serves; ends with the cluster, or takes the process along to begin anew."""
    path = Environment.current().get(HOST_SPEC)
    assert path is not None, "started by a keeper of llx"
    spec = load_spec(Path(path), HostSpec)
    paths, state = RayPaths(spec), StateDir(Path(spec.state_dir))
    state.create()
    log_to(paths.head / "log")
    status = StatusFile(status_path(state.procs, state.head.name))
    if paths.stopped.exists():  # Ray brings actors back; what was stopped stays so
        status.write(Phase.STOPPING, "stopped")
        return
    status.write(Phase.STARTING, "starting")
    paths.alive.touch(mode=0o600)
    raise_file_limit()
    try:
        has_stopped = asyncio.run(_serve(spec, state, status))
    except LlxError as error:
        log.error("head.failed", error=error)
        status.write(Phase.FAILED, str(error))
    except Exception as error:
        log.exception("head.failed")
        status.write(Phase.FAILED, f"{type(error).__name__}: {error}"[:2000])
    else:
        if has_stopped:
            paths.stopped.touch(mode=0o600)
            status.write(Phase.STOPPING, "stopped")
            log.info("head.stopped")
            return
        log.error("head.failed", error="it ended without being asked")
    time.sleep(_BEFORE_RESTART_S)
    os._exit(1)


async def _serve(spec: HostSpec, state: StateDir, status: StatusFile) -> bool:
    from llx.cluster.ray.agent import RayAgents

    settings = load_cluster(state.settings)
    with _beating(RayPaths(spec).alive), bind_control(settings.control.port) as listener:
        term = state.raise_term()
        state.keep_or_new_token()
        log.info("head.starting", cluster=spec.cluster, term=term)
        agents = RayAgents(term)
        seat = HeadSeat(
            settings=settings,
            state=state,
            platform=spec.platform,
            term=term,
            line_address=f"tcp://{spec.address}:{HostPorts(spec.first_port).scheduler}",
        )
        try:
            return await serve(
                seat,
                agents,
                listener=listener,
                ending=asyncio.Event(),
                on_ready=partial(tell_ready, status),
            )
        finally:
            await agents.close()


@contextlib.contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Touches the file as long as the event loop turns."""

    async def beat() -> None:
        while True:
            path.touch(mode=0o600)  # noqa: ASYNC240 - one system call
            await asyncio.sleep(_BEAT_S)

    beats = asyncio.create_task(beat(), name="heartbeat")
    try:
        yield
    finally:
        beats.cancel()
