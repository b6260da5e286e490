"""A process's promises to whoever holds it: "by then I shall have moved on".

    the process    writes deadlines into DIR/pulse, and moves them on as long as it gets on
    its shim       reads them every second; one that has passed: the process hangs, and is killed

So a hang ends like a crash, which everybody knows how to survive, and nothing that has been given
up can come back. Nobody need be reachable for that: neither the head, nor the agent, nor a network.
"""

import mmap
import os
import time
from enum import IntEnum
from pathlib import Path
from typing import Final

PULSE: Final = "pulse"
"""The file beside the process's status, memory of its shim's: one native 64-bit integer for each
slot, nanoseconds of ``CLOCK_MONOTONIC``, 0 for no promise."""


class Slot(IntEnum):
    """What moves on; the shim has words for each (`HUNG` in ``shim.py``)."""

    ALIVE = 0
    """The thread that hears peers, or the event loop."""
    STEP = 1
    """The engine's step under way."""


class Pulse:
    """The file, written by this process. A slot belongs to one thread."""

    def __init__(self, path: Path) -> None:
        size = len(Slot) * 8
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, size)
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._slots = memoryview(self._memory).cast("q")  # one store each: never half a number
        self._has_ended = False

    @classmethod
    def beside(cls, status_path: str) -> "Pulse":
        """That of the process whose status this is."""
        return cls(Path(status_path).with_name(PULSE))

    def promise(self, slot: Slot, within_s: float) -> None:
        """To promise again, or to rest, before so much time has passed; 0: nothing is promised."""
        if within_s and not self._has_ended:
            self._slots[slot] = time.monotonic_ns() + int(within_s * 1e9)

    def rest(self, slot: Slot) -> None:
        """Nothing is promised now."""
        self._slots[slot] = 0

    def end(self) -> None:
        """Promise nothing any more: the process comes to its end, which others have limits for."""
        self._has_ended = True
        for slot in Slot:
            self.rest(slot)
