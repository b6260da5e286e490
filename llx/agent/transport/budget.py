"""The bandwidth that all migrations of one rank share."""

import threading
import time


class Budget:
    """Paces whoever takes from it to `bytes_per_s` in all; 0: no limit.

    Each taker books the time that its bytes need behind what is booked already, and waits for its
    turn: fair by order of arrival, and never more than one chunk ahead.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._booked_until = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether taking may have to wait."""
        return self._bytes_per_s > 0

    def take(self, size_bytes: int, closing: threading.Event) -> None:
        """Wait until `size_bytes` may be sent, or `closing` is set."""
        if self._bytes_per_s <= 0:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._booked_until)
            self._booked_until = start + size_bytes / self._bytes_per_s
        if start > now:
            closing.wait(start - now)
