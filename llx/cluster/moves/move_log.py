"""The record of migrations: those that are open and the last that are over.

Fed with what instances and gateways say, at any time and in any order: a gateway may have seen the
move before its source says that it is over, and a source may come back and tell how one ended that
was given up. Nothing here sends anything.
"""

import asyncio
import itertools
import statistics
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from llx.api import MigrationStatus, MoveOutcome
from llx.cluster.metrics.tally import MoveTally
from llx.core.model import Epoch, InstanceId, MigrationId, RequestId
from llx.wire import MigrationNews, MoveSeen

MAX_OVER = 1000
POLICY = "policy"
"""The user of moves that no user has asked for."""
_MAX_SEEN = 4096
_RECENT = 50
"""Figures of so many last moves tell what the next one will be like."""

SeenKey = tuple[RequestId, InstanceId, InstanceId, Epoch]


@dataclass(slots=True, eq=False)
class Move:
    """One migration. `begun_at` and `ended_at` in Unix seconds, `heard_at` on the monotonic clock.

    Attributes:
        request, name: Empty as long as the source has not said which it has chosen.
        news: What its source said last; None: nothing yet.
        seen: What the gateway saw.
        over: Set when `outcome` is known, or given up.
    """

    id: MigrationId
    request: RequestId
    name: str
    source: InstanceId
    target: InstanceId
    user: str
    why: str
    begun_at: float
    heard_at: float
    num_blocks: int = 0
    news: MigrationNews | None = None
    seen: MoveSeen | None = None
    outcome: MoveOutcome | None = None
    reason: str = ""
    ended_at: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        """Whether it is still under way, as far as anybody knows."""
        return self.outcome is None

    def status(self) -> MigrationStatus:
        """As the control API shows it."""
        news, seen = self.news, self.seen
        paced = seen if seen is not None and seen.itl_ms else None
        found = MigrationStatus(
            id=self.id,
            request=self.request,
            name=self.name,
            source=self.source,
            target=self.target,
            user=self.user,
            why=self.why,
            state="ordered" if news is None else news.state,
            outcome=self.outcome,
            reason=self.reason,
            begun_at=self.begun_at,
            ended_at=self.ended_at,
            downtime_ms=None if seen is None else seen.downtime_ms,
            itl_ms=None if paced is None else paced.itl_ms,
            stall_ms=None if paced is None else round(paced.downtime_ms - paced.itl_ms, 3),
        )
        if news is None:
            return found
        figures = {
            "stage": news.stage,
            "num_stages": news.num_stages,
            "blocks_copied": news.blocks_copied,
            "blocks_reused": news.blocks_reused,
            "num_tokens": news.num_tokens,
            "size_bytes": news.size_bytes,
            "rate": news.rate,
            "elapsed_ms": news.elapsed_ms,
            "transport": news.transport,
            "transport_why": news.transport_why,
        }
        return found.model_copy(update=figures)


@dataclass(frozen=True, slots=True)
class Experience:
    """What the last moves were like: medians; None: not known. `count`: moves measured."""

    count: int = 0
    downtime_ms: float | None = None
    rate: float | None = None


