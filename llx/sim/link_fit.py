"""How fast KV travels between instances: so much a copy, so much a byte, from moves that were."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llx.sim.calibration import least_squares, quantile

_LEAST: Final = 8
_SIZES: Final = 2.0


@dataclass(frozen=True, slots=True)
class MoveSample:
    """A move that took place.

    Attributes:
        transport: How its KV went.
        num_copies: Rounds of copying.
        size_bytes: Of all of them.
        copying_s: Time spent in them.
    """

    transport: str
    num_copies: int
    size_bytes: int
    copying_s: float


@dataclass(frozen=True, slots=True)
class LinkFit:
    """A transport: copies take `overhead_s` and their bytes; `error`: median over all moves."""

    transport: str
    bytes_per_s: float
    overhead_s: float
    error: float
    num_moves: int
    least_bytes: int
    most_bytes: int


def fit_links(moves: Iterable[MoveSample]) -> tuple[list[LinkFit], list[str]]:
    """A fit for each transport that moves have covered, the most used first; why not, of others."""
    by_transport: defaultdict[str, list[MoveSample]] = defaultdict(list)
    for each in moves:
        if each.transport and each.size_bytes > 0 and each.copying_s > 0:
            by_transport[each.transport].append(each)
    fits, missing = [], []
    for transport, found in sorted(by_transport.items(), key=lambda item: -len(item[1])):
        sizes = [each.size_bytes / max(1, each.num_copies) for each in found]
        if len(found) < _LEAST:
            missing.append(f"{transport}: {len(found)} moves, it takes {_LEAST}")
        elif max(sizes) < _SIZES * min(sizes):
            missing.append(f"{transport}: moves of unlike sizes, all were about {max(sizes):.0f} B")
        elif fit := _fit(transport, found):
            fits.append(fit)
        else:
            missing.append(f"{transport}: larger moves took no longer")
    return fits, missing or ([] if fits else ["no move was seen"])


def _fit(transport: str, moves: Sequence[MoveSample]) -> LinkFit | None:
    rows = [
        [each.num_copies / each.copying_s, each.size_bytes / each.copying_s / 1e9] for each in moves
    ]
    overhead_s, s_per_gb = least_squares(rows, [1.0] * len(rows))
    if s_per_gb <= 0:
        return None
    errors = sorted(abs(row[0] * overhead_s + row[1] * s_per_gb - 1) for row in rows)
    sizes = [each.size_bytes for each in moves]
    return LinkFit(
        transport,
        1e9 / s_per_gb,
        overhead_s,
        quantile(errors, 0.5),
        len(moves),
        min(sizes),
        max(sizes),
    )
