"""What a head must remember of where things are, for the one that comes after it.

While a host is away nobody can be asked; without this file a new head would take its instances from
the gateways, and their streams with them, or start them a second time elsewhere. What is no longer
asked for and has not gone yet is here, too: its streams may finish under the next head. And so are
failures, as nobody should get a clean slate from a head that fell.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec

from llx.cluster.state_dir import write_private
from llx.head_copy import HeadMoved
from llx.log import get_log
from llx.specs import GatewaySpec, InstanceSpec

log = get_log(__name__)


class PlacedUnit(msgspec.Struct, frozen=True):
    """Where an instance or a gateway is, and its past.

    Attributes:
        host: Where.
        addresses: Of an instance: where gateways reach it; empty: it was not ready.
        spec: What was asked for; one that is so no longer is still to be drained.
        failures: See `llx.cluster.fleet.unit.Unit`, also for the others.
    """

    host: str
    addresses: list[str] = []
    spec: InstanceSpec | GatewaySpec | None = None
    failures: int = 0
    last_failure: str = ""
    was_ready: bool = False
    is_cordoned: bool = False


class Placements(msgspec.Struct, frozen=True):
    """Where everything is.

    Attributes:
        instances: By name.
        gateways: By name.
        leaving: Hosts that are to be emptied and are not yet.
        wanted: The instances that should run: of a model whose number is a range, they are as many
            as scaling has wanted last. Those to be kept first come first.
    """

    instances: dict[str, PlacedUnit] = {}
    gateways: dict[str, PlacedUnit] = {}
    leaving: list[str] = []
    wanted: list[str] = []


def load_placements(path: Path) -> Placements:
    """What the file says; nothing if it is missing or damaged: what runs is found anyway."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Placements)
    except FileNotFoundError:
        return Placements()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("placements.unreadable", path=path, error=error)
        return Placements()


def save_placements(path: Path, placements: Placements) -> None:
    """Write the file; blocking."""
    write_private(path, msgspec.json.format(msgspec.json.encode(placements), indent=1).decode())


def without_hosts(placements: Placements, away: Collection[str]) -> Placements:
    """`placements` without what is on these hosts: it is to be placed anew."""
    return Placements(
        instances={n: e for n, e in placements.instances.items() if e.host not in away},
        gateways={n: e for n, e in placements.gateways.items() if e.host not in away},
        leaving=[each for each in placements.leaving if each not in away],
        wanted=placements.wanted,
    )


def load_moved(path: Path) -> HeadMoved | None:
    """How this head came to its host; None if it was there before, or the file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=HeadMoved)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("moved.unreadable", path=path, error=error)
        return None


class StopOrder(msgspec.Struct, frozen=True):
    """That the cluster is to be stopped. `deadline`, for streams, in Unix seconds."""

    deadline: float
    user: str


def load_stop_order(path: Path) -> StopOrder | None:
    """The order; None if there is none, or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StopOrder)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("stop_order.unreadable", path=path, error=error)
        return None


def save_stop_order(path: Path, order: StopOrder) -> None:
    """Write the file; blocking, quick."""
    write_private(path, msgspec.json.encode(order).decode() + "\n")


def load_cordons(path: Path) -> frozenset[str]:
    """The cordoned hosts; none if the file is missing or damaged."""
    try:
        return frozenset(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("cordons.unreadable", path=path, error=error)
        return frozenset()


def save_cordons(path: Path, hosts: frozenset[str]) -> None:
    """Write the file; blocking, quick."""
    write_private(path, msgspec.json.encode(sorted(hosts)).decode() + "\n")
