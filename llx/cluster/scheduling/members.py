"""Which instances there are, as events of the core: what has changed since it was told last."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llx.core.model import InstanceId, PoolName
from llx.core.scheduler.events import (
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
)

MemberEvent = InstanceJoined | InstanceChanged | InstanceLeft


@dataclass(frozen=True, slots=True)
class Present:
    """An instance that may be used. `address` tells one run of it from another."""

    instance: InstanceId
    pool: PoolName
    address: str
    wanted: InstanceState
    """Never LOST."""


@dataclass(slots=True)
class _Told:
    """What the core knows of one: what is wanted of it, and whether it counts as lost."""

    present: Present
    wanted: InstanceState = InstanceState.UP
    is_lost: bool = False


class Members:
    """What the core was told."""

    def __init__(self) -> None:
        self._told: dict[InstanceId, _Told] = {}

    def follow(self, present: Iterable[Present]) -> Iterator[MemberEvent]:
        """These are there now, and no others."""
        wanted = {each.instance: each for each in present}
        for name, told in list(self._told.items()):
            new = wanted.get(name)
            if new is None or _run(new) != _run(told.present):
                del self._told[name]
                yield InstanceLeft(name)
        for name, each in wanted.items():
            if name not in self._told:
                self._told[name] = _Told(each)
                yield InstanceJoined(each.pool, name)
            told = self._told[name]
            told.present = each
            yield from _wish(told)

    def lose(self, instance: InstanceId) -> Iterator[MemberEvent]:
        """Nothing is heard of it."""
        told = self._told.get(instance)
        if told is not None and not told.is_lost:
            told.is_lost = True
            yield InstanceChanged(instance, InstanceState.LOST)

    def find(self, instance: InstanceId) -> Iterator[MemberEvent]:
        """It is heard of again, or for the first time."""
        told = self._told.get(instance)
        if told is not None and told.is_lost:
            told.is_lost = False
            yield InstanceChanged(instance, InstanceState.UP)
            yield from _wish(told)


def _wish(told: _Told) -> Iterator[MemberEvent]:
    """Tell what is wanted of it, if that is news. UP of a lost one would say that it is back."""
    wanted = told.present.wanted
    if wanted is told.wanted or (told.is_lost and wanted is InstanceState.UP):
        return
    told.wanted = wanted
    yield InstanceChanged(told.present.instance, wanted)


def _run(present: Present) -> tuple[PoolName, str]:
    return present.pool, present.address
