"""The bandwidth that all migrations of one rank share."""

import threading
import time


class Budget:
    """Paces whoever takes from it to `bytes_per_s` in all; 0: no limit.

    Each taker books the time that its bytes need behind what is booked already, and waits for the
    end of it: fair by order of arrival. So what has been sent is paid for, and the short last stage
    of a migration, for which its request stands still, does not wait for the long one before.
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
            self._booked_until = max(now, self._booked_until) + size_bytes / self._bytes_per_s
            wait_s = self._booked_until - now
        closing.wait(wait_s)
