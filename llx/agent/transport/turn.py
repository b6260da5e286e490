"""Who may use what a rank has one of, one at a time: urgent ones first, then by arrival."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from llx.errors import EngineError

_LOOK_EVERY_S = 0.02
"""How soon one that waits notices that it need not any more."""


class Turn:
    """Taken by one thread at a time.

    Args:
        what: For the error: what it is that was waited for.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._changed = threading.Condition()
        self._is_taken = False
        self._numbers = itertools.count()
        self._waiting: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def taken(
        self, wait_s: float, is_cancelled: Callable[[], bool], *, is_urgent: bool = False
    ) -> Iterator[None]:
        """Inside, it is the caller's.

        Raises:
            EngineError: It was not to be had in `wait_s`, or `is_cancelled` said so.
        """
        self._take(time.monotonic() + wait_s, is_cancelled, is_urgent)
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    def _take(self, until: float, is_cancelled: Callable[[], bool], is_urgent: bool) -> None:
        with self._changed:
            ticket = (not is_urgent, next(self._numbers))
            self._waiting.add(ticket)
            try:
                while self._is_taken or ticket != min(self._waiting):
                    if is_cancelled():
                        raise EngineError(f"gave up waiting for {self._what}")
                    if time.monotonic() > until:
                        raise EngineError(f"{self._what} was not to be had in time")
                    self._changed.wait(_LOOK_EVERY_S)
                self._is_taken = True
            finally:
                self._waiting.discard(ticket)
                self._changed.notify_all()
