"""How fast a stream's tokens come, and what a change of owner did to it, as its gateway sees it."""

import statistics
from collections import deque

from llx.core.model import Epoch, InstanceId, RequestId
from llx.wire import MoveSeen

_GAPS = 32
_FEWEST = 8
_MOVES = 256
"""So many moves are repeated in reports."""


class Pace:
    """The last gaps between one request's outputs. Times are this process's, in seconds."""

    __slots__ = ("_gaps", "_last")

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._last: float | None = None

    def note(self, now: float) -> float:
        """Tokens have come; returns the gap before them, 0 for the first ones."""
        gap = 0.0 if self._last is None else now - self._last
        if self._last is not None:
            self._gaps.append(gap)
        self._last = now
        return gap

    @property
    def itl_s(self) -> float:
        """The median of the last 32 gaps; 0 if there were too few to say."""
        return statistics.median(self._gaps) if len(self._gaps) >= _FEWEST else 0.0


class MoveLog:
    """The last moves."""

    def __init__(self) -> None:
        self._moves: deque[MoveSeen] = deque(maxlen=_MOVES)

    def note(
        self,
        request: RequestId,
        epoch: Epoch,
        source: InstanceId,
        target: InstanceId,
        num_tokens: int,
        pace: Pace,
        now: float,
    ) -> MoveSeen:
        """The target's first tokens have come; its gap counts for the pace from here on."""
        itl_s = pace.itl_s
        downtime_s = pace.note(now)
        move = MoveSeen(request, epoch, source, target, num_tokens, downtime_s * 1e3, itl_s * 1e3)
        self._moves.append(move)
        return move

    def last(self) -> list[MoveSeen]:
        """Oldest first."""
        return list(self._moves)
