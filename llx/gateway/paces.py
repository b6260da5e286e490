"""How fast each instance serves, as this gateway sees it: tokens, first tokens, gaps. Pure.

A token costs an addition, and a count in a bucket. What is told is of the last half minute to a
minute (tokens: of the last 2 to 4 seconds): two windows, of which the older one is dropped.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from llx.core.latency_buckets import bucket_of
from llx.core.model import InstanceId
from llx.wire import InstancePace

_TOKENS_S: Final = 2.0
_LATENCIES_S: Final = 30.0


@dataclass(slots=True)
class _Window:
    """Since a moment."""

    since: float
    tokens: Counter[InstanceId] = field(default_factory=Counter)
    ttft: dict[InstanceId, Counter[int]] = field(default_factory=dict)
    itl: dict[InstanceId, Counter[int]] = field(default_factory=dict)


class Paces:
    """Of all instances of a pool.

    Args:
        now: On this process's monotonic clock, in seconds, as everywhere here.
    """

    def __init__(self, now: float) -> None:
        self._rates = (_Window(now), _Window(now))
        self._latencies = (_Window(now), _Window(now))
        """The older, and that which is counted in."""

    def note_tokens(self, instance: InstanceId, count: int) -> None:
        """So many tokens of an instance count."""
        self._rates[1].tokens[instance] += count

    def note_first(self, instance: InstanceId, ttft_s: float) -> None:
        """A request's first token is there, so long after it came."""
        counts = self._latencies[1].ttft.get(instance)
        if counts is None:
            counts = self._latencies[1].ttft[instance] = Counter()
        counts[bucket_of(ttft_s)] += 1

    def note_gap(self, instance: InstanceId, gap_s: float) -> None:
        """Further tokens of a request are there, so long after those before."""
        counts = self._latencies[1].itl.get(instance)
        if counts is None:
            counts = self._latencies[1].itl[instance] = Counter()
        counts[bucket_of(gap_s)] += 1

    def told(self, now: float) -> dict[InstanceId, InstancePace]:
        """Of the instances that anything came of lately."""
        self._rates = _turned(self._rates, now, _TOKENS_S)
        self._latencies = _turned(self._latencies, now, _LATENCIES_S)
        took_s = max(now - self._rates[0].since, 1e-3)
        tokens = self._rates[0].tokens + self._rates[1].tokens
        ttft, itl = (
            _merged(*(getattr(each, name) for each in self._latencies)) for name in ("ttft", "itl")
        )
        return {
            each: InstancePace(
                round(tokens[each] / took_s, 1), dict(ttft.get(each, {})), dict(itl.get(each, {}))
            )
            for each in {*tokens, *ttft, *itl}
        }


def _turned(
    windows: tuple[_Window, _Window], now: float, length_s: float
) -> tuple[_Window, _Window]:
    newer = windows[1]
    if now - newer.since < length_s:
        return windows
    if now - newer.since >= 2 * length_s:  # nobody has asked for long: the rest is too old
        return _Window(now - length_s), _Window(now)
    return newer, _Window(now)


def _merged(
    *windows: dict[InstanceId, Counter[int]],
) -> dict[InstanceId, Counter[int]]:
    merged: dict[InstanceId, Counter[int]] = {}
    for window in windows:
        for instance, counts in window.items():
            merged[instance] = merged.get(instance, Counter()) + counts
    return merged
