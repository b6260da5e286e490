"""Virtual usage and freeness: Algorithm 1 of Llumnix (OSDI'24, section 4.4).

One number says how much an instance can still take, and everything else compares it: dispatch
takes the highest, rescheduling pairs low with high, scaling keeps its average in a band. What
should keep work away from an instance is expressed as blocks that are *counted* there, whether
they exist or not.
"""

from dataclasses import dataclass
from typing import Final, NewType

from llx.core.model import Blocks

Freeness = NewType("Freeness", float)
"""Blocks per request, may be negative. A quotient of two counts, which Python rounds correctly:
equal quotients are equal floats on any machine, and unequal ones of counts below 2**26 are not."""

TERMINATING: Final = Freeness(float("-inf"))
"""The freeness of an instance whose fake request uses infinitely much."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is counted on an instance, by its cause.

    Attributes:
        total: M, its memory.
        used: What its running requests hold.
        headroom: Kept free for the classes that run here: a class's headroom once, shared by its
            requests (each counts with its n-th part).
        queue_head: Demand of the request that waits first in the instance's own queue; those behind
            it count nothing.
        charged: Demand of the requests that were sent here and are in no report yet; they count as
            if they ran.
        incoming: Of the moves that are under way to here.
        nominated: Demand of the heads of central queues that wait for this instance.
        batch: B before the bound, the requests that run, are sent or are moving here.
        is_terminating: Has a fake request of infinite usage.
    """

    total: Blocks
    used: Blocks = Blocks(0)
    headroom: Blocks = Blocks(0)
    queue_head: Blocks = Blocks(0)
    charged: Blocks = Blocks(0)
    incoming: Blocks = Blocks(0)
    nominated: Blocks = Blocks(0)
    batch: int = 0
    is_terminating: bool = False

    @property
    def virtual(self) -> Blocks:
        """The sum of all virtual usages but the fake request's."""
        real = self.used + self.headroom + self.queue_head
        return Blocks(real + self.charged + self.incoming + self.nominated)


def freeness(usage: Usage) -> Freeness:
    """``F = (M - sum V) / max(1, B)``, in blocks per request."""
    if usage.is_terminating:
        return TERMINATING
    return Freeness((usage.total - usage.virtual) / max(1, usage.batch))
