"""What the head counts as it happens, since its start. Pure; only names of bounded number.

Nothing is counted by instance or request: those come and go, and a counter of one that has gone
would never end. What is known of each instance now is `state`'s.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Protocol, assert_never

from llx.core.model import ClassName, Nanos, PoolName, RequestId
from llx.core.scheduler.commands import (
    AddInstances,
    Command,
    Dispatch,
    Emptied,
    Hold,
    Move,
    Refuse,
    Terminate,
)
from llx.specs import model_of_pool

DECISION_S: Final = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 5e-3, 25e-3, 0.1)
WAIT_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
DOWNTIME_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MOVE_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOVE_BYTES: Final = tuple(float(65536 * 4**power) for power in range(9))

ORDERED_BY: Final = ("policy", "request")
"""Of migrations: a rule's, or somebody's."""

_NANOS: Final = 1e9


class Histogram:
    """How many values fell below each of some bounds, and the sum of all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, values at most that), as Prometheus counts; the last one has them all."""
        names = [*(f"{each:g}" for each in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class Asked(Protocol):
    """What is known of a request that is being placed."""

    @property
    def pool(self) -> PoolName:
        """Of which model."""

    @property
    def priority_class(self) -> ClassName:
        """Of which class."""

    @property
    def since(self) -> Nanos:
        """When it came to its gateway."""

    @property
    def was_held(self) -> bool:
        """Whether it waits already, and was asked for again."""


class SchedulerTally:
    """What the scheduler has decided, how long that took, and how long requests waited for it.

    Attributes:
        decisions: By model, what was decided, and the rule by which or the reason for which.
        took: By model, how long the core took over a request that arrived.
        waits: By model and priority class, from a request's arrival at its gateway to its place.
    """

    def __init__(self) -> None:
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        self.took: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(DECISION_S))
        self.waits: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(WAIT_S))

    def arrived(self, pool: PoolName, took: int) -> None:
        """The core has dealt with a request that arrived; `took` in nanoseconds."""
        self.took[model_of_pool(pool)].observe(took / _NANOS)

    def count(self, command: Command, asked: Mapping[RequestId, Asked], now: Nanos) -> None:
        """The core has decided; `asked` are those that it was yet to place."""
        match command:
            case Dispatch(request=request, decision=decision):
                about = asked[request]
                self._decided(about.pool, "placed", decision.rule)
                key = model_of_pool(about.pool), about.priority_class
                self.waits[key].observe(max(0, now - about.since) / _NANOS)
            case Hold(request=request, decision=nomination):
                if not asked[request].was_held:
                    rule = "" if nomination is None else nomination.rule
                    self._decided(asked[request].pool, "held", rule)
            case Refuse(request=request, reason=reason):
                self._decided(asked[request].pool, "refused", reason.value)
            case Move(pool=pool, decision=decision):
                self._decided(pool, "move", decision.rule)
            case AddInstances(pool=pool, decision=decision):
                self._decided(pool, "grow", decision.rule)
            case Terminate(pool=pool, decision=decision):
                self._decided(pool, "shrink", decision.rule)
            case Emptied():
                pass
            case _:
                assert_never(command)

    def _decided(self, pool: PoolName, what: str, why: str) -> None:
        self.decisions[model_of_pool(pool), what, why] += 1


@dataclass(slots=True)
class MoveTally:
    """How migrations ended.

    Attributes:
        ended: By one of `ORDERED_BY`, and outcome.
        downtime: In seconds, as gateways saw it.
        took: In seconds, of those that moved their request.
        size: Bytes of KV that were copied, of the same.
    """

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    downtime: Histogram = field(default_factory=lambda: Histogram(DOWNTIME_S))
    took: Histogram = field(default_factory=lambda: Histogram(MOVE_S))
    size: Histogram = field(default_factory=lambda: Histogram(MOVE_BYTES))

    def over(self, by: str, outcome: str) -> None:
        """One has ended; a given-up one of which more is heard ends once more."""
        self.ended[by, outcome] += 1

    def moved(self, took_ms: float, size_bytes: int) -> None:
        """A source has said that its request goes on at the target."""
        self.took.observe(took_ms / 1000)
        self.size.observe(size_bytes)

    def saw(self, downtime_ms: float) -> None:
        """A gateway has seen a stream go on at the target."""
        self.downtime.observe(downtime_ms / 1000)
