"""What each kind of fault has cost, as rows of a table. Pure."""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from llx.chaos.faults import FaultRecord, ids_hit, is_excused, overlaps
from llx.chaos.integrity import StreamEnd, StreamRecord


class KindRow(BaseModel):
    """All faults of one kind. Counts of streams, unless said otherwise.

    Attributes:
        fault: Of which kind, ``kill instance``.
        faults: That were done.
        late: Faults after which the cluster was not whole again in time, or that failed.
        beside: Under way during them.
        hit: Whose instance was hit.
        hit_complete: Of these.
        errors: Of those beside, that ended with an error.
        excused: Of these, because their own gateway was hit.
        flawed: Of those beside: hung, or with lost, doubled, reordered, wrong or miscounted tokens.
        recovery_p50_s: Until the cluster was whole again; what a fault lasts is part of it.
        recovery_max_s: The longest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: str
    faults: int
    late: int
    beside: int
    hit: int
    hit_complete: int
    errors: int
    excused: int
    flawed: int
    recovery_p50_s: float | None
    recovery_max_s: float | None


def rows_by_kind(faults: Sequence[FaultRecord], streams: Sequence[StreamRecord]) -> list[KindRow]:
    """A row for each kind of fault that was done; a stream beside two kinds counts for both."""
    done = [each for each in faults if not each.skipped]
    kinds = sorted({_kind(each) for each in done})
    return [_row(kind, [e for e in done if _kind(e) == kind], faults, streams) for kind in kinds]


def _kind(fault: FaultRecord) -> str:
    return f"{fault.kind} {fault.role}"


def _row(
    kind: str,
    these: Sequence[FaultRecord],
    faults: Sequence[FaultRecord],
    streams: Sequence[StreamRecord],
) -> KindRow:
    beside = [one for one in streams if any(overlaps(one, each) for each in these)]
    hit_ids = ids_hit(these, streams)
    hit = [one for one in beside if one.id in hit_ids and not is_excused(one, faults)]
    ended = [one for one in beside if one.end is StreamEnd.FAILED]
    times = [each.recovered_s for each in these if each.recovered_s is not None]
    return KindRow(
        fault=kind,
        faults=len(these),
        late=len(these) - len(times),
        beside=len(beside),
        hit=len(hit),
        hit_complete=sum(one.end is StreamEnd.COMPLETE for one in hit),
        errors=len(ended),
        excused=sum(is_excused(one, faults) for one in ended),
        flawed=sum(_is_flawed(one) for one in beside),
        recovery_p50_s=round(statistics.median(times), 2) if times else None,
        recovery_max_s=round(max(times), 2) if times else None,
    )


def _is_flawed(stream: StreamRecord) -> bool:
    return stream.end is StreamEnd.SILENT or stream.flaw is not None or bool(stream.miscounted)
