"""Everything about hosts that can be refused is refused here, before anything is changed.

Pure: settings and facts in, findings out, each with host, reason and remedy. What concerns one
host by itself is here; its Python, memory, disk, models and GPUs are
`llx.bootstrap.host_capacity`'s, what concerns hosts together `llx.bootstrap.host_peers`'s.
"""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llx.bootstrap import host_capacity, host_peers
from llx.bootstrap.host_capacity import copy_sizes, decide_platform
from llx.bootstrap.host_facts import HostFacts, Listener
from llx.bootstrap.host_finding import HostFinding, HostPreflightError
from llx.bootstrap.host_python import common_version
from llx.bootstrap.node_probe import NodePlatform
from llx.errors import ExitCode, LlxError
from llx.host_ports import HostPorts
from llx.settings import ClusterSettings, HostSettings, Platform

__all__ = ["HostFinding", "HostPreflightError", "check", "copy_sizes", "decide_platform", "find"]

_MACHINES = frozenset({"x86_64", "aarch64"})
_MIN_GLIBC = (2, 31)
"""Of the wheels in the locks (manylinux_2_31 is the newest)."""
_NEEDED_TOOLS = {
    "timeout": "coreutils",
    "sha256sum": "coreutils",
    "flock": "util-linux",
    "tar": "tar",
}
_MIN_OPEN_FILES = 4096
_WARN_SKEW_S = 2.0
_MAX_SKEW_S = 60.0
_LOCAL_CLUSTER = "an llx cluster of that machine alone"


def find(
    settings: ClusterSettings,
    facts: Mapping[str, HostFacts | LlxError],
    *,
    platform: Platform,
    has_tiny_model: bool = False,
    running: Sequence[str] = (),
    copies: Mapping[str, int] | None = None,
) -> list[HostFinding]:
    """All findings: by host in the order of the file, then those of the hosts together.

    Args:
        settings: As the file says.
        facts: Of each host, or why there are none (from connecting or `gather`).
        platform: Of `decide_platform`.
        has_tiny_model: llx's own tiny model is going to be made there.
        running: Hosts of the running cluster: one of them out of reach is a warning, unless it
            is the head.
        copies: Sizes in bytes of the directories that will be copied to every host, by their path
            here (`copy_sizes`); None: whatever is not found on the hosts will be.
    """
    known = {name: each for name, each in facts.items() if isinstance(each, HostFacts)}
    found: list[HostFinding] = []
    release = python_version(settings, known, platform)
    for host in settings.hosts:
        fact = facts.get(host.name)
        if isinstance(fact, LlxError):
            found.append(_out_of_reach(settings, host, fact, running))
        elif fact is not None:
            found += _host(settings, host, fact)
            found += host_capacity.find_of_host(
                settings,
                fact,
                platform=platform,
                has_tiny_model=has_tiny_model,
                copies=copies,
                python_version=release,
            )
    found += host_peers.find(settings, known)
    found += host_capacity.find_of_cluster(settings, known, platform=platform, copies=copies)
    return found


def python_version(
    settings: ClusterSettings, facts: Mapping[str, HostFacts], platform: Platform
) -> str | None:
    """The release of Python that all hosts use; None if no host can have any."""
    wheelhouse = settings.runtime.wheelhouse
    there = wheelhouse if wheelhouse is not None and wheelhouse.is_dir() else None
    return common_version(list(facts.values()), NodePlatform(platform), there)


def check(findings: Sequence[HostFinding]) -> list[HostFinding]:
    """The warnings among `findings`.

    Raises:
        HostPreflightError: Some are fatal.
    """
    fatal = [each for each in findings if each.is_fatal]
    if fatal:
        raise HostPreflightError(fatal)
    return list(findings)


def _out_of_reach(
    settings: ClusterSettings, host: HostSettings, error: LlxError, running: Sequence[str]
) -> HostFinding:
    head = settings.head_host
    is_head = head is not None and head.name == host.name
    is_left_alone = host.name in running and not is_head
    problem = error.message.removeprefix(f"{host.name}: ").removeprefix("connect: ")
    remedy = error.remedy or f"see that `ssh {host.address}` works from here"
    return HostFinding(
        host.name,
        "connection",
        problem,
        f"{remedy}; until then it is left alone" if is_left_alone else remedy,
        error.exit_code,
        is_fatal=not is_left_alone,
        detail=error.detail,
    )


def _host(settings: ClusterSettings, host: HostSettings, facts: HostFacts) -> Iterator[HostFinding]:
    """Findings of one host by itself."""
    yield from _other_clusters(settings, facts)
    yield from _system(facts)
    yield from _user(facts)
    yield from _clock(facts)
    yield from _address(settings, host, facts)
    yield from _ports(settings, facts)


