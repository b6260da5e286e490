"""Events in virtual time.

Time is integer nanoseconds. Of events at one time those of lane `STEP_ENDS` come first, in the
order of their keys; then all others, in the order in which they were asked for. So what happens
does not depend on whether an engine's steps are simulated one by one or several at once.
"""

import heapq
from collections.abc import Callable
from typing import Final

from llx.core.model import Nanos

STEP_ENDS: Final = 0
OTHERS: Final = 1

Action = Callable[[], None]


class Timer:
    """An event that may be called off."""

    __slots__ = ("action", "at")

    def __init__(self, at: Nanos, action: Action) -> None:
        self.at: Final = at
        self.action: Action | None = action

    def cancel(self) -> None:
        """It does not happen; nothing if it has."""
        self.action = None


class Kernel:
    """The clock, and what is still to happen."""

    def __init__(self) -> None:
        self.now = Nanos(0)
        self.num_events = 0
        """Events that have happened."""
        self._heap: list[tuple[int, int, int, int, Timer]] = []
        self._order = 0

    def at(self, time: Nanos, action: Action) -> Timer:
        """Have something happen at `time`, which is not past."""
        return self._push(time, OTHERS, 0, action)

    def after(self, delay: Nanos, action: Action) -> Timer:
        """Have something happen `delay` from now."""
        return self._push(Nanos(self.now + delay), OTHERS, 0, action)

    def step_ends(self, time: Nanos, key: int, action: Action) -> Timer:
        """Have an engine's step end; `key` orders those that end at the same time."""
        return self._push(time, STEP_ENDS, key, action)

    def run(self) -> None:
        """Until nothing more is to happen."""
        while self._heap:
            time, _, _, _, timer = heapq.heappop(self._heap)
            action = timer.action
            if action is None:
                continue
            self.now = Nanos(time)
            self.num_events += 1
            timer.action = None
            action()

    def _push(self, time: Nanos, lane: int, key: int, action: Action) -> Timer:
        assert time >= self.now, f"{time} is past, it is {self.now}"
        timer = Timer(time, action)
        self._order += 1
        heapq.heappush(self._heap, (time, lane, key, self._order, timer))
        return timer
