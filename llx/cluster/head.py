"""The process of the head: ``python -m llx.cluster.head SPEC``.

Wires driver, gateways' socket, connections to instances and control API together, and ends in one
of two ways: asked by a signal, it leaves everything else running; asked through the control API, it
has stopped everything before. A head that is killed is as good as one that was asked by a signal.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llx.agent.devices import DeviceLedger, Inventory, find_cores, find_gpus
from llx.agent.node import Commands, NodeAgent, status_path
from llx.cluster.audit import AuditTrail
from llx.cluster.desired import GATEWAY, LOOPBACK, desired_gateway, desired_instances
from llx.cluster.driver import ClusterDriver
from llx.cluster.fleet import Fleet
from llx.cluster.gateway_line import GatewayLine
from llx.cluster.load_watch import LoadWatch
from llx.cluster.state_dir import HeadSpec, StateDir
from llx.cluster.unit import Unit
from llx.core.model import Term
from llx.curve import ClusterKeys
from llx.errors import ConfigError, ConflictError, LlxError
from llx.log import configure_logging, get_log
from llx.secret import Secret
from llx.settings import ClusterSettings, Environment, Platform, load_cluster
from llx.specs import GatewaySpec, Phase, StatusFile, load_spec

if TYPE_CHECKING:  # imported late: by then the processes of the cluster are starting
    import uvicorn

__all__ = ["HeadSpec", "main"]

log = get_log("llx.cluster.head")

_HTTP_GRACE_S = 5


def main(argv: list[str]) -> int:
    """Run the head that the spec file describes; returns the exit code."""
    configure_logging()
    spec = load_spec(Path(argv[0]), HeadSpec)
    state = StateDir(Path(spec.state_dir))
    status = StatusFile(status_path(state.procs, state.head.name))
    status.write(Phase.STARTING, "starting")
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_serve(spec, state, status, Environment.current().variables))
    except LlxError as error:
        log.error("head.failed", error=error)
        status.write(Phase.FAILED, str(error))
        return int(error.exit_code)
    except Exception as error:
        log.exception("head.failed")
        status.write(Phase.FAILED, f"{type(error).__name__}: {error}"[:2000])
        return 1
    status.write(Phase.STOPPING, "ended")
    log.info("head.ended")
    return 0


async def _serve(
    spec: HeadSpec, state: StateDir, status: StatusFile, variables: Mapping[str, str]
) -> None:
    settings = load_cluster(state.settings)
    ending = _ending_signal()
    with _bind(settings.control.port) as listener:
        state.create()
        term, token = state.raise_term(), state.new_token()
        log.info("head.starting", cluster=spec.cluster, term=term)
        keys = ClusterKeys.load(state.keys)
        agent = await asyncio.to_thread(_agent, spec, settings, state, variables)
        with contextlib.closing(GatewayLine(keys, term)) as line:
            loads = LoadWatch(keys, term)
            try:
                gateway = await _gateway(settings, state, agent, line)
                fleet = _fleet(spec, settings, state, gateway, term=term, line=line, loads=loads)
                driver = ClusterDriver(fleet, agent, AuditTrail(state.events))
                await _drive(driver, token, listener, status, ending)
            finally:
                await loads.close()


async def _drive(
    driver: ClusterDriver,
    token: Secret,
    listener: socket.socket,
    status: StatusFile,
    ending: asyncio.Event,
) -> None:
    """Until a signal, or until the control API has stopped everything."""
    driving = asyncio.create_task(driver.run(), name="driver")
    # The processes are starting while the web framework is being imported.
    server = await asyncio.to_thread(_server, driver, token)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="control")
    status.write(Phase.READY, addresses=[f"http://{LOOPBACK}:{listener.getsockname()[1]}"])
    signalled = asyncio.create_task(ending.wait())
    stopped = asyncio.create_task(driver.stopped.wait())
    try:
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait([driving, serving, signalled, stopped], return_when=first)
        if driving.done():
            driving.result()
    finally:
        server.should_exit = True  # answers under way are finished
        await asyncio.wait([serving], timeout=_HTTP_GRACE_S + 2)
        for task in (driving, serving, signalled, stopped):
            task.cancel()
        await asyncio.gather(driving, serving, signalled, stopped, return_exceptions=True)


def _server(driver: ClusterDriver, token: Secret) -> "uvicorn.Server":
    import uvicorn

    from llx.cluster.control import make_app

    class Server(uvicorn.Server):
        """uvicorn without signal handlers of its own."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        make_app(driver, token),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_HTTP_GRACE_S,
    )
    return Server(config)


def _ending_signal() -> asyncio.Event:
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise ConflictError(
            f"control API: {LOOPBACK}:{port}: {error.strerror}",
            remedy="choose another control.port (0: any free one)",
        ) from None
    return listener


def _agent(
    spec: HeadSpec, settings: ClusterSettings, state: StateDir, variables: Mapping[str, str]
) -> NodeAgent:
    own = Commands.of_python(spec.python)
    commands = Commands(
        instance=tuple(spec.instance_command) or own.instance,
        gateway=tuple(spec.gateway_command) or own.gateway,
    )
    return NodeAgent(
        state.procs,
        DeviceLedger(state.devices, _inventory(Platform(spec.platform))),
        commands,
        variables,
        kv_cache_gib=settings.runtime.kv_cache_gib,
    )


def _inventory(platform: Platform) -> Inventory:
    match platform:
        case Platform.CUDA:
            return find_gpus()
        case Platform.CPU:
            return find_cores()
        case Platform.AUTO:
            raise ConfigError("the head needs a platform: cpu or cuda")


async def _gateway(
    settings: ClusterSettings, state: StateDir, agent: NodeAgent, line: GatewayLine
) -> GatewaySpec:
    """What the gateway should be; a running one fixes where it looks for the head."""
    running = (await asyncio.to_thread(agent.observe)).get(GATEWAY)
    former = None
    if running is not None and running.is_running and isinstance(running.spec, GatewaySpec):
        former = running.spec.scheduler_address
    return desired_gateway(settings, state, await line.bind(LOOPBACK, former))


def _fleet(
    spec: HeadSpec,
    settings: ClusterSettings,
    state: StateDir,
    gateway: GatewaySpec,
    *,
    term: Term,
    line: GatewayLine,
    loads: LoadWatch,
) -> Fleet:
    instances = desired_instances(settings, state)
    return Fleet(
        settings=settings,
        platform=spec.platform,
        term=term,
        instances={each.name: Unit(each) for each in instances},
        gateway=Unit(gateway),
        line=line,
        loads=loads,
        procs_dir=state.procs,
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # not through exit(): a thread may be waiting for a process to stop
