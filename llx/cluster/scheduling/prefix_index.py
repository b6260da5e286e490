"""Which instances of a pool have the beginning of a prompt in their prefix caches.

A table from block to the instances that have it, as bits of one number:

    block    holders (bits)       a prompt of blocks a b c d
    a        m-0 m-1 m-2          a: 0 1 2    b: 1 2    c: 1    d: –
    b        m-1 m-2              m-0 has 1 of its blocks, m-2 has 2, m-1 has 3
    c        m-1

A block's name stands for all before it too, so one look-up for each block of a prompt tells all
instances at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llx.core.model import InstanceId
from llx.core.prefix_blocks import MOST_BLOCKS, BlockName


@dataclass(slots=True, eq=False)
class _Holder:
    """An instance: its place among the bits, and what it has."""

    place: int
    blocks: set[BlockName] = field(default_factory=set)


class PrefixIndex:
    """Of one pool. Costs a look-up for each block of a prompt; memory is bounded by `most`.

    Args:
        most: Blocks kept of each instance; more are not taken in, as if they were not cached.
    """

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._most = most
        self._bits: dict[BlockName, int] = {}
        self._holders: dict[InstanceId, _Holder] = {}
        self._places: list[InstanceId | None] = []

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._bits)

    def add(self, instance: InstanceId, blocks: Iterable[BlockName]) -> None:
        """An instance has these, too."""
        holder = self._holder(instance)
        bit, own, bits = 1 << holder.place, holder.blocks, self._bits
        for block in blocks:
            if block not in own and len(own) < self._most:
                own.add(block)
                bits[block] = bits.get(block, 0) | bit

    def remove(self, instance: InstanceId, blocks: Iterable[BlockName]) -> None:
        """An instance has these no longer; those that it had not do not matter."""
        holder = self._holders.get(instance)
        if holder is not None:
            self._forget(holder, holder.blocks.intersection(blocks))

    def drop(self, instance: InstanceId) -> None:
        """Nothing is known of an instance any more. Costs what it had."""
        holder = self._holders.pop(instance, None)
        if holder is not None:
            self._forget(holder, holder.blocks.copy())
            self._places[holder.place] = None

    def hits(self, prompt: Sequence[BlockName]) -> list[tuple[InstanceId, int]]:
        """Who has how many of a prompt's first blocks, without a gap; who has none is left out."""
        found: list[tuple[InstanceId, int]] = []
        holding = -1
        for count, block in enumerate(prompt):
            still = holding & self._bits.get(block, 0)
            if count and still != holding:
                found += [(each, count) for each in self._named(holding & ~still)]
            holding = still
            if not holding:
                return found
        if prompt:
            found += [(each, len(prompt)) for each in self._named(holding)]
        return found

    # ------------------------------------------------------------------ leaves

    def _holder(self, instance: InstanceId) -> _Holder:
        holder = self._holders.get(instance)
        if holder is None:
            if None not in self._places:
                self._places.append(None)
            holder = self._holders[instance] = _Holder(self._places.index(None))
            self._places[holder.place] = instance
        return holder

    def _forget(self, holder: _Holder, blocks: Iterable[BlockName]) -> None:
        bits, others = self._bits, ~(1 << holder.place)
        for block in blocks:
            holder.blocks.discard(block)
            left = bits[block] & others
            if left:
                bits[block] = left
            else:
                del bits[block]

    def _named(self, holding: int) -> Iterator[InstanceId]:
        while holding:
            lowest = holding & -holding
            instance = self._places[lowest.bit_length() - 1]
            assert instance is not None, "a place with blocks is an instance's"
            yield instance
            holding ^= lowest
