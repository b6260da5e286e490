"""Who reaches whom: host to host on the cluster's ports, and what is left open to others.

A port that refuses is as good as one that answers: something came back. Silence is a firewall. A
firewall that refuses by itself (REJECT) looks like a port nobody listens on, and is not noticed.
"""

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_finding import HostFinding
from llx.bootstrap.remote_control import LOOPBACK
from llx.bootstrap.shell import ForbiddenError, Shell
from llx.errors import ExitCode, LlxError
from llx.host_ports import HostPorts
from llx.settings import ClusterSettings

_FULL_MESH = 16
_NEXT = 8
_WAIT_S = 3
_EXPOSURE_WAIT_S = 2.0
_SILENCE = re.compile(r"timed out|oute to host|unreachable", re.IGNORECASE)
_TIMED_OUT = 124
_NOBODYS_PORT = 1

# Tries all of ADDRESS PORT … at once and says of each: exit code, message. Some systems' bash has
# no /dev/tcp; a port of loopback tells.
_SCRIPT = r"""
LC_ALL=C
export LC_ALL
wait_s=$1
shift
try_bash() { timeout "$wait_s" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1; }
try_python() {
    timeout "$wait_s" "$python" -I -c 'import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])))' "$1" "$2" 2>&1
}
python=$(command -v python3)
case $(try_bash 127.0.0.1 1 && echo refused) in
    *refused*) by=try_bash ;;
    *) [ -n "$python" ] || exit 0; by=try_python ;;
esac
while [ $# -gt 1 ]; do
    {
        said=$($by "$1" "$2")
        printf '%s\t%s\t%s\t%s\n' "$1" "$2" $? "$(printf %s "$said" | tail -n 1)"
    } &
    shift 2
done
wait
"""


@dataclass(frozen=True, slots=True)
class Route:
    """From one host to a port of another. `is_open` is None when it could not be tried."""

    source: str
    target: str
    address: str
    port: int
    is_open: bool | None


