"""Replacing the CURVE keys of a cluster that runs: which file each host gets when.

`llx.curve.rotation_rings` says why three, and why whoever stops in between has broken nothing:
the next `up` goes on where this one ended.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from llx.api import KeysStatus
from llx.curve import ClusterKeys, dump_ring, load_ring, rotation_rings
from llx.errors import ConfigError, DeadlineError
from llx.secret import Secret

_TAKEN_UP_S: Final = 60.0
_POLL_S: Final = 0.2

Lay = Callable[[Secret], None]
"""Has every host's file say that; raises if one did not get it."""


def is_unfinished(path: Path) -> bool:
    """Whether an `up` before has begun to replace the keys of that file."""
    try:
        return len(load_ring(path)) > 1
    except ConfigError:
        return False


def replace_keys(
    ring: Sequence[ClusterKeys],
    lay: Lay,
    status: Callable[[], KeysStatus],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> None:
    """See above; `ring` is what the head's file says now, `status` asks the head.

    Raises:
        DeadlineError: Somebody did not change over; who has, refuses the former keys already.
        LlxError: As `lay` and `status` do.
    """
    *rings, last = rotation_rings(ring)
    for each in rings:
        lay(Secret(dump_ring(each)))
    deadline = clock() + _TAKEN_UP_S
    while awaited := status().awaited:
        say(f"waiting for {', '.join(awaited)}")
        if clock() > deadline:
            raise DeadlineError(
                f"keys: {', '.join(awaited)} did not change over to the new ones within "
                f"{_TAKEN_UP_S:.0f} s; everybody else refuses the former ones",
                remedy="see `llx status`; `llx up` goes on with it",
            )
        sleep(_POLL_S)
    lay(Secret(dump_ring(last)))
