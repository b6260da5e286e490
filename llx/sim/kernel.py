"""Events in virtual time.

Time is integer nanoseconds. Of events at one time the ends of steps come first, in the order
of their engines' keys; then all others, in the order in which they were asked for. So what happens
does not depend on whether an engine's steps are simulated one by one or several at once.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, TypeVarTuple, Unpack

from llx.core.model import Nanos

_OTHERS: Final = 1 << 62
"""Behind every engine's key."""

Ts = TypeVarTuple("Ts")


class Timer:
    """An event that may be called off."""

    __slots__ = ("action", "args")

    def __init__(self, action: Callable[..., None], args: tuple[object, ...]) -> None:
        self.action: Callable[..., None] | None = action
        self.args: Final = args

    def cancel(self) -> None:
        """It does not happen; nothing if it has."""
        self.action = None


class Kernel:
    """The clock, and what is still to happen."""

    def __init__(self) -> None:
        self.now = Nanos(0)
        self.num_events = 0
        """Events that have happened."""
        self._heap: list[tuple[Nanos, int, int, Timer]] = []
        self._order = 0

    def at(self, time: Nanos, action: Callable[[Unpack[Ts]], None], *args: *Ts) -> Timer:
        """Have something happen at `time`, which is not past."""
        return self._push(time, _OTHERS, action, args)

    def after(self, delay: Nanos, action: Callable[[Unpack[Ts]], None], *args: *Ts) -> Timer:
        """Have something happen `delay` from now."""
        return self._push(Nanos(self.now + delay), _OTHERS, action, args)

    def step_ends(self, time: Nanos, key: int, action: Callable[[], None]) -> Timer:
        """Have an engine's step end; `key` orders those that end at the same time."""
        # As `_push`, of which it is the most frequent use.
        timer = Timer(action, ())
        self._order += 1
        heappush(self._heap, (time, key, self._order, timer))
        return timer

    def step_ends_again(self, time: Nanos, key: int, timer: Timer) -> None:
        """As `step_ends`, by the timer of the end that is happening."""
        self._order += 1
        heappush(self._heap, (time, key, self._order, timer))

    def run(self) -> None:
        """Until nothing more is to happen."""
        heap = self._heap
        while heap:
            time, _, _, timer = heappop(heap)
            action = timer.action
            if action is None:
                continue
            self.now = time
            self.num_events += 1
            action(*timer.args)

    def _push(
        self, time: Nanos, rank: int, action: Callable[..., None], args: tuple[object, ...]
    ) -> Timer:
        assert time >= self.now, f"{time} is past, it is {self.now}"
        timer = Timer(action, args)
        self._order += 1
        heappush(self._heap, (time, rank, self._order, timer))
        return timer
