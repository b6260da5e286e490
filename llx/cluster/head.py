"""The process of the head of a cluster on this machine: ``python -m llx.cluster.head SPEC``.

`llx.cluster.head_keeper` starts it again when it is killed. It ends in one of two ways: asked by a
signal, it leaves everything else running; asked through the control API, it has stopped everything
before. A head that is killed is as good as one that was asked by a signal.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from llx.agent.devices import DeviceLedger, find_devices
from llx.agent.names import status_path
from llx.agent.node import Commands, NodeAgent
from llx.agent.place import Place
from llx.cluster.fleet.agents import LocalAgents
from llx.cluster.serve import HeadSeat, bind_control, serve, tell_ready
from llx.cluster.state_dir import HeadSpec, StateDir
from llx.environment import Environment
from llx.errors import LlxError
from llx.log import configure_logging, get_log
from llx.open_files import raise_file_limit
from llx.settings import ClusterSettings, Platform, load_cluster
from llx.specs import GatewaySpec, Phase, StatusFile, load_spec

__all__ = ["HeadSpec", "main"]

log = get_log("llx.cluster.head")


def main(argv: list[str]) -> int:
    """Run the head that the spec file describes; returns the exit code."""
    configure_logging()
    spec = load_spec(Path(argv[0]), HeadSpec)
    state = StateDir(Path(spec.state_dir))
    status = StatusFile(status_path(state.procs, state.head.name))
    status.write(Phase.STARTING, "starting")
    raise_file_limit()
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
    with bind_control(settings.control.port) as listener:
        state.create()
        term = state.raise_term()
        state.new_token()
        log.info("head.starting", cluster=spec.cluster, term=term)
        agent = await asyncio.to_thread(_agent, spec, settings, state, variables)
        seat = HeadSeat(settings, state, spec.platform, term, _line_address(agent))
        await serve(
            seat,
            LocalAgents(agent),
            listener=listener,
            ending=ending,
            on_ready=partial(tell_ready, status),
        )


def _ending_signal() -> asyncio.Event:
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def _agent(
    spec: HeadSpec, settings: ClusterSettings, state: StateDir, variables: Mapping[str, str]
) -> NodeAgent:
    own = Commands.of_python(spec.python)
    commands = Commands(
        instance=tuple(spec.instance_command) or own.instance,
        gateway=tuple(spec.gateway_command) or own.gateway,
    )
    find = partial(find_devices, Platform(spec.platform))
    return NodeAgent(
        state.procs,
        DeviceLedger(state.devices, find(), find),
        commands,
        variables,
        kv_cache_gib=settings.runtime.kv_cache_gib,
        place=Place(platform=spec.platform),
    )


def _line_address(agent: NodeAgent) -> str | None:
    """Where running gateways look for the head."""
    for seen in agent.observe().values():
        if seen.is_running and isinstance(seen.spec, GatewaySpec):
            return seen.spec.scheduler_address
    return None


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # not through exit(): a thread may be waiting for a process to stop
