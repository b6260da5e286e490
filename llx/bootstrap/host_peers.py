"""What must be true of the hosts together: that they are different machines, and alike. Pure."""

import ipaddress
from collections.abc import Iterator, Mapping
from itertools import combinations

from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.errors import ExitCode
from llx.settings import ClusterSettings

__all__ = ["find"]


def find(settings: ClusterSettings, facts: Mapping[str, HostFacts]) -> Iterator[HostFinding]:
    """Findings about pairs of hosts and about all of them."""
    hosts = [facts[each.name] for each in settings.hosts if each.name in facts]
    for one, other in combinations(hosts, 2):
        yield from _pair(one, other)
    yield from _machines(hosts)
    yield from _claims(settings, hosts)
    if not settings.network.tls and len(settings.hosts) > 1:
        yield HostFinding(
            CLUSTER,
            "tls",
            "network.tls is off: whoever can read the traffic between hosts reads Ray's token, "
            "and with it runs code on every host",
            "leave it on, unless that network carries nothing but this cluster",
            is_fatal=False,
        )


def _pair(one: HostFacts, other: HostFacts) -> Iterator[HostFinding]:
    """At most one finding: the first of these includes the rest."""
    if one.boot_id and one.boot_id == other.boot_id and _shared_addresses(one, other):
        yield HostFinding(
            other.host,
            "machine",
            f"it is the same machine as {one.host} (hostname {other.hostname})",
            "name each machine once",
            ExitCode.USAGE,
        )
    elif one.home_identity and one.home_identity == other.home_identity:
        yield HostFinding(
            other.host,
            "home",
            f"it shares the home directory {other.home} with {one.host}"
            + (" (network file system)" if other.is_home_remote else ""),
            "give one of them a user with a local home directory (hosts[].user)",
            ExitCode.USAGE,
        )
    elif one.cluster_address and one.cluster_address == other.cluster_address:
        yield HostFinding(
            other.host,
            "address",
            f"{other.cluster_address} is the address of {one.host}, too",
            "set hosts[].cluster_address to the address under which the other hosts reach it",
            ExitCode.USAGE,
        )


def _shared_addresses(one: HostFacts, other: HostFacts) -> set[str]:
    """Those that only one machine can have, leaving out what every machine has."""
    shared = set(one.addresses) & set(other.addresses)
    return {each for each in shared if not ipaddress.ip_address(each).is_loopback}


def _machines(hosts: list[HostFacts]) -> Iterator[HostFinding]:
    kinds = dict.fromkeys(each.machine for each in hosts if each.machine)
    if len(kinds) > 1:
        groups = [
            f"{kind}: {', '.join(each.host for each in hosts if each.machine == kind)}"
            for kind in kinds
        ]
        yield HostFinding(
            CLUSTER,
            "system",
            f"its hosts are of different architectures ({'; '.join(groups)})",
            "make one cluster of each",
            ExitCode.USAGE,
        )


def _claims(settings: ClusterSettings, hosts: list[HostFacts]) -> Iterator[HostFinding]:
    """Hosts that belong to clusters of this one's name, but not to one and the same."""
    ids: dict[str, list[str]] = {}
    for each in hosts:
        claim = each.claim
        if claim is not None and claim.cluster == settings.cluster and claim.cluster_id:
            ids.setdefault(claim.cluster_id, []).append(each.host)
    if len(ids) > 1:
        groups = " and ".join(", ".join(names) for names in ids.values())
        yield HostFinding(
            CLUSTER,
            "cluster",
            f'{groups} belong to different clusters that are both called "{settings.cluster}"',
            "give this one another name (`cluster`), or `llx down --purge` the other",
            ExitCode.CONFLICT,
        )