def _system(facts: HostFacts) -> Iterator[HostFinding]:
    has_own_python = facts.wanted_python is not None
    own = "set hosts[].python to an environment of its own that holds vLLM, Ray and llx"
    if facts.system != "Linux":
        yield HostFinding(facts.host, "system", f"it runs {facts.system}", "llx needs Linux")
    elif facts.machine not in _MACHINES and not has_own_python:
        what = f"vLLM is not built for {facts.machine}"
        yield HostFinding(facts.host, "system", what, own)
    elif (facts.glibc is None or facts.glibc < _MIN_GLIBC) and not has_own_python:
        had = "no GNU C library" if facts.glibc is None else f"glibc {_dotted(facts.glibc)}"
        needed = _dotted(_MIN_GLIBC)
        remedy = f"a newer system there (glibc {needed} or later), or {own}"
        yield HostFinding(facts.host, "system", f"{had}; vLLM needs glibc {needed}", remedy)
    missing = [tool for tool in _NEEDED_TOOLS if tool in facts.missing_tools]
    if missing:
        packages = " ".join(dict.fromkeys(_NEEDED_TOOLS[tool] for tool in missing))
        yield HostFinding(
            facts.host,
            "tools",
            f"no {', '.join(missing)} on PATH",
            f"install {packages} there",
        )
    if facts.open_files is not None and facts.open_files < _MIN_OPEN_FILES:
        yield HostFinding(
            facts.host,
            "limits",
            f"a process may have {facts.open_files} files open at most",
            f"raise the hard limit: `{facts.user} hard nofile 65536` in "
            "/etc/security/limits.conf, then log in again",
            is_fatal=False,
        )


def _user(facts: HostFacts) -> Iterator[HostFinding]:
    if facts.noise:
        yield HostFinding(
            facts.host,
            "shell",
            f"its login shell prints text of its own: {facts.noise.splitlines()[0][:80]!r}",
            "let ~/.bashrc and the like print only when interactive: [ -t 1 ] || return",
        )
    if not facts.is_home_writable:
        yield HostFinding(
            facts.host,
            "home",
            f"{facts.user} cannot write {facts.home}",
            f"give {facts.user} a home directory of its own there, or set hosts[].user",
        )
    if facts.is_logout_deadly and not facts.is_root:
        yield HostFinding(
            facts.host,
            "user",
            f"logind ends all processes of {facts.user} at logout (KillUserProcesses=yes)",
            f"set KillUserProcesses=no, or KillExcludeUsers=root {facts.user}, in "
            "/etc/systemd/logind.conf there, then: systemctl restart systemd-logind",
        )
    if not facts.has_sudo:
        yield HostFinding(
            facts.host,
            "sudo",
            f"{facts.user} is not root and has no sudo without a password",
            "nothing but `llx play firewall` needs it",
            is_fatal=False,
        )


def _clock(facts: HostFacts) -> Iterator[HostFinding]:
    if facts.clock_offset_s is None:
        return
    skew = max(0.0, abs(facts.clock_offset_s) - facts.clock_error_s)
    if skew <= _WARN_SKEW_S:
        return
    side = "ahead of" if facts.clock_offset_s > 0 else "behind"
    amount = f"{skew:.1f} s" if skew < _MAX_SKEW_S else _long_span(skew)
    yield HostFinding(
        facts.host,
        "clock",
        f"its clock is {amount} {side} this machine's",
        "set the clock that is wrong, there or here: timedatectl set-ntp true (chrony, ntpd)",
        is_fatal=skew > _MAX_SKEW_S,
    )


def _address(
    settings: ClusterSettings, host: HostSettings, facts: HostFacts
) -> Iterator[HostFinding]:
    own = [each for each in facts.addresses if _is_reachable(each)]
    choose = "set hosts[].cluster_address to the address under which the other hosts reach it"
    remedy = f"{choose} ({', '.join(own)})" if own else choose
    address = facts.cluster_address
    if not address:
        yield HostFinding(facts.host, "address", "it is not known which of its own it is", remedy)
    elif facts.addresses and not _holds(facts, address):
        had = ", ".join(own) or "none"
        yield HostFinding(
            facts.host, "address", f"{address} is not one of its addresses ({had})", remedy
        )
    elif len(settings.hosts) > 1 and not _is_reachable(address):
        how = "is set" if host.cluster_address else "is where SSH arrives"
        yield HostFinding(
            facts.host, "address", f"{address} {how}: no other host can reach that", remedy
        )


def _holds(facts: HostFacts, address: str) -> bool:
    """All of 127.0.0.0/8 is every host's own."""
    wanted = ipaddress.ip_address(address)
    if wanted.is_loopback:
        return True
    return wanted in {ipaddress.ip_address(each) for each in facts.addresses}


