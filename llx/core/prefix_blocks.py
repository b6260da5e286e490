"""Blocks of a prefix cache by name: 64 bits that stand for a block's tokens and all before them.

The names are the engine's; here they are only carried. On the wire they are one array, of 8 bytes
each.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NewType

BlockName = NewType("BlockName", int)

MOST_BLOCKS: Final = 1 << 17
"""Of one instance; what it has beyond these is not told. 1 MiB of names."""
_BYTES: Final = 8


def packed(blocks: Iterable[BlockName]) -> bytes:
    """The names as bytes."""
    return array("Q", blocks).tobytes()


def unpacked(data: bytes) -> Sequence[BlockName]:
    """The names in `data`.

    Raises:
        ValueError: It is not a whole number of names.
    """
    if len(data) % _BYTES:
        raise ValueError(f"{len(data)} bytes are no names of {_BYTES} bytes each")
    names: array[int] = array("Q", data)
    return names  # type: ignore[return-value]  # a name is an int
