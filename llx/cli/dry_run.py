"""``--dry-run`` of verbs that the head carries out: what its status says would become of whom."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llx.cli.session import Session, hosts_world, local_ports

if TYPE_CHECKING:
    from llx.api import ClusterStatus, HostStatus, InstanceStatus
    from llx.settings import ClusterSettings


def cordon(session: Session, name: str, *, is_on: bool) -> None:
    """Of `llx host cordon` and `uncordon`."""
    status = _status(session)
    host = _host(name, status.hosts)
    lines = [f"{name} gets nothing new" if is_on else f"{name} is used again"]
    if host.is_cordoned is is_on:
        lines = [f"{name} is {'' if is_on else 'not '}cordoned already"]
    elif is_on:
        lines += [f"{each} goes on" for each in (*host.gateways, *host.instances)]
    _say(session, lines)


def drain(session: Session, name: str, deadline_s: float) -> None:
    """Of `llx host drain`."""
    from llx.api import HostState
    from llx.errors import ConflictError

    status = _status(session)
    host = _host(name, status.hosts)
    others = [
        each.name
        for each in status.hosts
        if each.name != name and each.state is HostState.READY and not each.is_cordoned
    ]
    if not others:
        raise ConflictError(f"{name} is the only host in use", remedy="llx down")
    if host.state is HostState.DRAINING:
        raise ConflictError(f"{name} is being emptied already")
    lines = [f"{name} gets nothing new"]
    lines += [
        f"{each.name}: {each.in_flight} streams going on; ends with them, after {deadline_s:g} s "
        "at most"
        for each in status.gateways
        if each.host == name
    ]
    lines += [
        f"{each.name}: {_requests(each)}, {_way_out(each, status, {name})}; "
        f"ends when it has none, after {deadline_s:g} s at most"
        for each in status.instances
        if each.host == name
    ]
    lines.append(f"what there is room for starts on {', '.join(others)}")
    _say(session, lines)


def cordon_instance(session: Session, name: str, *, is_on: bool) -> None:
    """Of `llx inst cordon` and `uncordon`."""
    with session.control() as control:
        found = control.instance(name)
    if found.is_cordoned is is_on:
        _say(session, [f"{name} is {'' if is_on else 'not '}cordoned already"])
    elif is_on:
        _say(session, [f"{name} gets nothing new: {_requests(found)}, which go on"])
    else:
        _say(session, [f"{name} is used again"])


def drain_instance(session: Session, name: str, deadline_s: float) -> None:
    """Of `llx inst drain`."""
    from llx.api import InstanceState
    from llx.errors import ConflictError

    with session.control() as control:
        found, status = control.instance(name), control.status()
    if found.state is not InstanceState.READY:
        raise ConflictError(f"{name} is {found.state}", remedy=f"llx inst get {name}")
    late = f"what is left after {deadline_s:g} s goes on there"
    lines = [
        f"{name} gets nothing new",
        f"{_requests(found)}, {_way_out(found, status)}; {late}",
        f"{name} stays up: `llx inst uncordon {name}` uses it again",
    ]
    _say(session, lines)


def restart(session: Session, name: str, deadline_s: float) -> None:
    """Of `llx inst restart`."""
    with session.control() as control:
        status = control.status()
        gateways = {each.name: each for each in status.gateways}
        if name in gateways:
            gateway = gateways[name]
            what = f"{gateway.in_flight} streams going on, which finish; ends and is started anew"
            _say(session, [f"{name} on {gateway.host}: {what}"])
            return
        found = control.instance(name)
    where = f" on {found.host}" if found.host else ""
    way = f"{_way_out(found, status)}, cut after {deadline_s:g} s" if deadline_s else "cut off"
    _say(session, [f"{name}{where}: {_requests(found)}, {way}; ends and is started anew"])


def down_here(session: Session, state_dir: Path, doomed: Sequence[Path], deadline_s: float) -> None:
    """Of `llx down` of a cluster on this machine."""
    from llx.bootstrap.down_plan import plan_here

    _table(session, plan_here(state_dir, local_ports(), doomed, deadline_s=deadline_s))


def down_on_hosts(
    session: Session, settings: "ClusterSettings", deadline_s: float, *, is_purge: bool
) -> None:
    """Of `llx down` of a cluster on hosts."""
    from llx.bootstrap.down_plan import plan_on_hosts

    world = hosts_world(session)
    state_dir = session.context().state_dir
    rows = plan_on_hosts(settings, state_dir, world, deadline_s=deadline_s, is_purge=is_purge)
    _table(session, rows)


def _status(session: Session) -> "ClusterStatus":
    with session.control() as control:
        return control.status()


def _host(name: str, known: "Sequence[HostStatus]") -> "HostStatus":
    from llx.yaml_reader import no_such

    for each in known:
        if each.name == name:
            return each
    raise no_such("host", name, [each.name for each in known])


def _requests(instance: "InstanceStatus") -> str:
    load = instance.load
    if load is None:
        return f"{instance.state}, its requests are not known"
    return f"{load.running} requests running, {load.waiting} waiting"


def _way_out(
    instance: "InstanceStatus", status: "ClusterStatus", emptied: Container[str] = ()
) -> str:
    """Where its requests would go; `emptied`: hosts that are emptied with it."""
    from llx.api import InstanceState

    if instance.cannot_migrate:
        return f"which finish there: it cannot move requests ({instance.cannot_migrate})"
    closed = {each.name for each in status.hosts if each.is_cordoned or each.name in emptied}
    others = [
        each.name
        for each in status.instances
        if each.name != instance.name
        and each.model == instance.model
        and each.state is InstanceState.READY
        and not each.is_cordoned
        and not each.cannot_migrate
        and each.host not in closed
    ]
    if not others:
        return f"which finish there: no other instance of {instance.model} takes any"
    return f"which move to {', '.join(others)}, or finish"


def _table(session: Session, rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(what) for what, _ in rows)
    _say(session, [f"{what:<{width}}  {how}" for what, how in rows])


def _say(session: Session, lines: Sequence[str]) -> None:
    for line in lines:
        session.out.print(line, markup=False, soft_wrap=True)
    session.err.print("nothing was changed")
