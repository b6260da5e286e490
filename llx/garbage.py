"""How often this process looks for garbage that reference counts do not free.

Python's own thresholds suit small programs: 700 new objects begin a collection, and each of a large
program's goes through hundreds of thousands that its modules made and that stay to the end.
"""

import gc


def collect_seldom() -> None:
    """Begin a collection after 50,000 new objects; old ones are gone through the more seldom."""
    gc.set_threshold(50_000, 20, 50)


def leave_what_is_here() -> None:
    """`collect_seldom`, and never go through what there is now: for a process that has begun."""
    gc.collect()
    gc.freeze()
    collect_seldom()
