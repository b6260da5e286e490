"""Medians, percentiles, bootstrap intervals; seeded: the same samples give the same figures."""

import random
import statistics


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the samples lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def interval_of_median(values: list[float], rounds: int = 4000) -> tuple[float, float]:
    """95% bootstrap interval of the median of paired figures (ratios or differences)."""
    rng = random.Random(20260101)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(rounds))
    return medians[int(rounds * 0.025)], medians[int(rounds * 0.975) - 1]
