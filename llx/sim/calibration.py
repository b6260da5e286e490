"""How long an engine's steps take, from measurements of them: `StepTime`'s terms by least squares.

A step is what was in it and how long it took. The terms are fitted to all steps at once, none of
them negative (a step is never the shorter for doing more), each step's error as a share of its
time: else a few long prefills would drown the decodes, which are most of what an engine does.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llx.core.engine_state import StepTime
from llx.errors import ConfigError

KNEES: Final = (1, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Tokens up to which a step's arithmetic may hide behind reading the weights."""
_MAX_SWEEPS: Final = 2_000
_TOLERANCE: Final = 1e-7


@dataclass(frozen=True, slots=True)
class StepSample:
    """A step that was measured.

    Attributes:
        num_prefill_tokens: Prompt tokens computed in it.
        num_decodes: Requests that decoded in it.
        num_context_tokens: Read by attention: over all requests in it, the tokens they had at its
            end.
        num_square_tokens: Over its prefills, the sum of end² - start².
        num_decode_context_tokens: What of the context the decodes read.
        duration_ns: How long it took.
    """

    num_prefill_tokens: int
    num_decodes: int
    num_context_tokens: int
    num_square_tokens: int
    num_decode_context_tokens: int
    duration_ns: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of it.

    Attributes:
        step_time: The model.
        error: The median of |predicted - measured| / measured.
        error_p95: Its 95th percentile.
        num_samples: Steps that it is fitted to.
    """

    step_time: StepTime
    error: float
    error_p95: float
    num_samples: int


def fit_step_time(samples: Sequence[StepSample]) -> Fit:
    """The step times that are nearest to the samples.

    Raises:
        ConfigError: Nothing was measured, or a duration is not positive.
    """
    if not samples:
        raise ConfigError("no step was measured: there is nothing to calibrate from")
    if any(each.duration_ns <= 0 for each in samples):
        raise ConfigError("a step took no time: durations must be above 0")
    fits = [_fit_with_knee(samples, knee) for knee in KNEES]
    best = min(fits, key=lambda each: _squared_error(each, samples))
    errors = sorted(abs(_predict(best, each) / each.duration_ns - 1) for each in samples)
    return Fit(best, quantile(errors, 0.5), quantile(errors, 0.95), len(samples))


def _fit_with_knee(samples: Sequence[StepSample], knee: int) -> StepTime:
    rows = [[term / each.duration_ns for term in _terms(each, knee)] for each in samples]
    base, token, prefill, decode, context, square, mixed, mixed_context = least_squares(
        rows, [1.0] * len(rows)
    )
    return StepTime(
        base_ns=round(base),
        prefill_token_ns=round(prefill),
        decode_ns=round(decode),
        context_ktoken_ns=round(context),
        prefill_square_ns=round(square),
        weights_ns=round(token * knee),
        token_ns=round(token),
        mixed_decode_ns=round(mixed),
        mixed_context_ktoken_ns=round(mixed_context),
    )


def _terms(step: StepSample, knee: int) -> tuple[float, ...]:
    """What each coefficient is multiplied by, in the order of `_fit_with_knee`."""
    is_mixed = step.num_prefill_tokens > 0 and step.num_decodes > 0
    return (
        1.0,
        max(knee, step.num_prefill_tokens + step.num_decodes),
        step.num_prefill_tokens,
        step.num_decodes,
        step.num_context_tokens / 1000,
        step.num_square_tokens,
        step.num_decodes if is_mixed else 0.0,
        step.num_decode_context_tokens / 1000 if is_mixed else 0.0,
    )


def least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """x >= 0 for which the rows times x are nearest to what is wanted: coordinate descent.

    The normal equations are convex, so that the descent ends at the one minimum that there is.
    """
    size = len(rows[0])
    scale = [math.sqrt(math.fsum(row[i] ** 2 for row in rows)) or 1.0 for i in range(size)]
    scaled = [[row[i] / scale[i] for i in range(size)] for row in rows]
    gram = [
        [math.fsum(row[i] * row[j] for row in scaled) for j in range(size)] for i in range(size)
    ]
    target = [math.fsum(map(operator.mul, column, wanted)) for column in zip(*scaled, strict=True)]
    found = [0.0] * size
    used = [i for i in range(size) if gram[i][i]]  # of these the diagonal is 1
    for _ in range(_MAX_SWEEPS):
        moved = 0.0
        for i in used:
            slope = target[i] - sum(map(operator.mul, gram[i], found))
            new = max(0.0, found[i] + slope)
            moved = max(moved, abs(new - found[i]))
            found[i] = new
        if moved < _TOLERANCE * max(1.0, *found):
            break
    return [each / scale[i] for i, each in enumerate(found)]


def _predict(step_time: StepTime, step: StepSample) -> int:
    return step_time.of(
        step.num_prefill_tokens,
        step.num_decodes,
        step.num_context_tokens,
        step.num_square_tokens,
        step.num_decode_context_tokens,
    )


def _squared_error(step_time: StepTime, samples: Sequence[StepSample]) -> float:
    return math.fsum((_predict(step_time, each) / each.duration_ns - 1) ** 2 for each in samples)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order, by nearest rank."""
    return ordered[math.ceil(len(ordered) * share) - 1]
