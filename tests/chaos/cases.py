"""The fault matrix: at which point of a move, and what is done to whom there.

A point is an edge of a party and a message, as `tests.chaos.faults` holds it. A step waits until
its point is reached, does its deed while that is held, and lets it go on; a case is steps in order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, get_args

from llx import wire
from tests.chaos.faults import MOVED

PARTIES: Final = ("source", "target", "gateway")


@dataclass(frozen=True)
class Point:
    """`edge`: ``send`` is right before, ``receive`` right after; ``pack`` and ``unpack``: a chunk
    of KV at its source and its target. `nth`: of the messages of that kind."""

    party: str
    edge: str
    message: str
    nth: int = 1

    def __str__(self) -> str:
        again = "" if self.nth == 1 else f"-{self.nth}"
        return f"{self.party}-{self.edge}s-{self.message}{again}"


@dataclass(frozen=True)
class Step:
    """What is done at a point, to `whom`. `is_lost`: the message held there goes no further.

    `deed`: ``kill``, ``freeze`` (shorter than a lease), ``hang`` (longer), ``isolate`` (from the
    gateway), ``cut`` (``llumlets`` or ``kv``), ``cancel``, ``leave`` (the client), ``fill`` (the
    target), ``outlast`` (hold it until the source has got the request back), or nothing.
    """

    point: Point
    deed: str = ""
    whom: str = ""
    is_lost: bool = False

    def __str__(self) -> str:
        deed = "-".join(filter(None, (self.deed, self.whom, "lost" if self.is_lost else "")))
        return f"{deed or 'nothing'}-when-{self.point}"


@dataclass(frozen=True)
class Case:
    """Steps in order.

    `must_finish`: no loss in this case is an excuse for the stream to end. `outcomes`: what the
    source may say that came of it; empty: that hangs on which of two threads is faster.
    """

    steps: tuple[Step, ...]
    is_tcp: bool = False
    must_finish: bool = False
    outcomes: tuple[str, ...] = ()

    @property
    def is_read_to_end(self) -> bool:
        """Whether the client stays until the last token: where a message is lost and nothing else,
        which is moves that succeed and moves that do not."""
        return all(step.is_lost and not step.deed for step in self.steps)

    @property
    def name(self) -> str:
        return ("tcp-" if self.is_tcp else "") + "-then-".join(map(str, self.steps))


MIGRATE = Point("source", "receive", "migrate")
STAGE = Point("source", "send", "kv")
STAGE_2 = Point("source", "send", "kv", 2)
CHUNK_LEAVES, CHUNK_COMES = (
    Point("source", "pack", "kv", 2),
    Point("target", "unpack", "kv", 2),
)
LAST_STAGE = Point("source", "send", "kv-last")
COMMIT = Point("source", "send", "commit")
HAS_COMMITTED = Point("target", "send", "committed")
WAY: Final = (
    MIGRATE,
    Point("source", "send", "migration-news"),
    Point("source", "send", "reserve"),
    Point("target", "receive", "reserve"),
    Point("target", "send", "reserved"),
    Point("source", "receive", "reserved"),
    STAGE,
    CHUNK_LEAVES,
    CHUNK_COMES,
    Point("source", "send", "extend"),
    Point("target", "receive", "extend"),
    Point("target", "send", "reserved", 2),
    Point("source", "receive", "reserved", 2),
    STAGE_2,
    LAST_STAGE,
    Point("source", "send", "moving"),
    Point("gateway", "receive", "moving"),
    COMMIT,
    Point("target", "receive", "commit"),
    HAS_COMMITTED,
    Point("source", "receive", "committed"),
    Point("target", "send", MOVED),
    Point("gateway", "receive", MOVED),
    Point("gateway", "send", "ruling"),
    Point("source", "receive", "ruling"),
)
"""A move that has every message of success."""
OWNED: Final = WAY[WAY.index(HAS_COMMITTED) :]
"""At these the target has the request."""

_CANCELLED = Step(CHUNK_LEAVES, "cancel")
_LEFT = Step(STAGE, "leave")
_FULL = Step(MIGRATE, "fill")
_ORPHANED = Step(HAS_COMMITTED, "isolate", "target")
_PARTED = Step(COMMIT, "cut", "llumlets", is_lost=True)
FAILURES: Final = (
    (Step(STAGE, "cancel"), Point("source", "receive", "cancel-migration")),
    (_CANCELLED, Point("source", "send", "abort-migration")),
    (_CANCELLED, Point("target", "receive", "abort-migration")),
    (_FULL, Point("target", "send", "migration-refused")),
    (_FULL, Point("source", "receive", "migration-refused")),
    (_PARTED, Point("source", "send", "ask-owner")),
    (_PARTED, Point("gateway", "receive", "ask-owner")),
    (_PARTED, Point("gateway", "send", "ruling")),
    (_PARTED, Point("source", "receive", "ruling")),
    (_ORPHANED, Point("target", "send", "dropped")),
    (_ORPHANED, Point("source", "receive", "dropped")),
    (_LEFT, Point("gateway", "send", "abort")),
    (_LEFT, Point("source", "receive", "abort")),
)
"""What leads to the messages of failure, and the points of those."""


_UNCOMMITTED: Final = WAY[: WAY.index(COMMIT)]
_OF_THE_LLUMLET: Final = {"reserve", "reserved", "extend", "kv"}
"""At these no thread of the source's endpoint is held, and the commit is not under way."""


