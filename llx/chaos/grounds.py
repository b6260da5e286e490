"""The cluster on which a plan is done: its machines, and the way to its head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from llx.chaos.inject import Hand
from llx.client import Cluster


@dataclass(frozen=True, slots=True)
class Place:
    """A machine of the cluster: how it is worked on, and where its processes have their files."""

    hand: Hand
    procs: PurePath


@dataclass(frozen=True, slots=True)
class Grounds:
    """The cluster on which a plan is done.

    Attributes:
        open_control: A new client of its head, wherever that is by now.
        places: By name of the host; of a cluster on one machine, by "" alone.
        head: The host of the head; "": this machine.
        user: Who is at work, for the audit trail.
    """

    open_control: Callable[[], Cluster]
    places: Mapping[str, Place]
    head: str
    user: str

    @property
    def on_hosts(self) -> bool:
        """Whether its machines can be told apart."""
        return "" not in self.places

    def place_of(self, host: str) -> Place:
        """Of a host, as the status names it."""
        return self.places[host if self.on_hosts else ""]
