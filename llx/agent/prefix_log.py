"""What is in an engine's prefix cache, so that each peer that asks is told of every change.

The engine notes what it stores and drops; a peer is told, whenever a report goes to it anyway, what
has become of the blocks that have changed since it was told last. So what comes and goes between
two reports is told once, and whoever is too far behind is told all that there is.

    core thread     begin {a, b} ─► 1    add c ─► 2    remove a ─► 3
    sender thread   to a new peer: all of {b, c}       to one told upto 2: -a
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from llx.core.prefix_blocks import MOST_BLOCKS, BlockName, packed

_REMEMBERED = 1 << 14
"""Changes; whoever is further behind is told everything."""


@dataclass(frozen=True, slots=True)
class News:
    """What to tell. `upto`: the number of the last change in it. `is_whole`: it is all there is."""

    upto: int
    is_whole: bool
    added: bytes
    removed: bytes = b""


class PrefixLog:
    """The blocks that are cached, and which have changed last. For any thread.

    An engine may have one block several times over: it counts until the last of them is dropped.
    """

    def __init__(self, most: int = MOST_BLOCKS, remembered: int = _REMEMBERED) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._copies: dict[BlockName, int] = {}
        self._changed: deque[BlockName] = deque(maxlen=remembered)
        self._count = 0
        self._is_open = False

    # ------------------------------------------------------------------ core thread

    def begin(self, blocks: Iterable[BlockName]) -> None:
        """These are cached, and no others; what becomes of them is noted from now on."""
        with self._lock:
            self._begin_anew()
            self._is_open = True
            self._add(blocks)
            self._changed.clear()

    def end(self) -> None:
        """Nothing is noted any longer, and nobody is told of anything."""
        with self._lock:
            self._begin_anew()
            self._is_open = False

    def add(self, blocks: Iterable[BlockName]) -> None:
        """They were stored, each once more."""
        with self._lock:
            self._add(blocks)

    def remove(self, blocks: Iterable[BlockName]) -> None:
        """They were dropped, each once."""
        with self._lock:
            for block in blocks:
                copies = self._copies.get(block, 0)
                if copies > 1:
                    self._copies[block] = copies - 1
                elif copies:
                    del self._copies[block]
                    self._note(block)

    def clear(self) -> None:
        """All were dropped."""
        with self._lock:
            self._begin_anew()

    # ------------------------------------------------------------------ sender thread

    def since(self, told: int | None) -> News | None:
        """What has changed after the change of that number; None: it has to be told everything.

        Returns None if there is nothing to tell.
        """
        with self._lock:
            if not self._is_open or told == self._count:
                return None
            if told is None or self._count - told > len(self._changed):
                return News(self._count, True, packed(self._copies))
            changed = set(islice(reversed(self._changed), self._count - told))
            added = packed(each for each in changed if each in self._copies)
            removed = packed(each for each in changed if each not in self._copies)
            return News(self._count, False, added, removed)

    # ------------------------------------------------------------------ leaves, under the lock

    def _add(self, blocks: Iterable[BlockName]) -> None:
        for block in blocks:
            copies = self._copies.get(block, 0)
            if not copies:
                if len(self._copies) >= self._most:
                    continue
                self._note(block)
            self._copies[block] = copies + 1

    def _note(self, block: BlockName) -> None:
        self._changed.append(block)
        self._count += 1

    def _begin_anew(self) -> None:
        """Everybody is too far behind."""
        self._copies.clear()
        self._changed.clear()
        self._count += 1