def targets_of(settings: ClusterSettings, hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Whom each of `hosts` is tried to reach: all others; of many, the head and the next few."""
    if len(hosts) <= _FULL_MESH:
        return {each: tuple(other for other in hosts if other != each) for each in hosts}
    head = settings.head_host.name if settings.head_host is not None else ""
    found = {}
    for index, each in enumerate(hosts):
        after = [*hosts[index + 1 :], *hosts[:index]]
        near = after if each == head else [head, *after[:_NEXT]]
        found[each] = tuple(name for name in dict.fromkeys(near) if name in hosts and name != each)
    return found


def ports_of(settings: ClusterSettings, target: str) -> tuple[int, ...]:
    """The ports of a host to try: one of each kind that other hosts use."""
    ports = HostPorts(settings.network.first_port)
    head = settings.head_host
    of_head = (ports.gcs, ports.scheduler) if head is not None and head.name == target else ()
    return (*of_head, ports.node_manager, ports.ray_workers[0], ports.instances[0])


def probe_routes(
    settings: ClusterSettings, shells: Mapping[str, Shell], addresses: Mapping[str, str]
) -> list[Route]:
    """Try the routes between hosts, from all of them at once; takes a few seconds at most.

    Args:
        settings: Of the cluster.
        shells: Connections, by host.
        addresses: Cluster addresses; a host without one is left out.
    """
    hosts = [h.name for h in settings.hosts if h.name in shells and addresses.get(h.name)]
    targets = targets_of(settings, hosts)

    def work(name: str) -> list[Route]:
        wanted = [
            Route(name, target, addresses[target], port, is_open=None)
            for target in targets[name]
            for port in ports_of(settings, target)
        ]
        return _probe(shells[name], wanted) if wanted else []

    results = fan_out(hosts, work).values()
    return [route for result in results if not isinstance(result, LlxError) for route in result]


def find_blocked(routes: Sequence[Route]) -> Iterator[HostFinding]:
    """What is wrong with `routes`: pure."""
    sources_to: dict[str, set[str]] = {}
    closed: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        sources_to.setdefault(route.target, set()).add(route.source)
        if route.is_open is False:
            closed.setdefault((route.source, route.target), []).append(route)
    for target, sources in sources_to.items():
        if len(sources) > 1 and all((source, target) in closed for source in sources):
            ports = {each.port for source in sources for each in closed.pop((source, target))}
            address = next(each.address for each in routes if each.target == target)
            yield _blocked(target, f"no other host reaches {address}, {_in_words(ports)}")
    for (source, target), found in closed.items():
        ports = {each.port for each in found}
        place = f"{target} ({found[0].address})"
        yield _blocked(source, f"it does not reach {place}, {_in_words(ports)}")
    untried = {each.source for each in routes if each.is_open is None}
    for source in dict.fromkeys(each.source for each in routes if each.source in untried):
        yield HostFinding(
            source,
            "reachability",
            "not checked: there is neither a bash with /dev/tcp nor python3",
            "install bash there",
            is_fatal=False,
        )


def find_forbidden(settings: ClusterSettings, shells: Mapping[str, Shell]) -> list[HostFinding]:
    """Hosts whose sshd does not let `llx` reach what listens on their loopback; tries it."""
    head = settings.head_host.name if settings.head_host is not None else ""
    num_private = settings.num_gateways if settings.gateway.host in LOOPBACK else 0
    others = [each.name for each in settings.hosts if each.name != head]
    needed = {head: "the control API"} | dict.fromkeys(
        others[: max(0, num_private - 1)], "gateways"
    )

    def work(name: str) -> None:
        with contextlib.closing(shells[name].dial("127.0.0.1", _NOBODYS_PORT, timeout_s=_WAIT_S)):
            pass

    tried = fan_out([name for name in needed if name in shells], work)
    return [
        HostFinding(
            name,
            "ssh",
            f"its sshd forbids port forwarding, by which `llx` reaches {needed[name]} there",
            error.remedy,
        )
        for name, error in tried.items()
        if isinstance(error, ForbiddenError)
    ]


def exposed_ports(facts: Mapping[str, HostFacts], settings: ClusterSettings) -> dict[str, set[int]]:
    """Ports of the running cluster that answer this machine, by host.

    Empty for all if this machine is a host of the cluster: to it they must be open.
    """
    ports = HostPorts(settings.network.first_port)
    doors = {
        f"{name} {each.port}": (name, fact.cluster_address, each.port)
        for name, fact in facts.items()
        for each in fact.listeners
        if each.mark in fact.marks
        and fact.cluster_address
        and not each.is_loopback
        and ports.first <= each.port <= ports.last
    }
    own = {each.cluster_address for each in facts.values()}
    found: dict[str, set[int]] = {name: set() for name in facts}

    def work(key: str) -> bool | None:
        _, address, port = doors[key]
        return _answers(address, port, own)

    for key, is_open in fan_out(list(doors), work, limit=64).items():
        name, _, port = doors[key]
        if is_open is None:
            return {each: set() for each in facts}
        if is_open is True:
            found[name].add(port)
    return found


def find_exposed(
    exposed: Mapping[str, set[int]], settings: ClusterSettings
) -> Iterator[HostFinding]:
    """A warning for each host whose ports answer machines outside the cluster: pure."""
    first, last = HostPorts(settings.network.first_port).ray
    for host, ports in exposed.items():
        of_ray = sorted(each for each in ports if first <= each <= last)
        if not ports:
            continue
        guard = "a token" + (" and TLS" if settings.network.tls else ", sent in clear: TLS is off")
        what = f"of them {len(of_ray)} of Ray, behind {guard}" if of_ray else "behind keys"
        yield HostFinding(
            host,
            "exposure",
            f"{_in_words(ports)} answer machines outside the cluster, such as this one ({what})",
            "close them to all but the cluster's hosts: llx play firewall",
            is_fatal=False,
        )


def _probe(shell: Shell, wanted: Sequence[Route]) -> list[Route]:
    places = [text for each in wanted for text in (each.address, str(each.port))]
    done = shell.run(
        ["sh", "-s", "--", str(_WAIT_S), *places],
        stdin=f'main() {{\n{_SCRIPT}\n}}\nmain "$@" </dev/null\n'.encode(),
        timeout_s=10 * _WAIT_S,
    )
    verdicts: dict[tuple[str, str], bool | None] = {}
    for line in done.stdout.splitlines():
        address, port, code, said = [*line.split("\t"), "", "", ""][:4]
        verdicts[address, port] = _verdict(code, said)
    return [
        Route(r.source, r.target, r.address, r.port, verdicts.get((r.address, str(r.port))))
        for r in wanted
    ]


def _verdict(code: str, said: str) -> bool | None:
    if code == "0" or "refused" in said:
        return True
    if code == str(_TIMED_OUT) or _SILENCE.search(said):
        return False
    return None


def _answers(address: str, port: int, own: set[str]) -> bool | None:
    """Whether a connection is accepted; None if it comes from one of `own` itself."""
    try:
        connection = socket.create_connection((address, port), timeout=_EXPOSURE_WAIT_S)
    except OSError:
        return False
    with connection:
        here = ipaddress.ip_address(connection.getsockname()[0].partition("%")[0])
    return None if str(here) in own else True


def _blocked(host: str, problem: str) -> HostFinding:
    return HostFinding(
        host,
        "reachability",
        f"{problem}: no answer",
        "open the cluster's ports between its hosts, or set hosts[].cluster_address to an address "
        "that the others reach",
        ExitCode.UNREACHABLE,
    )


def _in_words(ports: set[int]) -> str:
    """``port 8000``, ``ports 1-3, 7``."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and runs[-1][-1] == port - 1:
            runs[-1].append(port)
        else:
            runs.append([port])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"port{'s' if len(ports) > 1 else ''} {', '.join(texts)}"
