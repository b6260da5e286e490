"""Counting what a stop did to the requests in hand."""

from collections.abc import Callable

from llx.api import StopReport
from llx.wire import GatewayReport


class StopCount:
    """Begun when a stop begins; `latest` is asked then and at the end."""

    def __init__(self, latest: Callable[[], GatewayReport | None]) -> None:
        self._latest = latest
        self._first = latest()

    def report(self, *, was_killed: bool) -> StopReport:
        """How many requests ended well and how many were cut off.

        In hand were those in flight at the beginning and those accepted until the gateway closed.
        Cut off are those that failed meanwhile and, if the gateway had to be killed at the
        deadline, those still in flight then.
        """
        first, last = self._first, self._latest()
        if first is None or last is None:
            return StopReport(finished=0, cut=0)
        in_hand = first.in_flight + max(0, last.num_requests - first.num_requests)
        failed = max(0, last.num_failed - first.num_failed)
        cut = failed + (last.in_flight if was_killed else 0)
        return StopReport(finished=max(0, in_hand - cut), cut=cut)
