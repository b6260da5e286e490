"""Which of a process's links dial now: so many at a time, lest they be in each other's way.

A link that dials says hello again and again, and reads what each hello brings. A process with a
thousand of them, all new to it, would do nothing else and have no session in the end.
"""

import asyncio
from typing import Final

_AT_A_TIME: Final = 128
_HELD_S: Final = 2.0
"""Whoever has no session by then goes on trying, and the next one begins: it may be a dead one."""


class DialTurns:
    """Shared by the links of a process; used on its event loop alone."""

    def __init__(self, at_a_time: int = _AT_A_TIME, held_s: float = _HELD_S) -> None:
        self._free = asyncio.Semaphore(at_a_time)
        self._held_s = held_s
        self._timers: dict[object, asyncio.TimerHandle] = {}

    async def take(self, link: object) -> None:
        """Wait for a turn to dial; a link has one at a time."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        self._timers[link] = loop.call_later(self._held_s, self.give_back, link)

    def give_back(self, link: object) -> None:
        """The turn is over, by a session or without; nothing if it was before."""
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
            self._free.release()
