"""Steps as sums of kernels: the tables that LLMServingSim's profiler writes.

Three CSV files (plain or gzipped), times in microseconds:

    dense          layer, tokens, time_us              one decoder layer's linear parts, by name
    per_sequence   layer, sequences, time_us           what is computed once for each sequence
    attention      prefill_chunk, kv_prefill, n_decode, kv_decode, time_us      of one layer

A step's time is that of its kernels: no scheduling, no launches, no sampler's Python. A real engine
is slower by those, 1 to 3 ms a step.
"""

import bisect
import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from llx.errors import ConfigError
from llx.sim.calibration import StepSample

_ONCE: Final = frozenset({"embedding", "final_layernorm"})
"""Dense parts that a model has once; it has two of ``layernorm`` in each layer."""
_TWICE: Final = frozenset({"layernorm"})


def kernel_samples(
    dense: Path, attention: Path, per_sequence: Path, num_layers: int
) -> list[StepSample]:
    """A step for each row of the attention table.

    Raises:
        ConfigError: A file cannot be read, or is no such table.
    """
    linear = _Curve(_totals(dense, "tokens", num_layers))
    sequences = _Curve(_totals(per_sequence, "sequences", 1))
    samples = []
    for row in _rows(attention, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")):
        chunk, before, num_decodes, context, attention_us = row
        tokens, batch = chunk + num_decodes, num_decodes + (chunk > 0)
        if not tokens:
            continue
        total_us = linear.at(tokens) + sequences.at(batch) + num_layers * attention_us
        decode_context = int(num_decodes * context)
        prefill_context = int(before + chunk) if chunk else 0
        samples.append(
            StepSample(
                num_prefill_tokens=int(chunk),
                num_decodes=int(num_decodes),
                num_context_tokens=decode_context + prefill_context,
                num_square_tokens=int((before + chunk) ** 2 - before**2) if chunk else 0,
                num_decode_context_tokens=decode_context,
                duration_ns=total_us * 1000,
            )
        )
    return samples


class _Curve:
    """Points of a table, straight lines between them, in proportion beyond the last."""

    def __init__(self, points: dict[float, float]) -> None:
        self._xs: Sequence[float] = sorted(points)
        self._ys = [points[x] for x in self._xs]

    def at(self, x: float) -> float:
        if x <= self._xs[0]:
            return self._ys[0]
        if x >= self._xs[-1]:
            return self._ys[-1] * x / self._xs[-1]
        after = bisect.bisect_right(self._xs, x)
        left, right = self._xs[after - 1], self._xs[after]
        share = (x - left) / (right - left)
        return self._ys[after - 1] * (1 - share) + self._ys[after] * share


def _totals(path: Path, axis: str, num_layers: int) -> dict[float, float]:
    """Microseconds of all layers, by the number of tokens or sequences."""
    totals: dict[float, float] = defaultdict(float)
    for name, size, time_us in _rows(path, ("layer", axis)):
        count = num_layers
        if name in _ONCE:
            count = 1
        elif name in _TWICE:
            count *= 2
        totals[size] += count * time_us
    if not totals:
        raise ConfigError(f"{path} has no rows")
    return totals


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple]:  # type: ignore[type-arg]
    """The named columns and ``time_us`` of each row; all numbers but ``layer``."""
    wanted = (*columns, "time_us")
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        reader = csv.DictReader(io.StringIO(text.decode()))
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    missing = [name for name in wanted if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}")
    for number, row in enumerate(reader, start=2):
        try:
            yield tuple(row[name] if name == "layer" else float(row[name]) for name in wanted)
        except (TypeError, ValueError):
            raise ConfigError(f"{path}:{number}: not a number in {row}") from None