def _is_reachable(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def _ports(settings: ClusterSettings, facts: HostFacts) -> Iterator[HostFinding]:
    ports = HostPorts(settings.network.first_port)
    others = [each for each in facts.listeners if not _is_own(each, facts)]
    for each in {each.port: each for each in reversed(others)}.values():
        use = _use_of(settings, facts.host, each)
        if use is not None:
            yield HostFinding(
                facts.host,
                "ports",
                f"port {each.port}, for {use.what}, is taken by {each.holder}",
                f"stop that process, or choose another port ({use.key})",
                ExitCode.CONFLICT,
                is_fatal=use.is_vital,
            )
    taken = [each for each in others if ports.ray_workers[0] <= each.port <= ports.last]
    if taken:
        yield HostFinding(
            facts.host,
            "ports",
            f"{len({each.port for each in taken})} of ports {ports.ray_workers[0]}-{ports.last} "
            f"are taken, one by {taken[0].holder}",
            "the cluster passes them over; network.first_port chooses another block",
            is_fatal=False,
        )
    span = facts.ephemeral_ports
    if span is not None and span[0] <= ports.last and ports.first <= span[1]:
        yield HostFinding(
            facts.host,
            "ports",
            f"outgoing connections take ports {span[0]}-{span[1]}, the cluster's are "
            f"{ports.first}-{ports.last}: one may be taken at any time",
            "set network.first_port so that they are apart, or net.ipv4.ip_local_port_range there",
            is_fatal=False,
        )


@dataclass(frozen=True, slots=True)
class _PortUse:
    """What the cluster wants a port of a host for, and the setting that says which."""

    what: str
    key: str
    is_vital: bool = True


def _use_of(settings: ClusterSettings, host: str, listener: Listener) -> _PortUse | None:
    """Whom somebody who listens there is in the way of; None: nobody."""
    ports = HostPorts(settings.network.first_port)
    head = settings.head_host.name if settings.head_host is not None else ""
    of_all = {ports.node_manager, ports.object_manager, ports.runtime_env_agent}
    of_all |= {ports.dashboard_agent, ports.dashboard_agent_grpc, ports.metrics_export}
    port, gateway = listener.port, settings.gateway
    if port in of_all or (host == head and port in {ports.gcs, ports.scheduler}):
        return _PortUse("Ray and llx", "network.first_port")
    if port == gateway.port and _collides(listener, gateway.host):
        others = [each.name for each in settings.hosts if each.name != head]
        is_vital = host in [head, *others][: settings.num_gateways]
        return _PortUse("the gateway", "gateway.port", is_vital)
    if port == settings.control.port and host == head and _collides(listener, "127.0.0.1"):
        return _PortUse("the control API", "control.port")
    return None


def _is_own(listener: Listener, facts: HostFacts) -> bool:
    """Whether this cluster listens there itself. Some of Ray's processes overwrite their marks."""
    is_ray = listener.name.startswith("ray") and listener.user == facts.user
    return listener.mark in facts.marks or (facts.is_cluster_running and is_ray)


def _collides(listener: Listener, host: str) -> bool:
    """Whether listening on `host`, too, would be refused."""
    mine = "127.0.0.1" if host == "localhost" else host
    wild = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return mine in wild or listener.address in wild or listener.address == mine


def _other_clusters(settings: ClusterSettings, facts: HostFacts) -> Iterator[HostFinding]:
    claim, cluster = facts.claim, settings.cluster
    if claim is not None and claim.cluster != cluster:
        yield HostFinding(
            facts.host,
            "cluster",
            f'it belongs to llx cluster "{claim.cluster}" ({facts.layout(cluster).claim})',
            f"take it out of that one (llx host rm, llx down --purge); if that one is gone: "
            f"rm {facts.layout(cluster).claim} there",
            ExitCode.CONFLICT,
        )
    state = f"{facts.layout(cluster).state}/"
    theirs = [each for each in facts.llx_processes if each.cluster and state not in each.command]
    for user, name in dict.fromkeys((each.user, each.cluster) for each in theirs):
        group = [each for each in theirs if (each.user, each.cluster) == (user, name)]
        is_on_hosts = any("llx.cluster.ray.node" in each.command for each in group)
        if claim is not None and claim.cluster == name != cluster and user == facts.user:
            continue  # said already
        yield HostFinding(
            facts.host,
            "cluster",
            f'llx cluster "{name}" of user {user} runs there (pid {group[0].pid})'
            + ("" if is_on_hosts else f", {_LOCAL_CLUSTER}"),
            f"llx down it ({user}'s), or leave this host out; a host serves one cluster"
            if is_on_hosts
            else f"llx down it ({user}'s), if its memory or devices are wanted here",
            ExitCode.CONFLICT,
            is_fatal=is_on_hosts,
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _long_span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
