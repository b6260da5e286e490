"""Requests to be simulated: when they come, how long they are, how urgent.

Everything drawn comes from a seed that is passed in, by `random.Random`, whose sequence is the same
on every machine.
"""

import bisect
import itertools
import math
import random
from types import MappingProxyType
from typing import Final

from llx.core.fixed import fixed
from llx.core.model import ClassName, Nanos, Tokens
from llx.errors import ConfigError

_SECOND: Final = 1_000_000_000
_PAPER_SEED: Final = 0xCADE
PAPER_CAP: Final = 6144
"""Tokens: neither a prompt nor an output of the paper's workloads is longer."""
_MEAN_AND_ALPHA: Final = MappingProxyType({"s": (128, 2.0), "m": (256, 1.5), "l": (512, 1.15)})
MIXES: Final = tuple(f"{one}-{two}" for one in "sml" for two in "sml")
"""Lengths of prompts and of outputs, as the paper names them."""

_SHARES: Final = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)
LIKE: Final = MappingProxyType(
    {
        "sharegpt-like": ((1, 74, 348, 1484, 3388, 4096), (100, 487, 781, 988, 1234, 1500)),
        "burstgpt-like": ((48, 582, 1427, 2345, 3549, PAPER_CAP), (20, 243, 434, 669, 964, 2048)),
    }
)
"""Tokens of the paper's two real traces: prompts, outputs; of which the shares above are no longer.
P50 to P99 are the paper's (table 1); the shortest and the longest are chosen such that the means
are its too, 306 and 500, 830 and 271. Between two of them the logarithm rises evenly."""

NORMAL: Final = ClassName("normal")
HIGH: Final = ClassName("high")


@fixed
class SimRequest:
    """One request: `num_prompt` and `num_outputs` are at least 1."""

    arrival: Nanos
    num_prompt: Tokens
    num_outputs: Tokens
    priority_class: ClassName = NORMAL


def paper_lengths(mix: str, count: int) -> list[tuple[Tokens, Tokens]]:
    """Prompt and output lengths of Llumnix's generated workloads, draw for draw.

    Args:
        mix: ``s-s``, ``l-s``, …: prompts, outputs.
        count: Requests; the paper's 10,000 give the paper's percentiles.

    Raises:
        ConfigError: There is no such mix.
    """
    if mix not in MIXES:
        raise ConfigError(f"no workload {mix!r}: it is one of {', '.join((*MIXES, *LIKE))}")
    stream = _legacy_stream(_PAPER_SEED)
    prompts, outputs = (_zipf(stream, name, count) for name in mix.split("-"))
    return list(zip(prompts, outputs, strict=True))


def like_lengths(name: str, count: int, seed: int) -> list[tuple[Tokens, Tokens]]:
    """Prompt and output lengths with the percentiles of a real trace (`LIKE`), both independent.

    Raises:
        ConfigError: There is no such trace.
    """
    if name not in LIKE:
        raise ConfigError(f"no trace-like workload {name!r}: it is one of {', '.join(LIKE)}")
    draw = random.Random(f"{name} {seed}")
    prompts, outputs = LIKE[name]
    return [
        (_quantile(prompts, draw.random()), _quantile(outputs, draw.random())) for _ in range(count)
    ]


def gamma_arrivals(seed: int, rate: float, cv: float, count: int) -> list[Nanos]:
    """When `count` requests come, `rate` a second on average.

    Gaps have a gamma distribution of shape 1/CV^2; with a CV of 1 they are exponential, and the
    arrivals a Poisson process.

    Raises:
        ConfigError: Rate or CV are not positive.
    """
    if not (rate > 0 and cv > 0):
        raise ConfigError(f"rate {rate} and CV {cv} must be positive")
    draw = random.Random(f"arrivals {seed}")
    shape, scale = cv**-2, cv**2 / rate
    gaps = (
        draw.expovariate(rate) if cv == 1 else draw.gammavariate(shape, scale) for _ in range(count)
    )
    return [Nanos(round(at * _SECOND)) for at in itertools.accumulate(gaps)]


def generated(
    mix: str, rate: float, count: int, seed: int, *, cv: float = 1.0, high_share: float = 0.0
) -> list[SimRequest]:
    """A workload of the paper: its lengths, arrivals by `seed`.

    Args:
        mix: Lengths (of `MIXES` the same for every seed, as the paper's are; or of `LIKE`).
        rate: Requests a second.
        count: Requests.
        seed: Of arrivals, classes, and lengths that are like a trace's.
        cv: Coefficient of variation of the gaps.
        high_share: Of the requests, this share is of the class `HIGH`.

    Raises:
        ConfigError: No such workload.
    """
    if not 0 <= high_share <= 1:
        raise ConfigError(f"a share is between 0 and 1, not {high_share}")
    draw = random.Random(f"classes {seed}")
    arrivals = gamma_arrivals(seed, rate, cv, count)
    is_like = mix in LIKE
    lengths = like_lengths(mix, count, seed) if is_like else paper_lengths(mix, count)
    return [
        SimRequest(
            at,
            num_prompt,
            num_outputs,
            HIGH if draw.random() < high_share else NORMAL,
        )
        for at, (num_prompt, num_outputs) in zip(arrivals, lengths, strict=True)
    ]


def _zipf(stream: random.Random, name: str, count: int) -> list[Tokens]:
    """k in 1 … 2m - 1 with p ~ k^-alpha, scaled to a mean of m, rounded up, capped."""
    mean, alpha = _MEAN_AND_ALPHA[name]
    weights = [k**-alpha for k in range(1, 2 * mean)]
    total = math.fsum(weights)
    cdf = list(itertools.accumulate(each / total for each in weights))
    cdf = [each / cdf[-1] for each in cdf]
    ranks = [bisect.bisect_right(cdf, stream.random()) + 1 for _ in range(count)]
    scale = mean / (sum(ranks) / count) if count else 1.0
    return [Tokens(min(PAPER_CAP, math.ceil(each * scale))) for each in ranks]


def _quantile(knots: tuple[int, ...], share: float) -> Tokens:
    """The length that `share` of all do not exceed."""
    upper = bisect.bisect_left(_SHARES, share, lo=1)
    low, high = _SHARES[upper - 1], _SHARES[upper]
    part = (share - low) / (high - low)
    return Tokens(round(knots[upper - 1] * (knots[upper] / knots[upper - 1]) ** part))


def _legacy_stream(seed: int) -> random.Random:
    """The Mersenne Twister as NumPy's legacy generator seeds it (Knuth's recurrence).

    Python seeds its own otherwise; from equal states both make equal doubles.
    """
    words = [seed]
    for position in range(1, 624):
        before = words[-1]
        words.append((1812433253 * (before ^ (before >> 30)) + position) & 0xFFFFFFFF)
    stream = random.Random(0)
    stream.setstate((3, (*words, 624), None))
    return stream
