"""Where a class's headroom is kept, when no more instances are to keep it."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from llx.core.model import Tokens
from llx.core.scheduler.dispatch import soonest
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.pool import Pool

_MOST: Final = 64
"""So many are looked at."""
_WORTH_WAITING: Final = Tokens(1024)
"""Of other prompts: for fewer an urgent request goes where its headroom is kept."""
_ROUNDING: Final = 1e-9
"""A share of 0.29 of 100 is 29, though their product as floats is a little less."""


def shared(
    pool: Pool, rank: int, others: Sequence[Instance], best: float, fits: Callable[[Instance], bool]
) -> list[Instance]:
    """Who keeps a class's headroom, and may take one request more though that leaves less of it.

    None while more instances may keep it (`PriorityClass.headroom_share`). Whoever would begin
    soonest first, then the freer. Left out is who is less free than `best` with this headroom not
    counted, and who has more prompts to compute than some of the `others`.

    Args:
        pool: Where.
        rank: The class's.
        others: Those that the request might go to instead.
        best: The freeness of the freest of them that keeps no such headroom.
        fits: Whether the request may go to an instance now.
    """
    share = pool.config.classes[rank].headroom_share
    if share == 1:
        return []
    keepers = [each for each in pool.keepers if each.present[rank] and each.is_usable]
    if len(keepers) < max(1, int(share * len(pool.instances) + _ROUNDING)):
        return []
    headroom = pool.headrooms[rank]
    least = min((each.tokens_ahead for each in others), default=0)
    found = [
        (soonest(each), -each.freeness_with(headroom), each.ordinal, each)
        for each in islice(keepers, _MOST)
        if fits(each)
        and each.freeness_with(headroom) >= best
        and each.tokens_ahead - least < _WORTH_WAITING
    ]
    return [each for *_, each in sorted(found)]
