"""Which pool gets the next free devices, when several want more instances than there is room for.

Pure. Whether there is room is `llx.core.placement`'s to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llx.core.model import PoolName


@dataclass(frozen=True, slots=True)
class Claim:
    """A pool that wants more instances.

    Attributes:
        pool: Which.
        num_present: Instances that it has, or that are on their way to it.
        num_wanted: So many more it wants; at least 0.
        least: Its declared minimum.
        weight: Of two pools above their minimum, one of twice the weight gets twice as many.
    """

    pool: PoolName
    num_present: int
    num_wanted: int
    least: int
    weight: float = 1.0


def in_turn(claims: Sequence[Claim]) -> list[PoolName]:
    """The order in which they get one instance each; a pool is named as often as it wants one.

    First what is missing of declared minimums. Then whoever would have the fewest above its minimum
    for its weight, that instance counted; of equals the first in `claims`.
    """
    counts = [each.num_present for each in claims]
    left = [each.num_wanted for each in claims]
    order: list[PoolName] = []
    while any(left):
        waiting = [index for index, count in enumerate(left) if count]
        first = min(waiting, key=lambda index: (*_rank(claims[index], counts[index]), index))
        counts[first] += 1
        left[first] -= 1
        order.append(claims[first].pool)
    return order


def _rank(claim: Claim, count: int) -> tuple[bool, float]:
    """Least first."""
    above = count + 1 - claim.least
    return above > 0, max(0, above) / claim.weight
