"""Two benchmarks of one scenario side by side: ratios, and how sure they are.

Repetitions are paired: the nth of both had the same seed, and so the same requests at the same
times; request by request they are paired, too. A latency's figure is that of the requests of all
repetitions together: of one run's hundred requests P99 is the second slowest, which says little.

The 95 % interval is a bootstrap over repetitions. Requests of one run wait for each other, so only
whole runs are independent (Davison & Hinkley, Bootstrap Methods, 3.8: clusters are resampled, and
not what is in them). Where there are too few of them to resample, requests within each are, too.
Rates, counts and gaps between tokens are figures of whole runs.
"""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Run
from llx.bench.summary import Figures, percentile
from llx.errors import ConfigError

_ROUNDS: Final = 400
_SEED: Final = 20260101
_LOW, _HIGH = 2.5, 97.5
_ENOUGH: Final = 5
"""Repetitions that a bootstrap can be of."""
_FEW: Final = 3
"""Fewer repetitions than this say nothing of how much another one would differ."""
_MAY_FAIL_MORE: Final = 0.01
"""Share of the requests; who fails more is compared by those that were easy."""

LATENCIES: Final[Mapping[str, Callable[[Record], float | None]]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2el": lambda record: record.e2e_s,
}
STATISTICS: Final[Mapping[str, Callable[[list[float]], float]]] = {
    "mean": statistics.fmean,
    "median": lambda ordered: percentile(ordered, 50),
    "p90": lambda ordered: percentile(ordered, 90),
    "p99": lambda ordered: percentile(ordered, 99),
}
"""Of values from the least to the largest."""
RATES: Final = ("request_throughput", "request_goodput", "output_throughput")
"""Of these, more is better."""
COUNTS: Final[Mapping[str, str]] = {
    "failed": "failed",
    "preemptions": "llx_preemptions",
    "instances": "llx_instances",
}
"""Of whole runs, as in their summaries; compared by their means, for a count is often none."""
GAPS: Final[Mapping[str, str]] = {"p99_itl": "p99_itl_ms"}
"""Of whole runs, as in their summaries: of gaps between tokens, of all their requests."""


class Verdict(StrEnum):
    """What the interval says of a bound."""

    NONE = ""
    HOLDS = "holds"
    UNCLEAR = "unclear"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Ratio:
    """`other` / `base` of one figure, with its 95 % interval; latencies are in milliseconds.

    Infinite: `base` is 0, and `other` is not.
    """

    name: str
    base: float
    other: float
    ratio: float
    low: float
    high: float
    bound: float | None = None
    is_doubtful: bool = False
    """There are too few repetitions, or (of a latency) `other` has lost requests of `base`."""

    @property
    def verdict(self) -> Verdict:
        """A rate must be at least its bound times the base's, anything else at most."""
        if self.bound is None:
            return Verdict.NONE
        if self.is_doubtful:
            return Verdict.UNCLEAR
        low, high, bound = self.low, self.high, self.bound
        if self.name in RATES:
            low, high, bound = -high, -low, -bound
        if high <= bound:
            return Verdict.HOLDS
        return Verdict.BROKEN if low > bound else Verdict.UNCLEAR


@dataclass(frozen=True, slots=True)
class _Pair:
    """A repetition: both runs' figures, and their requests that ended well in both."""

    base: Figures
    other: Figures
    records: tuple[tuple[Record, Record], ...]


def parse_bound(text: str) -> tuple[str, float]:
    """``p99_ttft=1.05``.

    Raises:
        ConfigError: It is none.
    """
    name, _, number = text.partition("=")
    name = name.strip().removesuffix("_ms")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not bound > 0 or name not in figure_names():
        raise ConfigError(
            f'"{text}" is no bound: write p99_ttft=1.05',
            remedy=f"figures: {', '.join(figure_names())}",
        )
    return name, bound


def figure_names() -> list[str]:
    """What is compared."""
    latencies = [f"{each}_{of}" for of in LATENCIES for each in STATISTICS]
    return [*latencies, *GAPS, *RATES, *COUNTS]


def compare(
    base: Sequence[Run],
    other: Sequence[Run],
    bounds: Mapping[str, float],
    priority_class: str | None = None,
) -> list[Ratio]:
    """The ratio of each figure that both have.

    Args:
        base: Runs of one variant.
        other: Runs of another, or of the same one another time.
        bounds: Of some figures, by their names.
        priority_class: Only requests that asked for it; None: all.

    Raises:
        ConfigError: No repetition of both has the same schedule, or no request of that class.
    """
    pairs = _pairs(base, other, priority_class)
    found = [
        ratio for of, value in LATENCIES.items() for ratio in _latencies(pairs, of, value, bounds)
    ]
    gaps = [each for name in GAPS if (each := _of_runs(pairs, name, bounds)) is not None]
    wholes = [
        each for name in (*RATES, *COUNTS) if (each := _of_runs(pairs, name, bounds)) is not None
    ]
    is_lossy = _is_lossy(pairs)
    return [
        *(replace(each, is_doubtful=each.is_doubtful or is_lossy) for each in [*found, *gaps]),
        *wholes,
    ]


