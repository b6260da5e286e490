"""Who is hit by a fault: among what lives, and what the cluster can do without. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llx.api import ClusterStatus, GatewayStatus, HostState, InstanceState, InstanceStatus
from llx.chaos.plan import ONLY_ON_HOSTS, Fault, FaultKind, Role
from llx.errors import ConfigError, ConflictError, LlxError, NotFoundError


@dataclass(frozen=True, slots=True)
class Victim:
    """Who is hit, and what goes with it.

    Attributes:
        role: What it is.
        name: In `llx status`; of the head ``head``, of a shim its instance's, of an agent and of
            Ray their host's.
        host: Where it is; "" if the cluster has none but this machine.
        instances: Whose streams have to go on elsewhere.
        gateways: Whose streams may end.
    """

    role: Role
    name: str
    host: str
    instances: frozenset[str] = frozenset()
    gateways: frozenset[str] = frozenset()


Unit = InstanceStatus | GatewayStatus


def units_of(status: ClusterStatus) -> dict[str, Unit]:
    """Instances and gateways, by name."""
    units: list[Unit] = [*status.instances, *status.gateways]
    return {each.name: each for each in units}


def choose(
    fault: Fault, status: ClusterStatus, model: str, *, hits_last: bool, on_hosts: bool
) -> Victim:
    """The victim of a fault in a cluster that is like that; `model` is what the streams ask for.

    Raises:
        NotFoundError: It names something that is not there.
        ConflictError: What it may hit cannot be missed, or does not live.
        ConfigError: It cannot be done to this kind of cluster.
    """
    check_possible(fault, on_hosts=on_hosts)
    if fault.role is None:
        found = _named(fault, status, on_hosts=on_hosts)
        _check_missable(found, status, hits_last=hits_last)
        return found
    living = _living(fault.role, status, model)
    good, reason = [], f"no {fault.role} lives"
    for each in living:
        try:
            _check_missable(each, status, hits_last=hits_last)
        except LlxError as error:
            reason = error.message
        else:
            good.append(each)
    if not good:
        raise ConflictError(f"{fault.kind} {fault.role}: {reason}", remedy="--all")
    return good[int(fault.draw * len(good))]


def check_possible(fault: Fault, *, on_hosts: bool) -> None:
    """Whether this kind of cluster bears such a fault at all.

    Raises:
        ConfigError: It does not.
    """
    if on_hosts:
        return
    if fault.kind is FaultKind.PARTITION or fault.role in ONLY_ON_HOSTS:
        raise ConfigError(
            f"{fault.kind} {fault.target} takes a cluster on hosts; this one is on one machine"
        )


def _named(fault: Fault, status: ClusterStatus, *, on_hosts: bool) -> Victim:
    is_host = fault.kind is FaultKind.PARTITION
    known = (
        [_host(each.name, status) for each in status.hosts]
        if is_host
        else [
            *map(_instance, status.instances),
            *map(_gateway, status.gateways),
        ]
    )
    for each in known:
        if each.name == fault.target:
            return each
    names = ", ".join(each.name for each in known)
    raise NotFoundError(f'{fault.kind}: no "{fault.target}"', remedy=f"there are: {names}")


def _living(role: Role, status: ClusterStatus, model: str) -> list[Victim]:
    asked = [e for e in status.instances if e.model == model] or status.instances
    makers: dict[Role, Callable[[], Sequence[Victim]]] = {
        Role.INSTANCE: lambda: [_instance(e) for e in asked if _is_ready(e)],
        Role.GATEWAY: lambda: [_gateway(e) for e in status.gateways if _is_ready(e)],
        Role.HEAD: lambda: [Victim(Role.HEAD, "head", "")],
        Role.AGENT: lambda: [Victim(Role.AGENT, each, each) for each in _ready_hosts(status)],
        Role.SHIM: lambda: [replace(_instance(e), role=Role.SHIM) for e in asked if _is_ready(e)],
        Role.RAY: lambda: [Victim(Role.RAY, each, each) for each in _ready_hosts(status)],
        Role.HOST: lambda: [_host(each, status) for each in _ready_hosts(status)],
    }
    return sorted(makers[role](), key=lambda each: each.name)


def _is_ready(unit: Unit) -> bool:
    return unit.state is InstanceState.READY


def _ready_hosts(status: ClusterStatus) -> list[str]:
    return [each.name for each in status.hosts if each.state is HostState.READY]


def _instance(status: InstanceStatus) -> Victim:
    return Victim(Role.INSTANCE, status.name, status.host, instances=frozenset({status.name}))


def _gateway(status: GatewayStatus) -> Victim:
    return Victim(Role.GATEWAY, status.name, status.host, gateways=frozenset({status.name}))


def _host(name: str, status: ClusterStatus) -> Victim:
    return Victim(
        Role.HOST,
        name,
        name,
        frozenset(each.name for each in status.instances if each.host == name),
        frozenset(each.name for each in status.gateways if each.host == name),
    )


def _check_missable(victim: Victim, status: ClusterStatus, *, hits_last: bool) -> None:
    """Whether others do its work meanwhile.

    Raises:
        ConflictError: Nobody does, or it is not there to be hit.
    """
    units = units_of(status)
    if victim.role in {Role.INSTANCE, Role.GATEWAY} and not _is_ready(units[victim.name]):
        raise ConflictError(f"{victim.name} is {units[victim.name].state}", remedy="llx status")
    if hits_last:
        return
    for model in {each.model for each in status.instances if each.name in victim.instances}:
        left = [
            each
            for each in status.instances
            if each.model == model
            and each.name not in victim.instances
            and _is_ready(each)
            and not each.is_cordoned
        ]
        if not left:
            raise ConflictError(
                f"{victim.name} has the only ready instance of {model}: its streams would end",
                remedy="--all hits it nevertheless",
            )
    others = [e for e in status.gateways if e.name not in victim.gateways and _is_ready(e)]
    if victim.gateways and not others:
        raise ConflictError(
            f"{victim.name} has the only gateway: all streams would end",
            remedy="--all hits it nevertheless",
        )
