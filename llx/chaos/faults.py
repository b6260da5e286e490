"""What is kept of a fault, and which streams it concerns. Pure."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from llx.chaos.integrity import StreamEnd, StreamRecord
from llx.chaos.plan import FaultKind


class FaultRecord(BaseModel):
    """What is kept of one fault. Times are Unix seconds.

    `recovered_s`: from the fault's beginning until the cluster was whole again; None: it was not in
    time. `hit`: streams that an instance had which was hit; `gateways`: those that were hit, whose
    streams may end. `skipped`: why it was not done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: FaultKind
    role: str
    victim: str = ""
    host: str = ""
    pid: int | None = None
    lasts_s: float = 0.0
    began_at: float
    ended_at: float
    recovered_s: float | None = None
    hit: list[str] = []
    instances: list[str] = []
    gateways: list[str] = []
    excuses_all: bool = False
    skipped: str = ""
    error: str = ""


def ids_hit(faults: Sequence[FaultRecord], streams: Sequence[StreamRecord]) -> set[str]:
    """Streams that were under way on an instance still when it was hit."""
    by_id = {each.id: each for each in streams}
    return {
        name
        for each in faults
        for name in each.hit
        if name in by_id and overlaps(by_id[name], each)
    }


def is_excused(stream: StreamRecord, faults: Sequence[FaultRecord]) -> bool:
    """Whether it may have failed: its gateway was hit while it ran, or there was nobody left."""
    if stream.end is not StreamEnd.FAILED:
        return False
    return any(
        (stream.gateway in each.gateways or each.excuses_all) and overlaps(stream, each)
        for each in faults
    )


def overlaps(stream: StreamRecord, fault: FaultRecord) -> bool:
    """Whether a stream was under way during a fault, and until the cluster was whole again."""
    return fault.began_at <= stream.ended_at and stream.began_at <= fault.ended_at
