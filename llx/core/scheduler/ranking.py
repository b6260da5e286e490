"""Instances in order of a figure.

A sorted list, not a heap: the figures change far more often than they are asked for, an entry that
changes is found by bisection and moved by one `memmove` of its C array (32 KiB at 4,096 instances:
less than a microsecond), nothing stale stays in it, and it can be walked from the top.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import nlargest
from operator import itemgetter
from typing import Final

from llx.core.scheduler.instance import Instance

Key = tuple[float, float, int, Instance]
"""Figure, freeness with the other sign, ordinal (unique: what follows is never compared), and
whose it is."""

_whose: Final[Callable[[Key], Instance]] = itemgetter(3)
_KEPT: Final = 64
"""So many of the best by another figure are remembered."""


class Ranking:
    """Instances, least figure first; of equal figures the freer, then the one that joined first."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: list[Key] = []

    def put(self, instance: Instance, figure: float) -> None:
        """Add an instance, or move it to its new place."""
        former, keys = instance.key, self._keys
        if former is not None and former[0] == figure and former[1] == -instance.freeness:
            return
        instance.key = key = (figure, -instance.freeness, instance.ordinal, instance)
        if former is None:
            insort(keys, key)
            return
        at = bisect_left(keys, former)
        if (not at or keys[at - 1] < key) and (at + 1 == len(keys) or key < keys[at + 1]):
            keys[at] = key  # between its neighbours still, as where the figure tells most apart
        else:
            del keys[at]
            insort(keys, key)

    def drop(self, instance: Instance) -> None:
        """Take an instance out, if it is in."""
        if instance.key is not None:
            del self._keys[bisect_left(self._keys, instance.key)]
            instance.key = None

    def __iter__(self) -> Iterator[Instance]:
        return map(_whose, self._keys)  # no comprehension, which would be a list where compiled

    def __len__(self) -> int:
        return len(self._keys)


class Best:
    """Who is first in a ranking by another figure, the greatest first; of equals as it has them.

    Found by a look at all, which is then good for as long as few have changed: whoever is neither
    among the best of that look nor has changed since is no better than the last of these.

    Args:
        ranking: Of whom.
        figure: By what.
    """

    __slots__ = ("_changed", "_figure", "_found", "_last", "_ranking")

    def __init__(self, ranking: Ranking, figure: Callable[[Instance], float]) -> None:
        self._ranking = ranking
        self._figure = figure
        self._found: list[Instance] = []
        self._last: tuple[float, Key] | None = None
        """The last of those found; None: all were."""
        self._changed: set[Instance] = set()

    def changed(self, instance: Instance) -> None:
        """An instance's figure or its place in the ranking may be another, or it is gone."""
        if self._found:
            self._changed.add(instance)
            if len(self._changed) > _KEPT:
                self.forget()

    def forget(self) -> None:
        """Everybody may have changed."""
        self._found, self._changed = [], set()

    def first(self, count: int) -> list[Instance]:
        """The best, at most so many."""
        if count > _KEPT:
            return nlargest(count, self._ranking, key=self._figure)
        if not self._found or not self._take_in_changes(count):
            self._look()
        return self._found[:count]

    def _look(self) -> None:
        found = nlargest(_KEPT, self._ranking, key=self._figure)
        self._found, self._changed = found, set()
        self._last = self._order(found[-1]) if len(found) < len(self._ranking) else None

    def _take_in_changes(self, count: int) -> bool:
        """Whether at least so many of the best are still known."""
        if not self._changed:
            return len(self._found) >= count or self._last is None
        them = [each for each in self._found if each not in self._changed]
        them += [each for each in self._changed if each.key is not None]
        ordered = sorted((self._order(each), each) for each in them)
        last = self._last
        known = [each for order, each in ordered if last is None or order <= last]
        if len(known) > _KEPT:
            known = known[:_KEPT]
            self._last = last = self._order(known[-1])
        self._found = known
        self._changed.clear()
        return len(known) >= count or last is None

    def _order(self, instance: Instance) -> tuple[float, Key]:
        assert instance.key is not None, "it is in the ranking"
        return -self._figure(instance), instance.key
