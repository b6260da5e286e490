"""A run in figures, under the names that ``vllm bench serve`` gives them.

What that has no name for begins with ``llx_``. Latencies are in milliseconds.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llx.bench.record import MICROSECONDS, Outcome, Record
from llx.bench.scenario import Slo

Figures = dict[str, float | None]

PERCENTILES: Final = (50, 90, 95, 99)
LATENCIES: Final = ("ttft", "tpot", "itl", "e2el")
_MS: Final = 1000.0


@dataclass(slots=True)
class Samples:
    """The latencies of some requests that ended well; milliseconds."""

    ttft: "array[float]" = field(default_factory=lambda: array("f"))
    tpot: "array[float]" = field(default_factory=lambda: array("f"))
    itl: "array[float]" = field(default_factory=lambda: array("f"))
    e2el: "array[float]" = field(default_factory=lambda: array("f"))

    def add(self, record: Record) -> None:
        """The latencies of one more request."""
        if record.ttft_s is not None and record.e2e_s is not None:
            self.ttft.append(record.ttft_s * _MS)
            self.e2el.append(record.e2e_s * _MS)
        if record.tpot_s is not None:
            self.tpot.append(record.tpot_s * _MS)
        self.itl.extend(each * _MS / MICROSECONDS for each in record.gaps_us)

    def figures(self) -> Figures:
        """Mean, spread and percentiles of each; None where nothing was measured."""
        found: Figures = {}
        for name in LATENCIES:
            found |= _spread(name, sorted(getattr(self, name)))
        return found


def is_good(record: Record, slo: Slo) -> bool:
    """Whether a request ended well and met every stated objective."""
    if record.outcome is not Outcome.OK:
        return False
    return all(
        limit_ms is None or value_s is None or value_s * _MS <= limit_ms
        for value_s, limit_ms in (
            (record.ttft_s, slo.ttft_ms),
            (record.tpot_s, slo.tpot_ms),
            (record.e2e_s, slo.e2el_ms),
        )
    )


def summarise(records: Sequence[Record], duration_s: float, slo: Slo) -> Figures:
    """The figures of one run.

    Args:
        records: Of all its requests.
        duration_s: From its beginning to its last answer.
        slo: What goodput asks for.
    """
    ok = [each for each in records if each.outcome is Outcome.OK]
    samples = Samples()
    for each in ok:
        samples.add(each)
    inputs, outputs = sum(e.num_prompt for e in ok), sum(e.num_outputs for e in ok)
    late = sorted(each.lateness_s * _MS for each in records if each.lateness_s is not None)
    good = sum(is_good(each, slo) for each in records)
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    return {
        "num_prompts": len(records),
        "duration": duration_s,
        "completed": len(ok),
        "failed": sum(each.outcome is Outcome.FAILED for each in records),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(ok) * per_s,
        "request_goodput": good * per_s,
        "output_throughput": outputs * per_s,
        "total_token_throughput": (inputs + outputs) * per_s,
        "max_output_tokens_per_s": busiest_second(ok),
        "max_concurrent_requests": most_at_once(records),
        **samples.figures(),
        "llx_cut": sum(each.outcome is Outcome.CUT for each in records),
        "llx_good_share": good / len(records) if records else None,
        "llx_short_answers": sum(each.num_outputs < each.max_outputs for each in ok),
        "llx_miscounted": sum(
            each.usage_outputs is not None and each.usage_outputs != each.num_outputs for each in ok
        ),
        **_spread("llx_lateness", late),
    }


def by_class(records: Sequence[Record], duration_s: float, slo: Slo) -> dict[str, Figures]:
    """The figures of each priority class; "" are the requests that asked for none."""
    names = sorted({each.priority_class for each in records})
    return {
        name: summarise([e for e in records if e.priority_class == name], duration_s, slo)
        for name in names
    }


def most_at_once(records: Iterable[Record]) -> int:
    """The most requests under way at a time."""
    steps: list[tuple[float, int]] = []
    for each in records:
        if each.sent_at is not None and each.last_at is not None:
            steps += [(each.sent_at, 1), (each.last_at, -1)]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def busiest_second(records: Iterable[Record]) -> float:
    """The most tokens that came within one second of the clock.

    Of an event with several tokens only the time is kept: a request's tokens are spread evenly over
    its events.
    """
    counts: dict[int, float] = {}
    for each in records:
        if each.first_at is None:
            continue
        at, tokens = each.first_at, each.num_outputs / (len(each.gaps_us) + 1)
        for gap_us in (0, *each.gaps_us):
            at += gap_us / MICROSECONDS
            counts[int(at)] = counts.get(int(at), 0.0) + tokens
    return max(counts.values(), default=0.0)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """As NumPy's default: between the two nearest ranks, linearly."""
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    if at == low or ordered[low] == ordered[high]:  # they may be infinite
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _spread(name: str, ordered: Sequence[float]) -> Figures:
    names = [f"{each}_{name}_ms" for each in ("mean", "median", "std", "max")]
    percents = {f"p{each}_{name}_ms": each for each in PERCENTILES}
    if not ordered:
        return dict.fromkeys([*names, *percents])
    mean = math.fsum(ordered) / len(ordered)
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in ordered) / len(ordered))
    values = (mean, percentile(ordered, 50), deviation, ordered[-1])
    spread: Figures = dict(zip(names, values, strict=True))
    return spread | {key: percentile(ordered, each) for key, each in percents.items()}
