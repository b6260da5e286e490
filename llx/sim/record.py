"""What becomes of each request, and the figures that follow."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from llx.core import epochs
from llx.core.model import ClassName, Epoch, InstanceId, Nanos
from llx.core.scheduler.commands import Refusal
from llx.sim.workload import SimRequest

_SECOND: Final = 1_000_000_000


@dataclass(slots=True, eq=False)
class Record:
    """One request's life. Times are the kernel's.

    Attributes:
        request: What was asked for.
        owner: The instance whose outputs count; None: it has none yet.
        epoch: Under which they do.
        first_at: When its first token came.
        last_at: When its last token so far came.
        ended_at: When it ended.
        refusal: Why it was refused, if it was.
        num_preemptions: How often it lost its blocks.
        preempted_at: Since when it has none and makes no token.
        lost: Time that preemptions took: from each to the next token.
        num_moves: How often it moved.
        moved_at: When it last did.
        downtime: The longest gap that a move left between two of its tokens.
    """

    request: SimRequest
    owner: InstanceId | None = None
    epoch: Epoch = epochs.FIRST
    first_at: Nanos | None = None
    last_at: Nanos = Nanos(0)
    ended_at: Nanos | None = None
    refusal: Refusal | None = None
    num_preemptions: int = 0
    preempted_at: Nanos | None = None
    lost: Nanos = Nanos(0)
    num_moves: int = 0
    moved_at: Nanos | None = None
    downtime: Nanos = Nanos(0)

    def token(self, now: Nanos) -> None:
        """A token of it came."""
        if self.first_at is None:
            self.first_at = now
        if self.preempted_at is not None:
            self.lost = Nanos(self.lost + now - self.preempted_at)
            self.preempted_at = None
        self.last_at = now

    def preempted(self, now: Nanos) -> None:
        """It lost its blocks."""
        self.num_preemptions += 1
        self.preempted_at = now if self.preempted_at is None else self.preempted_at

    def line(self, index: int) -> str:
        """Everything of it, for the hash of a run."""
        parts: list[object] = [index, self.request, self.owner, self.epoch, self.first_at]
        parts += [self.ended_at, self.refusal and self.refusal.value, self.num_preemptions]
        parts += [self.lost, self.num_moves, self.moved_at, self.downtime]
        return "\t".join(map(str, parts))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over requests, in seconds; all 0 if there was none."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Percentiles are the nearest rank's."""
        if not values:
            return cls(0.0, 0.0, 0.0)
        ordered = sorted(values)
        p50, p99 = (ordered[math.ceil(len(ordered) * q) - 1] for q in (0.5, 0.99))
        return cls(math.fsum(ordered) / len(ordered), p50, p99)


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Figures of the requests of one class (or all), as the paper defines them.

    Attributes:
        num_requests: That came.
        num_refused: Of them.
        request: From arrival to the last token.
        prefill: From arrival to the first token (TTFT).
        decode: From the first token to the last, for each token after the first (TPOT).
        loss: Time that preemptions took, over all requests.
    """

    num_requests: int
    num_refused: int
    request: Spread
    prefill: Spread
    decode: Spread
    loss: Spread


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    Attributes:
        seed: Whose.
        overall: Of all requests.
        classes: Of each class.
        num_preemptions: In all.
        num_moves: That came about …
        num_unmoved: … and that did not.
        downtime: Gaps that moves left, the longest of each request that moved.
        mean_instances: Over time, those that are starting included.
        fragmented: Share of the scheduler's rounds at which a queue's first waits for blocks and
            all instances together have as many free.
        duration_s: In virtual time, from the first arrival to the last end.
        num_events: That the kernel has handled.
        trace_hash: Of everything that became of every request.
    """

    seed: int
    overall: ClassResult
    classes: dict[str, ClassResult] = field(default_factory=dict)
    num_preemptions: int = 0
    num_moves: int = 0
    num_unmoved: int = 0
    downtime: Spread = field(default_factory=lambda: Spread.of(()))
    mean_instances: float = 0.0
    fragmented: float = 0.0
    duration_s: float = 0.0
    num_events: int = 0
    trace_hash: str = ""


def class_result(records: Sequence[Record]) -> ClassResult:
    """Figures of these requests, every one of which has ended."""
    served = [each for each in records if each.refusal is None]
    request, prefill, decode = [], [], []
    for each in served:
        assert each.first_at is not None, "a request that was served has a token"
        assert each.ended_at is not None, "and an end"
        arrival, num_gaps = each.request.arrival, each.request.num_outputs - 1
        request.append((each.ended_at - arrival) / _SECOND)
        prefill.append((each.first_at - arrival) / _SECOND)
        if num_gaps:
            decode.append((each.ended_at - each.first_at) / num_gaps / _SECOND)
    return ClassResult(
        num_requests=len(records),
        num_refused=len(records) - len(served),
        request=Spread.of(request),
        prefill=Spread.of(prefill),
        decode=Spread.of(decode),
        loss=Spread.of([each.lost / _SECOND for each in served]),
    )


def by_class(records: Sequence[Record]) -> dict[str, ClassResult]:
    """Figures of each class that there is."""
    classes: dict[ClassName, list[Record]] = {}
    for each in records:
        classes.setdefault(each.request.priority_class, []).append(each)
    return {str(name): class_result(classes[name]) for name in sorted(classes)}


def trace_hash(records: Sequence[Record]) -> str:
    """SHA-256 of all that became of the requests."""
    digest = hashlib.sha256()
    for index, each in enumerate(records):
        digest.update(each.line(index).encode() + b"\n")
    return digest.hexdigest()
