"""The in-flight ledger: what was sent to an instance and is not in its reports yet.

Load reports are pushed, so they lag by an interval and a network hop. A burst that arrives between
two reports would see the same "freest" instance each time and pile onto it. So every dispatch is
charged here at once, and struck off when a report says that the instance's scheduler has seen it:

    gateway    add#7 ─────┐   add#8 ─────┐                charged: {7, 8}
    instance              └─► seen=7     │  report(seen=7) ─► settle(7) ─► charged: {8}
                                         └─► seen=8 …

Sequence numbers run per gateway and instance, from 1, in sending order; ADDs are delivered in that
order, so one number settles all before it. A new session with an instance starts a new ledger.
"""

from collections import deque

from llx.core.model import Blocks


class InFlightLedger:
    """Dispatches to one instance that its reports do not cover yet."""

    __slots__ = ("_charges", "_demand", "_next")

    def __init__(self) -> None:
        self._charges: deque[tuple[int, Blocks]] = deque()
        self._demand = 0
        self._next = 1

    def charge(self, demand: Blocks) -> int:
        """Charge one dispatch of `demand` blocks; returns its sequence number."""
        assert demand >= 0, f"negative demand {demand}"
        seq = self._next
        self._next += 1
        self._charges.append((seq, demand))
        self._demand += demand
        return seq

    def settle(self, seen: int) -> None:
        """Strike off every charge up to and including sequence number `seen`."""
        while self._charges and self._charges[0][0] <= seen:
            self._demand -= self._charges.popleft()[1]

    @property
    def num_requests(self) -> int:
        """Requests charged and not settled."""
        return len(self._charges)

    @property
    def demand(self) -> Blocks:
        """Blocks charged and not settled."""
        return Blocks(self._demand)
