"""Latencies counted in buckets, each 9% wider than the one before: quantiles that add up.

What several gateways have counted is summed bucket by bucket; a quantile is within 5% of the truth.
"""

import math
from collections.abc import Mapping
from typing import Final

_LEAST_S: Final = 1e-5
_PER_DOUBLING: Final = 8
_MOST: Final = 8 * 27
"""The last bucket: beyond twenty minutes."""

Buckets = Mapping[int, int]
"""Bucket → how many."""


def bucket_of(seconds: float) -> int:
    """Which bucket a latency is counted in."""
    if seconds <= _LEAST_S:
        return 0
    return min(_MOST, int(_PER_DOUBLING * math.log2(seconds / _LEAST_S)))


def quantile_s(counts: Buckets, share: float) -> float | None:
    """At most so long in that share of the cases, in seconds; None: there are none."""
    total = sum(counts.values())
    if not total:
        return None
    wanted, seen = share * total, 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            break
    return _LEAST_S * float(2 ** ((bucket + 0.5) / _PER_DOUBLING))
