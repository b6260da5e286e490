"""Instances in order of a figure.

A sorted list, not a heap: the figures change far more often than they are asked for, an entry that
changes is found by bisection and moved by one `memmove` of its C array (32 KiB at 4,096 instances:
less than a microsecond), nothing stale stays in it, and it can be walked from the top.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from llx.core.scheduler.instance import Instance

Key = tuple[float, float, int, Instance]
"""Figure, freeness with the other sign, ordinal (unique: what follows is never compared), and
whose it is."""


class Ranking:
    """Instances, least figure first; of equal figures the freer, then the one that joined first."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: list[Key] = []

    def put(self, instance: Instance, figure: float) -> None:
        """Add an instance, or move it to its new place."""
        key = instance.key
        if key is not None:
            if key[0] == figure and key[1] == -instance.freeness:
                return
            del self._keys[bisect_left(self._keys, key)]
        instance.key = key = (figure, -instance.freeness, instance.ordinal, instance)
        insort(self._keys, key)

    def drop(self, instance: Instance) -> None:
        """Take an instance out, if it is in."""
        if instance.key is not None:
            del self._keys[bisect_left(self._keys, instance.key)]
            instance.key = None

    def __iter__(self) -> Iterator[Instance]:
        return (key[3] for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)
