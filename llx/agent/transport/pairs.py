"""The pairs of a rank: communicators with other ranks, each in one direction, kept for reuse.

    made on demand ──► used by one connection at a time ──► closed when unused for long
                                   │
                                   └── whatever fails in it ──► dropped; the next is a new one

A pair belongs to this rank's process, the peer's, and a direction. Joining is `joining`'s, what
goes through one is `medium_nccl`'s.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from llx.agent.transport.turn import Turn
from llx.errors import EngineError, StillWritingError
from llx.log import get_log
from llx.ports import PairEnd

log = get_log(__name__)

MOST_PAIRS = 16
"""Of one rank, both directions together: each holds staging memory of its GPU."""
IDLE_S = 300.0
SHUN_S = 60.0
"""A peer with which no pair could be joined is not tried again for so long."""
_MOST_SHUNNED = 256


class Pair:
    """One end of a pair, used by one thread at a time.

    Args:
        pair_id: Equal at both ends.
        peer: Identity of the rank at the other end.
        end: What `llx.ports.DeviceKv.join` gave; closed by this.
        chunk_blocks: Most blocks of a chunk that this end takes.
    """

    def __init__(self, pair_id: bytes, peer: bytes, end: PairEnd, chunk_blocks: int) -> None:
        self.id, self.peer, self.chunk_blocks = pair_id, peer, chunk_blocks
        self.num_users = 0
        """Connections that count on it; as `used_at` the business of `Pairs`."""
        self.used_at = time.monotonic()
        self._end = end
        self._in_use = threading.Lock()
        self._is_dropped = False
        self._is_closed = False

    @property
    def is_dropped(self) -> bool:
        """Whether it is of no use any more."""
        return self._is_dropped

    def drop(self) -> None:
        """It is of no use any more. Closed at once, or by the thread that is using it."""
        self._is_dropped = True
        self._close_unless_in_use()

    @contextlib.contextmanager
    def used(self) -> Iterator[PairEnd]:
        """Inside, the end is the caller's; what is raised inside drops it, closed on the way out.

        Raises:
            EngineError: It has been dropped.
            StillWritingError: It could not be closed: what it was doing goes on.
        """
        try:
            with self._in_use:
                if self._is_dropped:
                    raise EngineError("the pair of GPUs has been dropped")
                try:
                    yield self._end
                except BaseException:
                    self._is_dropped = True
                    raise
                finally:
                    self._close_if_dropped()
        finally:
            if self._is_dropped:  # between the last look and the release of the lock
                self._close_unless_in_use()

    def _close_unless_in_use(self) -> None:
        if self._in_use.acquire(blocking=False):
            try:
                self._close_if_dropped()
            except StillWritingError as error:  # between two rounds there is nothing to write
                log.warning("kv.pair_close_failed", pair=self.id.hex(), reason=error.message)
            finally:
                self._in_use.release()

    def _close_if_dropped(self) -> None:
        """With the lock held.

        Raises:
            StillWritingError: What was under way has not ended.
        """
        if not self._is_dropped or self._is_closed:
            return
        self._is_closed = True
        try:
            self._end.close()
        except StillWritingError:
            raise
        except EngineError as error:
            log.warning("kv.pair_close_failed", pair=self.id.hex(), reason=error.message)


class Pairs:
    """All pairs of one rank. Any thread.

    Args:
        idle_s: A pair unused for so long is closed.
        most: How many there may be.
        shun_s: How long a peer is left alone with which none could be joined.
    """

    def __init__(
        self, *, idle_s: float = IDLE_S, most: int = MOST_PAIRS, shun_s: float = SHUN_S
    ) -> None:
        self.identity = os.urandom(16)
        """Of this rank in this process, for its peers."""
        self.sending = Turn("the turn to send")
        self.receiving = Turn("the turn to receive")
        self.look_s = idle_s / 10
        """How often to ask whether any `has_idle`."""
        self._idle_s, self._most, self._shun_s = idle_s, most, shun_s
        self._lock = threading.Lock()
        self._pairs: dict[tuple[bytes, bool], Pair] = {}
        self._num_joining = 0
        self._shunned: dict[bytes, tuple[float, str]] = {}
        self._making: dict[bytes, tuple[Turn, int]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._pairs)

    @contextlib.contextmanager
    def making(
        self, peer: bytes, wait_s: float, is_cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Inside, nobody else of this rank makes a pair to that peer.

        Raises:
            EngineError: As `Turn.taken`.
        """
        with self._lock:
            turn, num_waiting = self._making.get(peer) or (Turn("the making of a pair"), 0)
            self._making[peer] = turn, num_waiting + 1
        try:
            with turn.taken(wait_s, is_cancelled):
                yield
        finally:
            with self._lock:
                turn, num_waiting = self._making.pop(peer)
                if num_waiting > 1:
                    self._making[peer] = turn, num_waiting - 1

    def find(self, peer: bytes, *, is_source: bool, pair_id: bytes | None = None) -> Pair | None:
        """The pair in use with a peer, of that id if one is given; `release` it afterwards."""
        with self._lock:
            pair = self._pairs.get((peer, is_source))
            if pair is None or pair.is_dropped or (pair_id is not None and pair.id != pair_id):
                return None
            pair.num_users += 1
            return pair

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Inside, one more may be made; the one that is unused for longest makes room.

        Raises:
            EngineError: All are in use, or the rank ends.
        """
        with self._lock:
            if self._is_closed:
                raise EngineError("the rank ends")
            dropped = [key for key, pair in self._pairs.items() if pair.is_dropped]
            for key in dropped:
                del self._pairs[key]
            victims: list[Pair] = []
            if len(self._pairs) + self._num_joining >= self._most:
                unused = [item for item in self._pairs.items() if not item[1].num_users]
                if not unused:
                    raise EngineError(f"{self._most} pairs of GPUs are in use")
                key, victim = min(unused, key=lambda item: item[1].used_at)
                del self._pairs[key]
                victims.append(victim)
            self._num_joining += 1
        try:
            for victim in victims:
                victim.drop()
            yield
        finally:
            with self._lock:
                self._num_joining -= 1

    def add(self, pair: Pair, *, is_source: bool) -> None:
        """Keep a new one, which the caller uses, in the place of any other with that peer."""
        with self._lock:
            pair.num_users += 1
            former = self._pairs.get((pair.peer, is_source))
            self._pairs[pair.peer, is_source] = pair
            is_closed = self._is_closed
        if former is not None:
            former.drop()
        if is_closed:
            pair.drop()

    def release(self, pair: Pair) -> None:
        """A connection does not count on it any more."""
        with self._lock:
            pair.num_users -= 1
            pair.used_at = time.monotonic()
            for key, each in list(self._pairs.items()):
                if each is pair and pair.is_dropped:
                    del self._pairs[key]

    def shun(self, peer: bytes, why: str) -> None:
        """None could be joined with it: leave it alone for a while."""
        with self._lock:
            self._shunned.pop(peer, None)
            self._shunned[peer] = (time.monotonic(), why)
            if len(self._shunned) > _MOST_SHUNNED:
                del self._shunned[next(iter(self._shunned))]

    def shunned(self, peer: bytes) -> str:
        """Why a peer is left alone now; empty: it is not."""
        with self._lock:
            since, why = self._shunned.get(peer, (0.0, ""))
            if not why:
                return ""
            age = time.monotonic() - since
            if age > self._shun_s:
                del self._shunned[peer]
                return ""
        return f"could not be joined {age:.0f} s ago: {why}"

    @property
    def has_idle(self) -> bool:
        """Whether there is anything for `close_idle`, which may take a while."""
        with self._lock:
            return bool(self._idle())

    def close_idle(self) -> None:
        """Close what has been unused for long."""
        with self._lock:
            pairs = [self._pairs.pop(key) for key in self._idle()]
        for pair in pairs:
            pair.drop()

    def _idle(self) -> list[tuple[bytes, bool]]:
        since = time.monotonic() - self._idle_s
        return [
            key
            for key, pair in self._pairs.items()
            if pair.is_dropped or (not pair.num_users and pair.used_at < since)
        ]

    def close(self) -> None:
        """Drop all, for good; a thread that is using one closes it as it leaves."""
        with self._lock:
            self._is_closed = True
            pairs, self._pairs = list(self._pairs.values()), {}
        for pair in pairs:
            pair.drop()
