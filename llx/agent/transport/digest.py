"""What both ends compute over the blocks of a checked migration, to compare."""

import hashlib
from array import array

from llx.agent.transport.frames import DIGEST_BYTES
from llx.ports import KvStore


def digest_of(store: KvStore, blocks: "array[int]", chunk_blocks: int) -> bytes:
    """A digest of blocks as they lie in the store now, read `chunk_blocks` at a time.

    `pack` promises an order within one call only, so both ends read the same number at a time.
    """
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    buffer = store.buffer(max(1, min(chunk_blocks, len(blocks))) * store.block_bytes)
    for first in range(0, len(blocks), chunk_blocks):
        some = blocks[first : first + chunk_blocks]
        view = buffer[: len(some) * store.block_bytes]
        store.pack(some, view)
        total.update(view)
    return total.digest()
