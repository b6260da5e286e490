"""What is kept of a run once its requests are gone: times of each, by class."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from llx.core.model import ClassName
from llx.sim.plan import Goal
from llx.sim.record import Record, Result

ALL: Final = "all"
_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Of the requests of one class, or of all; seconds, sorted.

    Attributes:
        num_requests: That came …
        num_refused: … and were refused.
        num_good: That kept every promise of their class; None: no class has one.
        request: From arrival to the last token.
        prefill: From arrival to the first token.
        decode: From the first to the last token, for each after the first.
        mean_loss: Time that preemptions took, over those that were served.
    """

    num_requests: int
    num_refused: int
    num_good: int | None
    request: Sequence[float]
    prefill: Sequence[float]
    decode: Sequence[float]
    mean_loss: float

    @classmethod
    def of(cls, records: Sequence[Record], goals: Mapping[ClassName, Goal]) -> "Samples":
        """Of these requests, every one of which has ended."""
        served = [each for each in records if each.refusal is None]
        times = [_times(each) for each in served]
        has_goals = any(each != Goal() for each in goals.values())
        good = (
            _is_good(goals.get(each.request.priority_class, Goal()), prefill, decode)
            for each, (_, prefill, decode) in zip(served, times, strict=True)
        )
        lost = math.fsum(each.lost for each in served) / _SECOND
        return cls(
            num_requests=len(records),
            num_refused=len(records) - len(served),
            num_good=sum(good) if has_goals else None,
            request=sorted(each[0] for each in times),
            prefill=sorted(each[1] for each in times),
            decode=sorted(each[2] for each in times if each[2] is not None),
            mean_loss=lost / max(1, len(served)),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a plan, and its samples by class; `ALL` are those of every class."""

    policy: str
    rate: float | None
    seed: int
    result: Result
    samples: Mapping[str, Samples]


def samples_by_class(
    records: Sequence[Record], goals: Mapping[ClassName, Goal]
) -> dict[str, Samples]:
    """Of all requests, and of each class that has some."""
    classes: dict[str, list[Record]] = {}
    for each in records:
        classes.setdefault(str(each.request.priority_class), []).append(each)
    own = {name: Samples.of(classes[name], goals) for name in sorted(classes)}
    return {ALL: Samples.of(records, goals), **own}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank's of sorted values; 0 of none."""
    return ordered[math.ceil(len(ordered) * share) - 1] if ordered else 0.0


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return math.fsum(values) / len(values) if values else 0.0


def _times(record: Record) -> tuple[float, float, float | None]:
    """Request, prefill and decode time."""
    assert record.first_at is not None, "a request that was served has a token"
    assert record.ended_at is not None, "and an end"
    arrival, num_gaps = record.request.arrival, record.request.num_outputs - 1
    decode = (record.ended_at - record.first_at) / num_gaps / _SECOND if num_gaps else None
    return (
        (record.ended_at - arrival) / _SECOND,
        (record.first_at - arrival) / _SECOND,
        decode,
    )


def _is_good(goal: Goal, prefill: float, decode: float | None) -> bool:
    is_first_good = goal.ttft_s is None or prefill <= goal.ttft_s
    return is_first_good and (goal.tpot_s is None or decode is None or decode <= goal.tpot_s)


Measure = Callable[[Run, str], float]


def _of(name: str, share: float | None) -> Measure:
    """The mean, or a percentile, of one of the times."""

    def measure(run: Run, priority_class: str) -> float:
        values = getattr(run.samples[priority_class], name)
        return mean(values) if share is None else percentile(values, share)

    return measure


def _goodput(run: Run, priority_class: str) -> float:
    good = run.samples[priority_class].num_good
    return (good or 0) / run.result.duration_s if run.result.duration_s else 0.0


_TIMES: Final = {"request": "request", "prefill": "prefill", "decode": "decode"}
_SHARES: Final = {"mean": None, "p50": 0.5, "p90": 0.9, "p99": 0.99}

OF_CLASSES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        **{
            f"{name}_{which}_s": _of(field, share)
            for name, field in _TIMES.items()
            for which, share in _SHARES.items()
        },
        "preemption_loss_s": lambda run, name: run.samples[name].mean_loss,
        "refused": lambda run, name: float(run.samples[name].num_refused),
    }
)
"""Figures of a class in a run, by name. The paper's words: *prefill* is TTFT, *decode* TPOT."""

OF_GOALS: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        "goodput_per_s": _goodput,
        "good_share": lambda run, name: (
            (run.samples[name].num_good or 0) / max(1, run.samples[name].num_requests)
        ),
    }
)
"""Figures of a class where promises are made."""

OF_RUNS: Final[Mapping[str, Callable[[Result], float]]] = MappingProxyType(
    {
        "moves": lambda result: float(result.num_moves),
        "preemptions": lambda result: float(result.num_preemptions),
        "downtime_p50_s": lambda result: result.downtime.p50,
        "downtime_p99_s": lambda result: result.downtime.p99,
        "instances": lambda result: result.mean_instances,
    }
)
"""Figures of a whole run, by name."""
