"""Figures over seeds: means with their intervals, and ratios to the first policy."""

import math
import statistics
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from llx.sim.samples import ALL, OF_CLASSES, OF_GOALS, OF_RUNS, Run

# Student's t for 95 % and 1, 2, … degrees of freedom; with more the last one errs on the safe side.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Value):
    """A mean over seeds and its 95 % interval (Student's t); no interval of one seed."""

    mean: float
    low: float | None = None
    high: float | None = None


class Figure(Interval):
    """A figure; `ratio`: to that of the first policy at the same rate, seed by seed.

    The ratio is a geometric mean. None: this is the first policy, or there is nothing to divide by.
    """

    ratio: Interval | None = None


class Row(_Value):
    """One policy at one rate, of one class or of all; times in seconds."""

    policy: str
    rate: float | None
    priority_class: str
    requests: int
    seeds: tuple[int, ...]
    figures: dict[str, Figure]
    trace_hashes: tuple[str, ...]


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """A row for each policy, rate and class, in the order of the runs; no classes if it is one."""
    groups: dict[tuple[float | None, str], list[Run]] = {}
    for each in runs:
        groups.setdefault((each.rate, each.policy), []).append(each)
    firsts: dict[float | None, list[Run]] = {}
    rows = []
    for (rate, _), group in groups.items():
        first = firsts.setdefault(rate, group)
        classes = dict.fromkeys(name for each in group for name in each.samples)
        # A class that a seed has nobody of has no figures to pair.
        names = [name for name in classes if all(name in each.samples for each in group)]
        rows += [_row(group, first, name) for name in (names if len(names) > 2 else [ALL])]
    return rows


def interval(values: Sequence[float]) -> Interval:
    """Of one value for each seed."""
    center = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=center)
    half = _half_width(values)
    return Interval(mean=center, low=center - half, high=center + half)


def _row(group: Sequence[Run], first: Sequence[Run], name: str) -> Row:
    figures = {}
    base = first if first is not group and all(name in each.samples for each in first) else None
    has_goals = group[0].samples[name].num_good is not None
    measures = {**OF_CLASSES, **(OF_GOALS if has_goals else {})}
    for title, measure in measures.items():
        values = [measure(each, name) for each in group]
        against = [measure(each, name) for each in base] if base else None
        figures[title] = _figure(values, against)
    if name == ALL:
        for title, of_run in OF_RUNS.items():
            values = [of_run(each.result) for each in group]
            against = [of_run(each.result) for each in base] if base else None
            figures[title] = _figure(values, against)
    return Row(
        policy=group[0].policy,
        rate=group[0].rate,
        priority_class=name,
        requests=sum(each.samples[name].num_requests for each in group),
        seeds=tuple(each.seed for each in group),
        figures=figures,
        trace_hashes=tuple(each.result.trace_hash for each in group),
    )


def _figure(values: Sequence[float], against: Sequence[float] | None) -> Figure:
    own = interval(values)
    return Figure(
        mean=own.mean,
        low=own.low,
        high=own.high,
        ratio=_ratio(values, against) if against else None,
    )


def _ratio(values: Sequence[float], against: Sequence[float]) -> Interval | None:
    if not all(each > 0 for each in (*values, *against)):
        return None
    logs = [math.log(one / other) for one, other in zip(values, against, strict=True)]
    center = statistics.fmean(logs)
    if len(logs) < 2:
        return Interval(mean=math.exp(center))
    half = _half_width(logs)
    return Interval(
        mean=math.exp(center), low=math.exp(center - half), high=math.exp(center + half)
    )


def _half_width(values: Sequence[float]) -> float:
    count = len(values)
    return _T[min(count - 1, len(_T)) - 1] * statistics.stdev(values) / math.sqrt(count)