class MoveLog:
    """All migrations that are open and the last `max_over` that are over."""

    def __init__(self, max_over: int = MAX_OVER) -> None:
        self._max_over = max_over
        self.tally = MoveTally()
        self._open: dict[MigrationId, Move] = {}
        self._over: OrderedDict[MigrationId, Move] = OrderedDict()
        self._seen: OrderedDict[SeenKey, MoveSeen] = OrderedDict()
        self._moved_by: dict[InstanceId, str] = {}

    # ------------------------------------------------------------------ looking

    def get(self, migration: str) -> Move | None:
        """The migration of that id."""
        key = MigrationId(migration)
        return self._open.get(key) or self._over.get(key)

    def all(self) -> list[Move]:
        """All of them, the oldest first."""
        return sorted([*self._over.values(), *self._open.values()], key=lambda each: each.begun_at)

    def latest(self, max_over: int) -> list[Move]:
        """Those under way and the last `max_over` that are over, the oldest first."""
        over = list(itertools.islice(reversed(self._over.values()), max_over))
        return sorted([*over, *self._open.values()], key=lambda each: each.begun_at)

    def open(self) -> list[Move]:
        """Those under way."""
        return list(self._open.values())

    def open_of(self, request: str) -> Move | None:
        """The migration of a request that is under way."""
        return next((each for each in self._open.values() if each.request == request), None)

    def leaving(self, instance: str) -> list[Move]:
        """Those under way from an instance."""
        return [each for each in self._open.values() if each.source == instance]

    def coming(self, instance: str) -> list[Move]:
        """Those under way to an instance."""
        return [each for each in self._open.values() if each.target == instance]

    def moved_by(self, instance: str) -> str:
        """How KV last went from or to an instance, and why so: ``shm (nccl: no GPU)``, or empty."""
        return self._moved_by.get(InstanceId(instance), "")

    def experience(self) -> Experience:
        """What the last moves were like."""
        last = [each for each in self._over.values() if each.outcome is MoveOutcome.MOVED]
        last = last[-_RECENT:]
        gaps = [each.seen.downtime_ms for each in last if each.seen is not None]
        rates = [each.news.rate for each in last if each.news is not None and each.news.rate > 0]
        return Experience(
            count=len(gaps),
            downtime_ms=statistics.median(gaps) if gaps else None,
            rate=statistics.median(rates) if rates else None,
        )

    # ------------------------------------------------------------------ what happens

    def begin(self, move: Move) -> None:
        """It was ordered."""
        self._open[move.id] = move

    def on_news(self, move: Move, news: MigrationNews, at: float, now: float) -> bool:
        """Its source has said something; returns whether it is over by that.

        `at` in Unix seconds, `now` on the monotonic clock. A last word counts also after it was
        given up; nothing counts after a last word.
        """
        if not move.is_open and not (move.outcome is MoveOutcome.UNKNOWN and news.is_over):
            return False
        move.news, move.heard_at = news, now
        move.request, move.name = news.request or move.request, news.name or move.name
        if news.transport:
            why = f" ({news.transport_why})" if news.transport_why else ""
            self._moved_by[move.source] = self._moved_by[move.target] = f"{news.transport}{why}"
        if not news.is_over:
            return False
        try:
            outcome = MoveOutcome(news.outcome)
        except ValueError:
            outcome = MoveOutcome.UNKNOWN
        self.end(move, outcome, news.reason, at)
        return True

    def on_seen(self, moves: Iterable[MoveSeen], at: float) -> list[Move]:
        """What a gateway saw, much of it not for the first time; returns whom it has ended.

        That a request goes on at the target settles a move of which its source never said how it
        ended.
        """
        ended = []
        for seen in moves:
            key = _key(seen)
            if key in self._seen:
                continue
            self._seen[key] = seen
            self.tally.saw(seen.downtime_ms)
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            for move in self._matching(seen):
                move.seen = seen
                if move.outcome is MoveOutcome.UNKNOWN:
                    self.end(move, MoveOutcome.MOVED, "", at)
                    ended.append(move)
        return ended

    def drop(self, move: Move) -> None:
        """It came to nothing that is worth a line: its source had no request to move."""
        self._over.pop(move.id, None)

    def end(self, move: Move, outcome: MoveOutcome, reason: str, at: float) -> None:
        """It is over, or given up."""
        move.outcome, move.reason, move.ended_at = outcome, reason, at
        self._open.pop(move.id, None)
        self._over[move.id] = move
        if len(self._over) > self._max_over:
            self._over.popitem(last=False)
        if move.seen is None:
            move.seen = next((self._seen[key] for key in _seen_as(move) if key in self._seen), None)
        if move.seen is not None and outcome is MoveOutcome.UNKNOWN:
            move.outcome, move.reason = MoveOutcome.MOVED, ""
        self._count(move)
        move.over.set()

    def _count(self, move: Move) -> None:
        assert move.outcome is not None, "it is over"
        self.tally.over("policy" if move.user == POLICY else "request", move.outcome)
        if move.outcome is MoveOutcome.MOVED and move.news is not None and move.news.is_over:
            self.tally.moved(move.news.elapsed_ms, move.news.size_bytes)

    def _matching(self, seen: MoveSeen) -> list[Move]:
        key = _key(seen)
        return [
            each
            for each in itertools.chain(self._open.values(), self._over.values())
            if each.seen is None and each.request == seen.request and key in _seen_as(each)
        ]


def _key(seen: MoveSeen) -> SeenKey:
    return (seen.request, seen.source, seen.target, seen.epoch)


def _seen_as(move: Move) -> list[SeenKey]:
    """How a gateway may tell of this move, the likelier first.

    The source speaks of the epoch under which it had the request, the gateway of that under which
    the target has it, the next one. A request that goes back and forth comes to the same source
    two epochs later.
    """
    if move.news is None:
        return []
    epoch = move.news.epoch
    return [(move.request, move.source, move.target, Epoch(each)) for each in (epoch + 1, epoch)]
