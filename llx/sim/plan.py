"""What is to be run, as one value: every policy at every rate with every seed."""

from collections.abc import Mapping
from dataclasses import dataclass

from llx.core.model import ClassName
from llx.sim.config import ClusterConfig
from llx.sim.supply import Source


@dataclass(frozen=True, slots=True)
class Variant:
    """A cluster under one policy."""

    policy: str
    cluster: ClusterConfig


@dataclass(frozen=True, slots=True)
class Goal:
    """What goodput asks of a request of a class, in seconds; None: nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. All policies get the same requests.

    Attributes:
        variants: The policies, the first one being that to which the others are compared.
        source: Of the requests.
        rates: Requests a second, one after the other; None: as the trace has them.
        seeds: Each is a run.
        goals: By class.
    """

    variants: tuple[Variant, ...]
    source: Source
    rates: tuple[float | None, ...]
    seeds: tuple[int, ...]
    goals: Mapping[ClassName, Goal]

    @property
    def num_runs(self) -> int:
        """How many runs that is."""
        return len(self.variants) * len(self.rates) * len(self.seeds)