def all_cases() -> Iterator[Case]:
    """The whole matrix."""
    for point in WAY:
        yield from _deaths(point)
        yield Case((Step(point, "freeze", point.party),), must_finish=True, outcomes=("moved",))
        yield Case((Step(point, "cut", "llumlets"),), must_finish=True)
        is_in_time = point in _UNCOMMITTED and point.message in _OF_THE_LLUMLET
        kept, gone = (("kept",), ("gone",)) if is_in_time else ((), ())
        yield Case((Step(point, "cancel"),), must_finish=True, outcomes=kept)
        yield Case((Step(point, "leave"),), outcomes=gone)
    yield from _failures()
    yield from _silences()
    yield from _late_messages()
    yield from _lost_messages()
    yield from _lost_copies()
    yield Case((_FULL,), must_finish=True, outcomes=("kept",))
    fill = Step(Point("source", "send", "extend"), "fill")
    yield Case((fill,), must_finish=True, outcomes=("kept",))


def _deaths(point: Point) -> Iterator[Case]:
    yield Case((Step(point, "kill", "source"),), must_finish=point in OWNED)
    # The word to the arbiter is held in no thread that commits: the target may have it by then.
    may_own = point in OWNED or point.message == "moving"
    # Until it is noticed that a target is not there the request may end by itself.
    outcomes = () if may_own else ("kept", "gone")
    yield Case((Step(point, "kill", "target"),), must_finish=not may_own, outcomes=outcomes)
    yield Case((Step(point, "kill", "gateway"),))


def _failures() -> Iterator[Case]:
    for before, point in FAILURES:
        for party in PARTIES:
            yield Case((before, Step(point, "kill", party)))


def _silences() -> Iterator[Case]:
    for party in ("source", "target"):
        for point in (STAGE, COMMIT, HAS_COMMITTED, Point("gateway", "send", "ruling")):
            yield Case((Step(point, "isolate", party),))
    for point in (STAGE, COMMIT, HAS_COMMITTED):
        for party in PARTIES:
            if party != point.party:
                yield Case((Step(point, "freeze", party),), must_finish=True, outcomes=("moved",))
            is_harmless = party == "target" and point != HAS_COMMITTED
            yield Case((Step(point, "hang", party),), must_finish=is_harmless)


def _late_messages() -> Iterator[Case]:
    """A target that goes on when the source has the request back: a zombie, to be fenced."""
    for point in (Point("target", "receive", "commit"), HAS_COMMITTED):
        yield Case((Step(point, "outlast"),), must_finish=True, outcomes=("kept",))


def _lost_messages() -> Iterator[Case]:
    for party, message, outcome in (
        ("target", "reserve", "gone"),  # it ends before the answer is missed
        ("source", "reserved", "gone"),
        ("target", "extend", "gone"),
        ("target", "commit", "kept"),
        ("source", "committed", "moved"),
        ("gateway", "moving", "moved"),
        ("source", "ruling", "moved"),
    ):
        step = Step(Point(party, "receive", message), is_lost=True)
        yield Case((step,), must_finish=True, outcomes=(outcome,))


def _lost_copies() -> Iterator[Case]:
    for is_tcp in (False, True):
        for point in (STAGE, CHUNK_LEAVES, CHUNK_COMES, STAGE_2):
            yield Case((Step(point, "cut", "kv"),), is_tcp, True, ("kept",))
        yield Case((Step(COMMIT, "cut", "kv"),), is_tcp, True)
        last = (Step(LAST_STAGE), Step(Point("source", "pack", "kv"), "cut", "kv"))
        yield Case(last, is_tcp, True, ("kept",))


def messages_of_a_move() -> set[str]:
    """Tags of all messages that may pass in a move, by `llx.wire`; the gateway's ABORT is one."""
    kinds = {*get_args(wire.ToLlumlet), *get_args(wire.FromLlumlet), wire.Abort}
    return {str(each.__struct_config__.tag) for each in kinds}
