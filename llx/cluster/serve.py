"""What a head does, wherever it lives: drives the cluster and serves the control API."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llx.cluster.driving.desired import desired_gateways, desired_hosts, desired_instances
from llx.cluster.driving.driver import ClusterDriver
from llx.cluster.driving.rollout_change import settled
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.agents import AgentsSource
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.gateway_line import LOOPBACK, GatewayLine
from llx.cluster.fleet.host_unit import START_S, HostUnit
from llx.cluster.fleet.load_watch import LoadWatch
from llx.cluster.fleet.unit import Unit
from llx.cluster.placement_file import (
    PlacedUnit,
    load_cordons,
    load_moved,
    load_placements,
    without_hosts,
)
from llx.cluster.rollout_file import FIRST, Generations, load_generations
from llx.cluster.state_dir import StateDir, TokenFile, write_private
from llx.core.model import Term
from llx.curve import KeyFile
from llx.errors import ConflictError
from llx.garbage import leave_what_is_here
from llx.log import get_log
from llx.secret import Secret
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import GatewaySpec, InstanceSpec, Phase, StatusFile

if TYPE_CHECKING:  # imported late: by then the processes of the cluster are starting
    from llx.http_server import BoundedServer

log = get_log(__name__)

_HTTP_GRACE_S = 5


@dataclass(frozen=True, slots=True)
class HeadSeat:
    """What a head needs to begin.

    Attributes:
        settings: What the cluster should be; `StateDir.settings` holds the same and is rewritten
            when they are changed through the control API.
        state: The cluster's state directory on this host; `create` was called.
        platform: ``cpu`` or ``cuda``.
        term: This head's, raised on disk before.
        line_address: Where gateways reach the head, such as ``tcp://10.0.0.1:20009``; None: on
            loopback, at a port of the system's choice.
    """

    settings: ClusterSettings
    state: StateDir
    platform: str
    term: Term
    line_address: str | None = None


async def serve(
    seat: HeadSeat,
    agents: AgentsSource,
    *,
    listener: socket.socket,
    ending: asyncio.Event,
    on_ready: Callable[[str], None],
) -> bool:
    """Run the head until `ending` is set, or until the control API has stopped the cluster.

    Args:
        seat: Whose head.
        agents: Reaches the hosts of the settings.
        listener: For the control API, bound (`bind_control`).
        ending: Set it to end the head alone; whatever runs goes on.
        on_ready: Gets the control API's URL as soon as it answers.

    Returns:
        Whether the cluster was stopped through the control API.

    Raises:
        ConflictError: The gateways' address is taken by someone else.
        ConfigError: Keys or settings in the state directory cannot be used.
    """
    keys = KeyFile(seat.state.keys)
    with contextlib.closing(GatewayLine(keys, seat.term)) as line:
        loads = LoadWatch(keys, seat.term)
        try:
            address = await line.bind(seat.line_address)
            fleet = make_fleet(seat, agents, line, loads, address)
            driver = ClusterDriver(fleet, agents, AuditTrail(seat.state.events), seat.state)
            await drive(driver, TokenFile(seat.state.token), listener, ending, on_ready)
            return driver.stopped.is_set()
        finally:
            await loads.close()


async def drive(
    driver: ClusterDriver,
    token: Callable[[], Secret],
    listener: socket.socket,
    ending: asyncio.Event,
    on_ready: Callable[[str], None],
) -> None:
    """Run a driver and its control API until `ending`, or until that has stopped everything."""
    driving = asyncio.create_task(driver.run(), name="driver")
    # The processes are starting while the web framework is being imported.
    server = await asyncio.to_thread(_server, driver, token)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="control")
    listening = asyncio.create_task(server.is_listening.wait())
    asked = asyncio.create_task(ending.wait())
    stopped = asyncio.create_task(driver.stopped.wait())
    try:
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait([serving, listening], return_when=first)
        if listening.done():
            on_ready(f"http://{LOOPBACK}:{listener.getsockname()[1]}")
        await asyncio.wait([driving, serving, asked, stopped], return_when=first)
        if driving.done():
            driving.result()
    finally:
        server.should_exit = True  # answers under way are finished
        await asyncio.wait([serving], timeout=_HTTP_GRACE_S + 2)
        for task in (driving, serving, listening, asked, stopped):
            task.cancel()
        await asyncio.gather(driving, serving, listening, asked, stopped, return_exceptions=True)


def tell_ready(status: StatusFile, url: str) -> None:
    """For `on_ready` of a process that is a head and no more: its modules are all there by now."""
    leave_what_is_here()
    status.write(Phase.READY, addresses=[url])


def bind_control(port: int) -> socket.socket:
    """The control API's listening socket, on loopback.

    Raises:
        ConflictError: The port is taken.
    """
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


def make_fleet(
    seat: HeadSeat, agents: AgentsSource, line: GatewayLine, loads: LoadWatch, address: str
) -> Fleet:
    """The fleet of the settings, with what former heads remembered of it."""
    generations = load_generations(seat.state.rollouts)
    settings = settled(seat.settings, generations)
    if settings != seat.settings:
        write_private(seat.state.settings, dump_cluster(settings))
    moved = load_moved(seat.state.moved)
    away = frozenset(moved.away if moved is not None else ())
    known = without_hosts(load_placements(seat.state.placements), away)
    cordoned = load_cordons(seat.state.cordons)
    names = desired_hosts(settings)
    placed = [each.host for each in [*known.instances.values(), *known.gateways.values()]]
    leaving = [each for each in dict.fromkeys([*known.leaving, *placed]) if each not in names]
    now = time.monotonic()
    hosts = {
        name: HostUnit(
            name,
            agents.agent(name),
            now if name not in away else now - START_S,
            is_cordoned=name in cordoned,
            is_leaving=name in leaving,
        )
        for name in [*names, *leaving]
    }
    specs = [
        _spec_of(spec, known.instances.get(spec.name), generations)
        for spec in desired_instances(settings, known.wanted, generations)
    ]
    instances = _units(specs, known.instances)
    gateways = _units(desired_gateways(settings, address, generations), known.gateways)
    fleet = Fleet(
        settings=settings,
        platform=seat.platform,
        term=seat.term,
        hosts=hosts,
        instances=instances,
        gateways=gateways,
        line=line,
        loads=loads,
        line_address=address,
        procs_dir=seat.state.procs,
        generations=generations,
    )
    line.expect(lambda name: fleet.gateways[name].host if name in fleet.gateways else "")
    return fleet


def _spec_of(
    spec: InstanceSpec, placed: PlacedUnit | None, generations: Generations
) -> InstanceSpec:
    """One that a rollout is yet to replace stays what it is."""
    rollout = generations.get(spec.pool, FIRST).under_way
    before = None if placed is None else placed.spec
    if rollout is None or not isinstance(before, InstanceSpec):
        return spec
    return before if before.revision == rollout.former_revision else spec


def _units(
    specs: Sequence[InstanceSpec | GatewaySpec], placed: Mapping[str, PlacedUnit]
) -> dict[str, Unit]:
    """What is asked for, then what was and has not gone yet, by name."""
    units = {spec.name: _remembered(spec, placed.get(spec.name)) for spec in specs}
    for name, each in placed.items():
        if name not in units and each.spec is not None:
            units[name] = _remembered(each.spec, each)
            units[name].is_leaving = True
    return units


def _remembered(spec: InstanceSpec | GatewaySpec, placed: PlacedUnit | None) -> Unit:
    unit = Unit(spec)
    if placed is None:
        return unit
    unit.put_on(placed.host)
    unit.known = list(placed.addresses)
    unit.is_cordoned = placed.is_cordoned
    if placed.spec == spec:  # other settings may succeed where these have failed
        unit.was_ready, unit.last_failure = placed.was_ready, placed.last_failure
        unit.failures, unit.owes_pause = placed.failures, placed.failures > 0
    return unit


def _server(driver: ClusterDriver, token: Callable[[], Secret]) -> "BoundedServer":
    import uvicorn

    from llx.cluster.control import make_app
    from llx.http_server import BoundedServer

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
    return BoundedServer(config)
