"""What several snapshots tell that one does not: rates, and how totals went. Pure."""

import statistics
from dataclasses import dataclass

from llx.api import MoveOutcome, Snapshot

MAX_POINTS = 240
_RATE_OVER_S = 3.0
"""Gateways report twice a second; over less, a rate would jump about."""


@dataclass(frozen=True, slots=True)
class Point:
    """Totals at one moment. `tokens`: each gateway's counter; `kv`: share of blocks in use."""

    at: float
    tokens: dict[str, int]
    running: int
    waiting: int
    kv: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The last snapshots' totals, the oldest first."""

    points: tuple[Point, ...] = ()

    def then(self, snapshot: Snapshot) -> "Trend":
        """With one more."""
        return Trend((*self.points, point_of(snapshot))[-MAX_POINTS:])

    @property
    def tokens_per_s(self) -> float | None:
        """Of the last seconds; None: not known yet."""
        if len(self.points) < 2:
            return None
        last = self.points[-1]
        first = next(
            (each for each in reversed(self.points[:-1]) if last.at - each.at >= _RATE_OVER_S),
            self.points[0],
        )
        return _rate(first, last)

    @property
    def token_rates(self) -> list[float]:
        """Tokens per second between each two snapshots."""
        return [_rate(a, b) for a, b in zip(self.points, self.points[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole cluster's figures of one snapshot; `downtime_ms`: median of the moves shown."""

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    in_flight: int
    requests: int
    failed: int
    refused: int
    moving: int
    moved: int
    downtime_ms: float | None

    @property
    def kv(self) -> float:
        """Share of KV blocks in use."""
        return self.blocks_used / self.blocks_total if self.blocks_total else 0.0


def totals_of(snapshot: Snapshot) -> Totals:
    """Sums over instances, gateways and migrations."""
    loads = [each.load for each in snapshot.status.instances if each.load is not None]
    gateways = snapshot.status.gateways
    moved = [each for each in snapshot.migrations if each.outcome is MoveOutcome.MOVED]
    downtimes = [each.downtime_ms for each in moved if each.downtime_ms is not None]
    return Totals(
        running=sum(each.running for each in loads),
        waiting=sum(each.waiting for each in loads),
        blocks_used=sum(each.blocks_used for each in loads),
        blocks_total=sum(each.blocks_total for each in loads),
        in_flight=sum(each.in_flight for each in gateways),
        requests=sum(each.requests for each in gateways),
        failed=sum(each.failed for each in gateways),
        refused=sum(each.refused for each in gateways),
        moving=sum(each.outcome is None for each in snapshot.migrations),
        moved=len(moved),
        downtime_ms=statistics.median(downtimes) if downtimes else None,
    )


def point_of(snapshot: Snapshot) -> Point:
    """What of a snapshot is remembered."""
    totals = totals_of(snapshot)
    tokens = {each.name: each.output_tokens for each in snapshot.status.gateways}
    return Point(snapshot.at, tokens, totals.running, totals.waiting, totals.kv)


def _rate(first: Point, last: Point) -> float:
    """A counter that fell began anew; a gateway that was not there before tells nothing yet."""
    seconds = last.at - first.at
    new = 0
    for gateway, tokens in last.tokens.items():
        before = first.tokens.get(gateway, tokens)
        new += tokens - before if tokens >= before else tokens
    return new / seconds if seconds > 0 else 0.0
