"""How epochs are counted: reigns, which only the arbiter begins, and moves within one.

    1 ─ move ─► 2 ─ move ─► 3        the owner itself gives the request away: one more
                │
                └─ taken back, or placed anew ─► 1000000 ─ move ─► 1000001 …    a new reign

Within a reign there is one line of owners: each gives the request to the next, and stops before it
does. So the highest epoch of a reign is its rightful one, whether or not the arbiter has heard of
it. What has been cut off may go on moving, but only ever within its own reign: it never reaches an
epoch of the present one.
"""

from typing import Final

from llx.core.model import Epoch

FIRST: Final = Epoch(1)
_REIGN: Final = 1_000_000
"""More moves than a request makes; decimal, so that a log line can be read."""


def next_owner(epoch: Epoch) -> Epoch:
    """Under which the owner of `epoch` gives the request away."""
    return Epoch(epoch + 1)


def next_reign(epoch: Epoch) -> Epoch:
    """Under which the arbiter gives it to whom it likes: fences all of the reign of `epoch`."""
    return Epoch((epoch // _REIGN + 1) * _REIGN)


def num_reigns(epoch: Epoch) -> int:
    """Reigns so far, 1 at first."""
    return epoch // _REIGN + 1


def follows(later: Epoch, epoch: Epoch) -> bool:
    """Whether `later` has come from `epoch` by moves alone."""
    return later > epoch and num_reigns(later) == num_reigns(epoch)
