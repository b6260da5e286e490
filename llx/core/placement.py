"""Placement: on which host an instance or a gateway runs.

Pure. What runs somewhere stays there; only what has no place is given one. Hosts are tried in the
order of their listing where nothing else tells them apart, so that the same question always has the
same answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from llx.core.model import HostName, PoolName


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host as placement sees it.

    Attributes:
        host: Its name.
        num_gpus: GPUs that are not in use by somebody else; None on a host that computes on cores.
        num_cores: Cores.
        closed_because: Why nothing new goes there; empty if it may.
    """

    host: HostName
    num_gpus: int | None
    num_cores: int
    closed_because: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An instance that should run.

    Attributes:
        name: Its name.
        pool: Its pool.
        num_gpus: How many it takes where there are GPUs.
        avoids: Hosts where it is not to be placed now.
    """

    name: str
    pool: PoolName
    num_gpus: int
    avoids: frozenset[HostName] = frozenset()


@dataclass(slots=True)
class Placement:
    """Who goes where, and why somebody goes nowhere."""

    hosts: dict[str, HostName] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Filling:
    """A host while instances are being given to it."""

    room: HostRoom
    order: int
    free_gpus: int
    num_instances: int = 0
    pools: dict[PoolName, int] = field(default_factory=dict)

    def take(self, wanted: Wanted) -> None:
        self.free_gpus -= wanted.num_gpus
        self.num_instances += 1
        self.pools[wanted.pool] = self.pools.get(wanted.pool, 0) + 1

    def fits(self, wanted: Wanted) -> bool:
        """Cores are shared when they run short; GPUs never are."""
        if self.room.closed_because or self.room.host in wanted.avoids:
            return False
        return self.room.num_gpus is None or wanted.num_gpus <= self.free_gpus

    def rank(self, wanted: Wanted) -> tuple[bool, int, Fraction, int, int]:
        """Least first: most free GPUs, for whoever needs any; else fewest instances per core."""
        needs_gpus = bool(wanted.num_gpus)
        return (
            needs_gpus and self.room.num_gpus is None,
            -max(0, self.free_gpus) if needs_gpus else 0,
            Fraction(self.num_instances, max(1, self.room.num_cores)),
            self.pools.get(wanted.pool, 0),
            self.order,
        )


def place_instances(
    wanted: Sequence[Wanted], kept: Mapping[str, HostName], rooms: Sequence[HostRoom]
) -> Placement:
    """A host for every instance of `wanted`.

    Args:
        wanted: In the order in which they choose.
        kept: Where some of them are already; they stay, whatever the host's state.
        rooms: All hosts, each once.
    """
    hosts = [_Filling(room, order, room.num_gpus or 0) for order, room in enumerate(rooms)]
    by_name = {each.room.host: each for each in hosts}
    found = Placement()
    for each in wanted:
        if each.name in kept:
            found.hosts[each.name] = kept[each.name]
            if kept[each.name] in by_name:
                by_name[kept[each.name]].take(each)
    for each in wanted:
        if each.name in kept:
            continue
        fitting = [host for host in hosts if host.fits(each)]
        if not fitting:
            found.reasons[each.name] = _why_not(each, hosts)
            continue
        chosen = min(fitting, key=lambda host: host.rank(each))
        chosen.take(each)
        found.hosts[each.name] = chosen.room.host
    return found


def place_gateways(
    wanted: Sequence[str], kept: Mapping[str, HostName], rooms: Sequence[HostRoom]
) -> Placement:
    """A host for every gateway of `wanted`, each another one, in the order of `rooms`.

    One that is kept stays where it is.
    """
    found = Placement({name: kept[name] for name in wanted if name in kept})
    taken = set(found.hosts.values())
    free = [room.host for room in rooms if not room.closed_because and room.host not in taken]
    for name in wanted:
        if name in found.hosts:
            continue
        if free:
            found.hosts[name] = free.pop(0)
        else:
            closed = _closed(rooms)
            found.reasons[name] = f"no host without a gateway is left{closed}"
    return found


def _why_not(wanted: Wanted, hosts: Sequence[_Filling]) -> str:
    rooms = [host.room for host in hosts]
    usable = [host for host in hosts if not host.room.closed_because]
    open_hosts = [host for host in usable if host.room.host not in wanted.avoids]
    if not open_hosts:
        what = "no other host takes it" if usable else "no host takes instances"
        return f"{what}{_closed(rooms)}"
    free = ", ".join(f"{host.room.host}: {max(0, host.free_gpus)}" for host in open_hosts)
    return f"needs {wanted.num_gpus} free GPU(s) on one host; free: {free}{_closed(rooms)}"


def _closed(rooms: Sequence[HostRoom]) -> str:
    closed = [f"{room.host} {room.closed_because}" for room in rooms if room.closed_because]
    return f" ({', '.join(closed)})" if closed else ""
