"""What an instance's last steps cost: a ring of bounded length, written on its core thread.

        idle │ step 0        │ step 1    │ step 2        │ idle
    begin ───┘        note ──┘    note ──┘        note ──┘ pause

A step ends where its outputs are known. The next one counts from there, whether it was scheduled
afterwards or, with async scheduling, while the one before was still running.
"""

from collections import deque
from typing import Any, Final

MAX_STEPS: Final = 4096
"""Of 8 ms each, half a minute; some 400 KiB."""

Work = tuple[int, int, int, int, int]
"""What is in a step: the fields of `llx.wire.StepRow` but for the last."""


class StepLog:
    """The last `max_steps` steps. All methods on the core thread; times are nanoseconds."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._rows: deque[tuple[int, ...]] = deque(maxlen=max_steps)
        self._count = 0
        self._begun_at: int | None = None

    def begin(self, now: int) -> None:
        """Something is about to be scheduled; counts only after a pause."""
        if self._begun_at is None:
            self._begun_at = now

    def note(self, work: Work, now: int) -> None:
        """A step has ended."""
        assert self._begun_at is not None, "a step that ends has begun"
        self._rows.append((*work, now - self._begun_at))
        self._count += 1
        self._begun_at = now

    def pause(self) -> None:
        """Nothing runs: what comes next is nobody's time."""
        self._begun_at = None

    def answer(self) -> dict[str, Any]:
        """All that is kept, as an encoded `StepRows` looks: the core thread makes no objects."""
        return {"first": self._count - len(self._rows), "rows": list(self._rows)}
