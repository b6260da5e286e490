"""How long an engine's steps take, from those that it took while it served: robust least squares.

Unlike a table of kernels (`llx.sim.calibration`), a log of steps has noise, stalls, and only what
the load happened to ask for. So:

    covered?    each term needs steps that differ in what it counts, or it cannot be told apart
    trained     on three fifths of the steps; what takes thrice as long as predicted is a stall
    chosen      by one fifth: a term beyond the linear ones stays only if it predicts better
    judged      by the last fifth, which nothing else has seen
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from llx.core.engine_state import StepTime
from llx.core.model import Nanos
from llx.core.scheduler.config import StepTime as Prediction
from llx.errors import CheckError
from llx.sim.calibration import KNEES, StepSample, least_squares, quantile
from llx.sim.coverage import Coverage, cover

_STALL: Final = 3.0
_PASSES: Final = 4
_MOST: Final = 1500
"""Steps with prompts, and likewise without, that a fit looks at: more make it no better."""
_RUN: Final = 16
"""Steps next to each other are alike: they are held out together."""
_BETTER: Final = 0.9
_WORTH: Final = 0.001
"""A term stays if it makes the median error a tenth smaller, and by a thousandth of a step."""

Term = Callable[[StepSample], float]
Model = Mapping[str, tuple[Term, float]]
"""Terms by name, each with its coefficient in nanoseconds."""

_LINEAR: Final = MappingProxyType[str, Term](
    {
        "base": lambda step: 1.0,
        "prefill": lambda step: step.num_prefill_tokens,
        "decode": lambda step: step.num_decodes,
        "context": lambda step: step.num_context_tokens / 1000,
    }
)
_SQUARE: Final = MappingProxyType[str, Term]({"square": lambda step: step.num_square_tokens})
_MIXED: Final = MappingProxyType[str, Term](
    {
        "mixed decode": lambda step: step.num_decodes if step.num_prefill_tokens else 0.0,
        "mixed context": lambda step: (
            step.num_decode_context_tokens / 1000 if step.num_prefill_tokens else 0.0
        ),
    }
)


@dataclass(frozen=True, slots=True)
class LiveFit:
    """What came of it. Errors are |predicted - measured| / measured of steps held out.

    Attributes:
        step_time: The simulator's model.
        prediction: The scheduler's four terms, fitted for themselves.
        error: Median of `step_time`.
        error_p95: Its 95th percentile.
        prediction_error: Median of `prediction`.
        num_steps: All that were measured.
        num_held_out: Of these, those that the errors are about.
        num_stalls: Of these, those that were left out as stalls.
        stall_share: Of all the time measured, theirs.
        coverage: What they covered.
    """

    step_time: StepTime
    prediction: Prediction
    error: float
    error_p95: float
    prediction_error: float
    num_steps: int
    num_held_out: int
    num_stalls: int
    stall_share: float
    coverage: Coverage


def fit_live(samples: Sequence[StepSample], block_size: int) -> LiveFit:
    """The models that are nearest to the steps of a running engine, in the order they were taken.

    Raises:
        CheckError: The steps do not cover what a term needs; all that is missing is named.
    """
    coverage = cover(samples)
    if coverage.missing:
        raise CheckError(
            "not enough was seen to fit step times: " + "; ".join(coverage.missing),
            remedy="llx calibrate --load",
        )
    train, choose, judge = _split(_thinned(samples))
    model, knee = _chosen(train, choose, has_mixed=coverage.num_mixed > 0)
    simple = _fitted(_prediction_terms(block_size), train)
    stalls = [each for each in samples if each.duration_ns > _STALL * _value(model, each)]
    errors = _errors(model, judge)
    return LiveFit(
        step_time=_step_time(model, knee),
        prediction=_prediction(simple),
        error=quantile(errors, 0.5),
        error_p95=quantile(errors, 0.95),
        prediction_error=quantile(_errors(simple, judge), 0.5),
        num_steps=len(samples),
        num_held_out=len(judge),
        num_stalls=len(stalls),
        stall_share=_time_of(stalls) / _time_of(samples),
        coverage=coverage,
    )


def _time_of(samples: Sequence[StepSample]) -> float:
    return sum(each.duration_ns for each in samples)


def _thinned(samples: Sequence[StepSample]) -> list[StepSample]:
    """Not more than is useful of either kind, evenly over time, in their order."""
    kept: list[int] = []
    for has_prompt in (True, False):
        found = [i for i, e in enumerate(samples) if (e.num_prefill_tokens > 0) is has_prompt]
        stride = max(1.0, len(found) / _MOST)
        kept += [found[int(i * stride)] for i in range(int(len(found) / stride))]
    return [samples[i] for i in sorted(kept)]


def _split(
    samples: Sequence[StepSample],
) -> tuple[list[StepSample], list[StepSample], list[StepSample]]:
    """To train on, to choose by, to judge by."""
    run = max(1, min(_RUN, len(samples) // 25))
    parts: tuple[list[StepSample], ...] = ([], [], [])
    for i, each in enumerate(samples):
        parts[{3: 1, 4: 2}.get(i // run % 5, 0)].append(each)
    return parts[0], parts[1], parts[2]


def _chosen(
    train: Sequence[StepSample], choose: Sequence[StepSample], *, has_mixed: bool
) -> tuple[Model, int]:
    """The linear model with the terms that make it better; the knee, 0 if it has none."""
    terms: dict[str, Term] = dict(_LINEAR)
    best, knee = _fitted(terms, train), 0
    more: list[tuple[dict[str, Term], int]] = [({**_SQUARE}, 0)]
    more += [({**_MIXED}, 0)] if has_mixed else []
    more += [({"token": _above(each)}, each) for each in KNEES[1:]]
    for added, of_knee in more:
        tried = _fitted(terms | added, train)
        before, after = (quantile(_errors(each, choose), 0.5) for each in (best, tried))
        if after < _BETTER * before and after < before - _WORTH:
            terms, best, knee = terms | added, tried, of_knee
    return best, knee


def _above(knee: int) -> Term:
    return lambda step: max(knee, step.num_prefill_tokens + step.num_decodes)


def _prediction_terms(block_size: int) -> Mapping[str, Term]:
    return {
        "base": _LINEAR["base"],
        "prefill": _LINEAR["prefill"],
        "decode": _LINEAR["decode"],
        "block": lambda step: step.num_decode_context_tokens / block_size,
    }


def _fitted(terms: Mapping[str, Term], samples: Sequence[StepSample]) -> Model:
    """Coefficients for which the terms are nearest to what was measured.

    Errors count first as shares of what was measured, which long stalls cannot sway; then, without
    the stalls, as shares of what is predicted, which does not favour short steps.
    """
    rows = [[term(each) for term in terms.values()] for each in samples]
    times = [each.duration_ns for each in samples]
    found = least_squares(
        [[x / time for x in row] for row, time in zip(rows, times, strict=True)],
        [1.0] * len(rows),
    )
    for _ in range(_PASSES):
        predicted = [sum(a * x for a, x in zip(found, row, strict=True)) for row in rows]
        kept = [i for i, time in enumerate(times) if 0 < time <= _STALL * predicted[i]]
        if not kept:
            break
        found = least_squares(
            [[x / predicted[i] for x in rows[i]] for i in kept],
            [times[i] / predicted[i] for i in kept],
        )
    return {name: (term, value) for (name, term), value in zip(terms.items(), found, strict=True)}


def _value(model: Model, step: StepSample) -> float:
    return sum(value * term(step) for term, value in model.values())


def _errors(model: Model, samples: Sequence[StepSample]) -> list[float]:
    return sorted(abs(_value(model, each) / each.duration_ns - 1) for each in samples)


def median_error(step_time: StepTime, samples: Sequence[StepSample]) -> float:
    """|predicted - measured| / measured of these steps."""
    return statistics.median(
        abs(
            step_time.of(
                each.num_prefill_tokens,
                each.num_decodes,
                each.num_context_tokens,
                each.num_square_tokens,
                each.num_decode_context_tokens,
            )
            / each.duration_ns
            - 1
        )
        for each in samples
    )


def _step_time(model: Model, knee: int) -> StepTime:
    ns = {name: value for name, (_, value) in model.items()}
    token = ns.get("token", 0.0)
    return StepTime(
        base_ns=round(ns["base"]),
        prefill_token_ns=round(ns["prefill"]),
        decode_ns=round(ns["decode"]),
        context_ktoken_ns=round(ns["context"]),
        prefill_square_ns=round(ns.get("square", 0.0)),
        weights_ns=round(token * knee),
        token_ns=round(token),
        mixed_decode_ns=round(ns.get("mixed decode", 0.0)),
        mixed_context_ktoken_ns=round(ns.get("mixed context", 0.0)),
    )


def _prediction(model: Model) -> Prediction:
    ns = {name: Nanos(round(value)) for name, (_, value) in model.items()}
    return Prediction(ns["base"], ns["prefill"], ns["decode"], ns["block"])
