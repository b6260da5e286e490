"""Faults that are done on a host; those of a benchmark on the spot, whatever comes of them."""

from collections.abc import Sequence

from llx.api import ClusterStatus
from llx.bench.scenario import Fault as BenchFault
from llx.chaos import inject
from llx.chaos.grounds import Grounds
from llx.chaos.inject import Hand, ProcessId
from llx.chaos.plan import ChaosPlan, Fault, FaultKind, Role
from llx.chaos.preflight import check_partitions
from llx.chaos.victims import Victim, check_possible, choose
from llx.errors import ConfigError, NotFoundError


class Striker:
    """Kills, freezes or slows down an instance, or cuts a host off, and does not wait.

    Args:
        grounds: The cluster.
        faults: What it will be asked for.

    Raises:
        ConfigError: One of them names nobody, or cannot be done to this kind of cluster.
        ConflictError: One of them this user may not do.
        LlxError: A host that is to be cut off does not answer.
    """

    def __init__(self, grounds: Grounds, faults: Sequence[BenchFault]) -> None:
        self._grounds = grounds
        plan = ChaosPlan(faults=[_planned(each) for each in faults])
        for each in plan.faults:
            check_possible(each, on_hosts=grounds.on_hosts)
        check_partitions(plan, {name: place.hand for name, place in grounds.places.items()})

    def __call__(self, fault: BenchFault) -> None:
        """Do it; what lasts is ended by the host itself.

        Raises:
            NotFoundError: There is no such instance or host, or its process has gone.
            LlxError: The cluster or the host does not answer.
        """
        self._strike(_planned(fault))

    def _strike(self, fault: Fault) -> None:
        grounds = self._grounds
        lasts = f" for {fault.lasts_s:g} s" if fault.lasts_s else ""
        with grounds.open_control() as control:
            status = control.status()
            victim = choose(fault, status, "", hits_last=True, on_hosts=grounds.on_hosts)
            if victim.role is Role.GATEWAY:
                raise NotFoundError(f'{fault.kind}: no instance "{victim.name}"')
            control.note(f"bench {fault.kind}", f"{victim.name}{lasts}", user=grounds.user)
        place = grounds.place_of(victim.host)
        process = None
        if fault.kind is not FaultKind.PARTITION:
            process = inject.find_shimmed(place.hand, place.procs, victim.name)
        strike(fault, victim, place.hand, process, status)


def strike(
    fault: Fault, victim: Victim, hand: Hand, process: ProcessId | None, status: ClusterStatus
) -> None:
    """Do a fault that is done on a host.

    Args:
        fault: Any but a restart.
        victim: Whom it hits.
        hand: The victim's host.
        process: Which of its processes; None: the host itself is cut off.
        status: The cluster, whose other hosts those are that it is cut off from.

    Raises:
        LlxError: It cannot be done.
    """
    match fault.kind:
        case FaultKind.PARTITION:
            peers = [each.address for each in status.hosts if each.name != victim.name]
            inject.partition(hand, [each for each in peers if each], fault.lasts_s)
        case FaultKind.KILL:
            assert process is not None, "a process to kill"
            inject.kill(hand, process)
        case FaultKind.FREEZE:
            assert process is not None, "a process to freeze"
            inject.freeze(hand, process, fault.lasts_s)
        case FaultKind.SLOW:
            assert process is not None, "a process to slow down"
            inject.slow(hand, process, fault.lasts_s)
        case FaultKind.RESTART:
            raise AssertionError("the head does that")


def _planned(fault: BenchFault) -> Fault:
    target = fault.instance or fault.host
    if target in set(Role):  # which would hit any, and another one each time
        raise ConfigError(f'{fault.do}: "{target}" is nobody\'s name', remedy="name whom it hits")
    return Fault(kind=FaultKind(fault.do), target=target, for_s=fault.for_s)
