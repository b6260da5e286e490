"""What `llx down` would do, in words. Changes nothing, on no machine."""

from collections.abc import Sequence
from pathlib import Path

from llx.api import ClusterStatus
from llx.bootstrap import host_lock
from llx.bootstrap.cluster_dir import PROCS, id_of
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_claim import owner_of
from llx.bootstrap.host_facts import gather
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_stop import GRACE_S, playbooks_for
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all
from llx.bootstrap.left_hosts import load_left, named_apart
from llx.bootstrap.local_ports import LocalPorts
from llx.bootstrap.shell import Shell
from llx.errors import LlxError
from llx.settings import ClusterSettings, HostSettings

Rows = list[tuple[str, str]]
"""What, and how."""


def plan_here(
    state_dir: Path, ports: LocalPorts, doomed: Sequence[Path], *, deadline_s: float
) -> Rows:
    """Of a cluster on this machine; `doomed`: what a purge removes."""
    alive = [each.name for each in ports.list_processes(state_dir / PROCS) if each.is_alive()]
    if not state_dir.is_dir() or not (alive or doomed):
        return [("cluster", f"{state_dir.name} is not running: nothing to stop")]
    rows = [("cluster", f"{state_dir.name}, on this machine")]
    if alive:
        try:
            with ports.control(state_dir) as control:
                rows.append(("streams", _streams(control.status(), deadline_s)))
        except LlxError as error:
            rows.append(("streams", _headless(error, GRACE_S)))
    rows.append(("processes", f"end {', '.join(sorted(alive))}" if alive else "none runs"))
    rows += [("remove", str(each)) for each in doomed]
    return rows if doomed else [*rows, ("keep", f"logs in {state_dir / PROCS}")]


def plan_on_hosts(
    settings: ClusterSettings,
    state_dir: Path,
    world: HostsWorld,
    *,
    deadline_s: float,
    is_purge: bool,
) -> Rows:
    """Of a cluster on hosts, as far as they can be reached; with a purge, of those it left, too."""
    left = named_apart(load_left(state_dir), settings.hosts) if is_purge else []
    cluster_id = id_of(state_dir)
    crew = connect_all([*settings.hosts, *left], settings.cluster, world.connect)

    def work(name: str) -> str:
        shell, layout = crew.shells[name], crew.layouts[name]
        is_left = name not in {each.name for each in settings.hosts}
        owner = owner_of(shell, layout, cluster_id)
        playbooks = playbooks_for(shell, layout, owner, is_purge=is_purge, is_left=is_left)
        return _of_host(hosts[name], settings, shell, layout, playbooks)

    try:
        hosts = {each.name: each for each in (*settings.hosts, *left)}
        found = fan_out(crew.good, work)
        head = settings.head_host
        assert head is not None, "a cluster on hosts has a head"
        rows = [("cluster", f"{settings.cluster} on {', '.join(hosts)}")]
        if head.name in crew.shells:
            rows += _of_head(head.name, crew, world, deadline_s)
        else:
            rows.append(("streams", _headless(crew.errors[head.name], max(GRACE_S, deadline_s))))
    finally:
        crew.close()
    for name in hosts:
        what = found.get(name) or crew.errors[name]
        if isinstance(what, LlxError):
            what = f"left as it is, out of reach: {what.message}"
        rows.append((f"host {name}", what))
    return rows


def _of_head(name: str, crew: Crew, world: HostsWorld, deadline_s: float) -> Rows:
    shell, layout = crew.shells[name], crew.layouts[name]
    rows: Rows = []
    holder = host_lock.show(shell, layout)
    if holder is not None and not holder.is_stale:
        rows.append(("lock", f"held by {holder}: until it is through, `llx down` is refused"))
    try:
        with world.control(shell, layout) as control:
            rows.append(("streams", _streams(control.status(), deadline_s)))
    except LlxError as error:
        rows.append(("streams", _headless(error, max(GRACE_S, deadline_s))))
    return rows


def _of_host(
    host: HostSettings,
    settings: ClusterSettings,
    shell: Shell,
    layout: HostLayout,
    playbooks: Sequence[str],
) -> str:
    if not playbooks:
        return "left as it is: a cluster of this name uses it again"
    if "stop" not in playbooks:
        return f"another cluster uses it now: remove {layout.state}, nothing else"
    facts = gather(shell, host, settings)
    names = ", ".join(sorted(each.name for each in facts.processes))
    parts = [f"end {names}" if names else "nothing runs there"]
    if "purge" not in playbooks:
        parts.append("remove keys and settings; keep models, the node environment and logs")
        return "; ".join(parts)
    inside = [*sorted(facts.node_environments), *(f"model {each}" for each in sorted(facts.models))]
    what = f" ({', '.join(inside)}, logs)" if inside else ""
    parts.append(f"remove {layout.root}{what} and {layout.ray_tmp}")
    if "unfirewall" in playbooks:
        parts.append("remove the firewall's table")
    return "; ".join(parts)


def _streams(status: ClusterStatus, deadline_s: float) -> str:
    count = sum(each.in_flight for each in status.gateways)
    if not count:
        return "none is going on"
    return f"{count} going on; cut are those that have not finished in {deadline_s:g} s"


def _headless(error: LlxError, grace_s: float) -> str:
    return (
        f"nobody knows how many, the head does not answer ({error.message}); cut are those that "
        f"have not finished in {grace_s:g} s"
    )
