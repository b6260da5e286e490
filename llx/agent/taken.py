"""Which requests an engine has taken in lately, so that each scheduler is told of each once.

A load report replaces one that was not sent yet. What it says of the load may be lost so, but not
which requests it contains: whoever sent them counts them until a report says that it has them.

    core thread     extend([r1]) ─► 1   extend([r2, r3]) ─► 3
    sender thread   report to s: upto 3, told 0 ─► r1, r2, r3      next: told 3
"""

import threading
from collections import deque
from collections.abc import Iterable

from llx.core.model import RequestId

_MOST = 4096
"""So many are remembered; whoever is further behind counts the rest until that expires."""


class Taken:
    """The last requests taken in, numbered from 1. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: deque[RequestId] = deque(maxlen=_MOST)
        self._count = 0

    @property
    def count(self) -> int:
        """The number of the last one; 0: none yet."""
        return self._count

    def extend(self, requests: Iterable[RequestId]) -> int:
        """More were taken in; returns the number of the last one."""
        with self._lock:
            for request in requests:
                self._last.append(request)
                self._count += 1
            return self._count

    def between(self, told: int, upto: int) -> list[RequestId]:
        """Those with numbers above `told`, up to `upto`, as far as they are remembered."""
        if told == upto:
            return []
        with self._lock:
            first = self._count - len(self._last) + 1
            return list(self._last)[max(0, told + 1 - first) : max(0, upto + 1 - first)]
