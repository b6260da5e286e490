"""All ranks of an instance as one `llx.ports.KvTransport`.

An event of a migration counts once every rank has had it, a failure as soon as one has.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llx.core.model import MigrationId, RequestId
from llx.ports import Copied, KvListener
from llx.wire import Route


class Rank(Protocol):
    """One rank's agent, in this process (`rank.RankAgent`) or in another (`remote.RemoteRank`).

    The methods are those of `llx.ports.KvTransport` for one rank, and what they promise is the
    same: nothing blocks, each `done` is called exactly once, on any thread, at times before the
    call returns.
    """

    @property
    def route(self) -> Route:
        """How it is reached."""

    def report_to(self, listener: KvListener) -> None:
        """Whom to tell, before the first `expect`."""

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """Target."""

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """Target."""

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """Target."""

    def finish(self, migration: MigrationId) -> None:
        """Target."""

    def open(self, migration: MigrationId, route: Route, token: bytes, *, is_checked: bool) -> None:
        """Source."""

    def send(
        self,
        migration: MigrationId,
        stage: int,
        source: Sequence[int],
        target: Sequence[int],
        *,
        state_of: RequestId | None,
        done: Callable[[Copied | str], None],
    ) -> None:
        """Source."""

    def close(self, migration: MigrationId) -> None:
        """Source."""

    def stop(self) -> None:
        """End it: every connection and thread."""


@dataclass(slots=True)
class _Arriving:
    """What the ranks have said of one migration that this instance is the target of."""

    num_arrived: dict[int, int] = field(default_factory=dict)
    """Ranks by stage."""
    is_broken: bool = False


class InstanceTransport:
    """The `KvTransport` of an instance.

    Args:
        ranks: Its ranks, in order; at least one.
        listener: Who is told.
    """

    def __init__(self, ranks: Sequence[Rank], listener: KvListener) -> None:
        self._ranks = list(ranks)
        self._listener = listener
        self._lock = threading.Lock()
        self._arriving: dict[MigrationId, _Arriving] = {}
        self._refused: dict[MigrationId, str] = {}
        """Migrations that could not be opened, and why not."""
        for rank in self._ranks:
            rank.report_to(self)

    @property
    def routes(self) -> list[Route]:
        """How this instance's ranks are reached."""
        return [rank.route for rank in self._ranks]

    # ------------------------------------------------------------------ target

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """See `llx.ports.KvTransport`."""
        with self._lock:
            self._arriving[migration] = _Arriving()
        for rank in self._ranks:
            rank.expect(migration, token, blocks)

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """See `llx.ports.KvTransport`."""
        for rank in self._ranks:
            rank.allow(migration, blocks)

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """See `llx.ports.KvTransport`; `done` may be called before this returns."""
        with self._lock:
            self._arriving.pop(migration, None)
        count = _Countdown(len(self._ranks), done)
        for rank in self._ranks:
            rank.fence(migration, count.one)

    def finish(self, migration: MigrationId) -> None:
        """See `llx.ports.KvTransport`."""
        with self._lock:
            self._arriving.pop(migration, None)
        for rank in self._ranks:
            rank.finish(migration)

    # ------------------------------------------------------------------ source

    def open(
        self, migration: MigrationId, routes: Sequence[Route], token: bytes, *, is_checked: bool
    ) -> None:
        """See `llx.ports.KvTransport`."""
        if len(routes) != len(self._ranks):
            self._refused[migration] = f"{len(self._ranks)} ranks here, {len(routes)} at the target"
            return
        for rank, route in zip(self._ranks, routes, strict=True):
            rank.open(migration, route, token, is_checked=is_checked)

    def send(
        self,
        migration: MigrationId,
        stage: int,
        source: Sequence[int],
        target: Sequence[int],
        *,
        state_of: RequestId | None,
        done: Callable[[Copied | str], None],
    ) -> None:
        """See `llx.ports.KvTransport`; `done` may be called before this returns."""
        if refusal := self._refused.get(migration):
            done(refusal)
            return
        total = _Sum(len(self._ranks), done)
        for number, rank in enumerate(self._ranks):
            done_by = total.of_rank(number)
            rank.send(migration, stage, source, target, state_of=state_of, done=done_by)

    def close(self, migration: MigrationId) -> None:
        """See `llx.ports.KvTransport`."""
        if self._refused.pop(migration, None) is None:
            for rank in self._ranks:
                rank.close(migration)

    def stop(self) -> None:
        """End every connection and thread of every rank; the listener hears no more then."""
        with self._lock:
            self._arriving.clear()
        for rank in self._ranks:
            rank.stop()

    # ------------------------------------------------------------------ what ranks report

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        """A rank has a stage. Called on threads of the ranks, by each in order."""
        with self._lock:
            arriving = self._arriving.get(migration)
            if arriving is None or arriving.is_broken:
                return
            count = arriving.num_arrived.get(stage, 0) + 1
            arriving.num_arrived[stage] = count
        # Stage n + 1 cannot overtake: the last rank to have stage n says so here before it goes on.
        if count == len(self._ranks):
            self._listener.on_arrived(migration, stage)

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        """A rank has lost its connection; the first one is the failure of all."""
        with self._lock:
            arriving = self._arriving.get(migration)
            if arriving is None or arriving.is_broken:
                return
            arriving.is_broken = True
        self._listener.on_broken(migration, reason)


class _Countdown:
    """Calls `done` when all of several have called `one`."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._left = count
        self._done = done

    def one(self) -> None:
        with self._lock:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._done()


class _Sum:
    """Calls `done` with all of several as one, or with the first failure among them."""

    def __init__(self, count: int, done: Callable[[Copied | str], None]) -> None:
        self._lock = threading.Lock()
        self._left = count
        self._copied: dict[int, Copied] = {}
        self._done = done

    def of_rank(self, rank: int) -> Callable[[Copied | str], None]:
        """What that rank is to call."""
        return lambda result: self._add(rank, result)

    def _add(self, rank: int, result: Copied | str) -> None:
        with self._lock:
            if self._left == 0:
                return
            if isinstance(result, str):
                self._left = 0
                answer: Copied | str = result
            else:
                self._left -= 1
                self._copied[rank] = result
                if self._left:
                    return
                answer = _as_one([self._copied[each] for each in sorted(self._copied)])
        self._done(answer)


def _as_one(ranks: list[Copied]) -> Copied:
    """All ranks together; what is alike is said once."""
    media = [each.medium for each in ranks]
    return Copied(
        sum(each.size_bytes for each in ranks),
        media[0] if len(set(media)) == 1 else ", ".join(media),
        " | ".join(dict.fromkeys(each.why for each in ranks if each.why)),
    )
