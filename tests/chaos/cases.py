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
    """`deed`: ``kill``, ``freeze`` (shorter than a lease), ``hang`` (longer), ``isolate`` (from the
    gateway), ``cut`` (``llumlets`` or ``kv``), ``drop`` (the message), ``cancel``, ``leave`` (the
    client), ``fill`` (the target); `whom` it is done to."""

    point: Point
    deed: str
    whom: str = ""


@dataclass(frozen=True)
class Case:
    """Steps in order. `must_finish`: no loss in this case is an excuse for the stream to end."""

    steps: tuple[Step, ...]
    is_tcp: bool = False
    must_finish: bool = False

    @property
    def name(self) -> str:
        words = []
        for step in self.steps:
            deed = step.deed if not step.whom else f"{step.deed}-{step.whom}"
            words.append(f"{deed}-when-{step.point}")
        return ("tcp-" if self.is_tcp else "") + "-then-".join(words)


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
_PARTED = Step(COMMIT, "cut", "llumlets")
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
    (_LEFT, Point("gateway", "send", "abort")),
    (_LEFT, Point("source", "receive", "abort")),
)
"""What leads to the messages of failure, and the points of those."""


def all_cases() -> Iterator[Case]:
    """The whole matrix."""
    for point in WAY:
        for party in PARTIES:
            is_owned = party == "source" and point in OWNED
            yield Case((Step(point, "kill", party),), must_finish=is_owned)
        yield Case((Step(point, "freeze", point.party),), must_finish=True)
        yield Case((Step(point, "cut", "llumlets"),), must_finish=True)
        yield Case((Step(point, "cancel"),), must_finish=True)
        yield Case((Step(point, "leave"),))
    yield from _failures()
    yield from _losses()
    yield from _room()


def _failures() -> Iterator[Case]:
    for before, point in FAILURES:
        for party in PARTIES:
            yield Case((before, Step(point, "kill", party)))


def _losses() -> Iterator[Case]:
    for edge in ("source", "target"):
        for point in (STAGE, COMMIT, HAS_COMMITTED, Point("gateway", "send", "ruling")):
            yield Case((Step(point, "isolate", edge),))
    for point in (STAGE, COMMIT, HAS_COMMITTED):
        for party in PARTIES:
            yield Case(
                (Step(point, "hang", party),),
                must_finish=party == "target" and point != HAS_COMMITTED,
            )
    for party, message in (
        ("target", "reserve"),
        ("source", "reserved"),
        ("target", "extend"),
        ("target", "commit"),
        ("source", "committed"),
        ("gateway", "moving"),
        ("source", "ruling"),
    ):
        yield Case((Step(Point(party, "receive", message), "drop"),), must_finish=True)
    for is_tcp in (False, True):
        for point in (STAGE, CHUNK_LEAVES, CHUNK_COMES, STAGE_2, COMMIT):
            yield Case((Step(point, "cut", "kv"),), is_tcp, must_finish=True)
        chunk_of_last = Point("source", "pack", "kv")
        last = (Step(LAST_STAGE, ""), Step(chunk_of_last, "cut", "kv"))
        yield Case(last, is_tcp, must_finish=True)


def _room() -> Iterator[Case]:
    yield Case((_FULL,), must_finish=True)
    yield Case((Step(Point("source", "send", "extend"), "fill"),), must_finish=True)


def messages_of_a_move() -> set[str]:
    """Tags of all messages that may pass in a move, by `llx.wire`; the gateway's ABORT is one."""
    kinds = {*get_args(wire.ToLlumlet), *get_args(wire.FromLlumlet), wire.Abort}
    return {str(each.__struct_config__.tag) for each in kinds}
