"""The process of one gateway: ``python -m llx.gateway.main SPEC``."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llx import __version__
from llx.agent.pulse import Pulse, Slot
from llx.core.model import PoolName, Term
from llx.curve import KeyFile
from llx.errors import ConflictError, LlxError
from llx.garbage import leave_what_is_here
from llx.gateway.placement import Placement
from llx.gateway.scheduler_address import SchedulerAddress
from llx.log import configure_logging
from llx.open_files import raise_file_limit
from llx.specs import GatewaySpec, Phase, PoolSpec, StatusFile, load_spec
from llx.wire import GatewayHello, Unusable

if TYPE_CHECKING:  # imported late, in the functions that need them: they take seconds
    import uvicorn

    from llx.gateway.certificate import Certificate
    from llx.gateway.front_end import FrontEnd
    from llx.http_server import BoundedServer

log = logging.getLogger("llx.gateway.main")

_BEAT_S = 0.5
_SILENCE_TIMES = 4
"""A long prompt may hold up the event loop for seconds, and all streams end with a gateway."""


def main(argv: list[str]) -> int:
    """Run the gateway that the spec file describes; returns the exit code."""
    configure_logging()
    spec = load_spec(Path(argv[0]), GatewaySpec)
    status = StatusFile(Path(spec.status_path))
    status.write(Phase.STARTING, "importing vllm")
    scheduler = SchedulerAddress(Path(argv[0]), spec.scheduler_address)
    try:
        return _run(spec, status, scheduler)
    except LlxError as error:
        log.error("gateway.failed error=%s", error)
        status.write(Phase.FAILED, error.message)
        return int(error.exit_code)
    except (Exception, SystemExit) as error:
        log.exception("gateway.failed")
        status.write(Phase.FAILED, f"{type(error).__name__}: {error}"[:2000])
        return 1


def _run(spec: GatewaySpec, status: StatusFile, scheduler: SchedulerAddress) -> int:
    listener = _bind(spec.host, spec.port)  # before the slow imports: a taken port is told at once
    raise_file_limit()
    import uvloop

    from llx.agent.vllm.model_inspection import inspecting_here
    from llx.gateway.certificate import Certificate
    from llx.gateway.front_end import FrontEnd
    from llx.gateway.generations import prepare_all

    certificate = Certificate(Path(spec.certificate_path)) if spec.is_tls else None

    placement = Placement()

    def make(pool: PoolSpec) -> FrontEnd:
        status.write(Phase.LOADING, f"preparing {pool.name}")
        return FrontEnd(pool, placement)

    with inspecting_here():
        pools, unusable = prepare_all(spec.pools, make)
    uvloop.run(_serve(spec, status, listener, pools, unusable, placement, scheduler, certificate))
    return 0


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConflictError(
            f"{host}:{port}: {error.strerror}", remedy="choose another gateway.port"
        ) from None
    return listener


async def _serve(
    spec: GatewaySpec,
    status: StatusFile,
    listener: socket.socket,
    pools: "list[FrontEnd]",
    unusable: dict[PoolName, Unusable],
    placement: Placement,
    scheduler: SchedulerAddress,
    certificate: "Certificate | None",
) -> None:
    import uvicorn

    from llx.gateway.app import GatewayApp
    from llx.gateway.front_end import FrontEnd
    from llx.gateway.generations import Generations
    from llx.gateway.members import Membership, ReportSource
    from llx.gateway.metrics import GatewayMetrics
    from llx.http_server import BoundedServer

    def make(pool: PoolSpec) -> FrontEnd:
        front_end = FrontEnd(pool, placement)
        metrics.add_pool(front_end.metrics)
        return front_end

    generations = Generations(
        pools, make, lambda closed: metrics.drop_pool(closed.metrics), unusable
    )
    metrics = GatewayMetrics(generations.counters)
    for pool in pools:
        metrics.add_pool(pool.metrics)
    app = GatewayApp(spec, generations.current, metrics)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )
    server = BoundedServer(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, status)
    keys = KeyFile(Path(spec.keys_path))
    membership = Membership(spec.name, keys, generations, placement, on_api_keys=app.take_keys)
    port = listener.getsockname()[1]
    host = spec.url_host or spec.host
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    hello = GatewayHello(spec.name, url, os.getpid(), spec.on_host, Term(0), 0, __version__)
    report = ReportSource(spec.name, generations, lambda: app.num_refused, certificate)
    line = asyncio.create_task(membership.run(scheduler.now, hello, report))
    pulse = Pulse.beside(spec.status_path)
    beats = asyncio.create_task(_beat(pulse, _SILENCE_TIMES * spec.hang.silent_s))
    tasks = [line, beats, asyncio.create_task(announce(server, status, url))]
    if certificate is not None:
        tasks.append(asyncio.create_task(certificate.follow()))
    leave_what_is_here()
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pulse.end()
        await membership.close()
        await generations.close()


async def announce(server: "BoundedServer", status: StatusFile, url: str) -> None:
    """Say that the gateway is ready once it takes connections, unless it is to end by then.

    One that cannot say so ends: nobody would send it anything.
    """
    await server.is_listening.wait()
    if server.should_exit:
        return
    try:
        status.write(Phase.READY, addresses=[url])
    except OSError:
        log.exception("gateway.cannot_tell")
        server.should_exit = True
        return
    log.info("gateway.ready url=%s", url)


async def _beat(pulse: Pulse, silent_s: float) -> None:
    while True:
        pulse.promise(Slot.ALIVE, silent_s)
        await asyncio.sleep(_BEAT_S)


def _stop(server: "uvicorn.Server", status: StatusFile) -> None:
    """Accept nothing new; streams in flight go on until they end or the process is killed."""
    log.info("gateway.draining")
    server.should_exit = True
    status.write(Phase.STOPPING, "letting streams finish")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
