"""How long a stop may take, and counting what it did to the requests in hand."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from llx.api import StopReport
from llx.wire import GatewayReport


@dataclass(slots=True)
class Deadline:
    """When something must have ended, on the monotonic clock; may be brought forward meanwhile."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds until then; 0 when it is over."""
        return max(0.0, self.at - time.monotonic())

    def shorten(self, seconds: float) -> None:
        """At most so many seconds from now."""
        self.at = min(self.at, time.monotonic() + seconds)


class StopCount:
    """Begun when a stop begins; `latest` is asked then and at the end."""

    def __init__(self, latest: Callable[[], GatewayReport | None]) -> None:
        self._latest = latest
        self._first = latest()

    def report(self, *, was_killed: bool, is_gone: bool = True) -> StopReport:
        """How many requests ended well and how many were cut off.

        In hand were those in flight at the beginning and those accepted until the gateway closed.
        Cut off are those that failed meanwhile and, if the gateway had to be killed at the
        deadline, those still in flight then. Of a gateway that nobody could reach to the end
        (not `is_gone`) they are neither: nobody knows.
        """
        first, last = self._first, self._latest()
        if first is None or last is None:
            return StopReport(finished=0, cut=0)
        in_hand = first.in_flight + max(0, last.num_requests - first.num_requests)
        failed = max(0, last.num_failed - first.num_failed)
        cut = failed + (last.in_flight if was_killed else 0)
        unknown = 0 if is_gone else last.in_flight
        return StopReport(finished=max(0, in_hand - cut - unknown), cut=cut)