def _is_lossy(pairs: Sequence[_Pair]) -> bool:
    """Whether fewer of the requests ended well with `other`."""
    base = math.fsum(each.base.get("completed") or 0 for each in pairs)
    other = math.fsum(each.other.get("completed") or 0 for each in pairs)
    return other < base * (1 - _MAY_FAIL_MORE)


def _pairs(ones: Sequence[Run], twos: Sequence[Run], priority_class: str | None) -> list[_Pair]:
    by_seed = {each.summary["llx_seed"]: each for each in twos}
    pairs = []
    for one in ones:
        two = by_seed.get(one.summary["llx_seed"])
        if two is not None and one.summary["llx_is_whole"] and two.summary["llx_is_whole"]:
            records = [
                [e for e in run.records() if priority_class in (None, e.priority_class)]
                for run in (one, two)
            ]
            base, other = (_figures(run, priority_class) for run in (one, two))
            pairs.append(_Pair(base, other, _matched(*records)))
    if not any(each.records for each in pairs):
        of_class = "" if priority_class is None else f" of class {priority_class!r}"
        raise ConfigError(
            f"nothing to compare: no two runs have the same seed and requests{of_class}",
            remedy="run the same scenario both times",
        )
    return pairs


def _figures(run: Run, priority_class: str | None) -> Figures:
    """Of the whole run, or of those of its requests that asked for a class."""
    if priority_class is not None:
        return dict(run.summary["llx_classes"].get(priority_class, {}))
    names = (*RATES, *COUNTS.values(), *GAPS.values(), "completed")
    return {name: run.figure(name) for name in names}


def _matched(one: Sequence[Record], two: Sequence[Record]) -> tuple[tuple[Record, Record], ...]:
    """Requests of the same number and lengths that ended well in both."""
    others = {each.number: each for each in two if each.outcome is Outcome.OK}
    return tuple(
        (each, match)
        for each in one
        if each.outcome is Outcome.OK
        and (match := others.get(each.number)) is not None
        and (each.num_prompt, each.max_outputs) == (match.num_prompt, match.max_outputs)
    )


def _latencies(
    pairs: Sequence[_Pair],
    of: str,
    value: Callable[[Record], float | None],
    bounds: Mapping[str, float],
) -> list[Ratio]:
    """Each statistic of a latency. All are of the same draws, so that they can be read together."""
    samples = [
        [
            (a, b)
            for one, two in pair.records
            if (a := value(one)) is not None and (b := value(two)) is not None
        ]
        for pair in pairs
    ]
    samples = [each for each in samples if each]
    if not samples:
        return []
    draw = random.Random(_SEED)

    def sides(drawn: Sequence[Sequence[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
        """Of the requests of all repetitions."""
        base = sorted(a for each in drawn for a, _ in each)
        other = sorted(b for each in drawn for _, b in each)
        return {name: (found(base), found(other)) for name, found in STATISTICS.items()}

    def resampled() -> dict[str, float]:
        drawn = draw.choices(samples, k=len(samples))
        if len(samples) < _ENOUGH:
            drawn = [draw.choices(each, k=len(each)) for each in drawn]
        return {name: _quotient(other, base) for name, (base, other) in sides(drawn).items()}

    rounds = [resampled() for _ in range(_ROUNDS)]
    ratios = [
        _ratio(f"{name}_{of}", base * 1000, other * 1000, [each[name] for each in rounds], bounds)
        for name, (base, other) in sides(samples).items()
    ]
    return [replace(each, is_doubtful=len(samples) < _FEW) for each in ratios]


def _of_runs(pairs: Sequence[_Pair], name: str, bounds: Mapping[str, float]) -> Ratio | None:
    """Of a rate or of gaps the median over repetitions, of a count the mean."""
    key = {**COUNTS, **GAPS}.get(name, name)
    samples = [
        (a, b)
        for pair in pairs
        if (a := pair.base.get(key)) is not None and (b := pair.other.get(key)) is not None
    ]
    if not samples:
        return None
    draw = random.Random(_SEED)
    middle = statistics.fmean if name in COUNTS else statistics.median

    def sides(drawn: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return middle([a for a, _ in drawn]), middle([b for _, b in drawn])

    def resampled() -> float:
        base, other = sides(draw.choices(samples, k=len(samples)))
        return _quotient(other, base)

    rounds = [resampled() for _ in range(_ROUNDS)]
    ratio = _ratio(name, *sides(samples), rounds, bounds)
    return replace(ratio, is_doubtful=len(samples) < _FEW)


def _ratio(
    name: str,
    base: float,
    other: float,
    resampled: Sequence[float],
    bounds: Mapping[str, float],
) -> Ratio:
    ratios = sorted(resampled)
    return Ratio(
        name,
        base,
        other,
        _quotient(other, base),
        percentile(ratios, _LOW),
        percentile(ratios, _HIGH),
        bounds.get(name),
    )


def _quotient(other: float, base: float) -> float:
    if base > 0:
        return other / base
    return 1.0 if other == base else math.inf
