"""KV through the socket itself: gathered at the source, sent, scattered at the target.

    source    pack ─► CHUNK: header, target blocks, bytes      target    checked ─► unpack

While the kernel sends one chunk out of its own buffer, the next is packed.
"""

import socket
import zlib
from array import array
from collections.abc import Callable

from llx.agent.transport.choice import Medium
from llx.agent.transport.frames import (
    BLOCK_ID_BYTES,
    Header,
    Kind,
    decode_blocks,
)
from llx.agent.transport.medium import CLOSED, SourceEnd, TargetEnd
from llx.agent.transport.sockets import receive_parts
from llx.errors import EngineError, WireError


class TcpSource:
    """See `llx.agent.transport.medium.SourceMedium`."""

    medium = Medium.TCP

    def __init__(self, end: SourceEnd) -> None:
        self._end = end
        self._staging = end.store.buffer(end.wire.chunk_blocks * end.block_bytes)

    def copy(
        self, stage: int, source: "array[int]", target: "array[int]", *, is_final: bool
    ) -> None:
        """A chunk at a time."""
        most = self._end.wire.chunk_blocks
        for first in range(0, len(source), most):
            chunk = slice(first, first + most)
            self._end.pace(len(source[chunk]))
            self._end.wire.hear_failure()
            view = self._staging[: len(source[chunk]) * self._end.block_bytes]
            self._end.store.pack(source[chunk], view)
            if self._end.closing.is_set():
                raise EngineError(CLOSED)
            self.send(stage, target[chunk], view)

    def send(self, stage: int, blocks: "array[int]", view: memoryview) -> None:
        """One chunk, as it lies in `view`."""
        wire = self._end.wire
        crc = zlib.crc32(view) if wire.hello.has_crc else 0
        head = Header(Kind.CHUNK, 0, stage, len(blocks), crc, len(view)).encode()
        wire.connection.sendall(head + blocks.tobytes(), socket.MSG_MORE)
        wire.connection.sendall(view)

    def close(self) -> None:
        """Its memory goes with it."""


class TcpTarget:
    """See `llx.agent.transport.medium.TargetMedium`."""

    def __init__(self, end: TargetEnd) -> None:
        self._end = end
        self._staging = end.store.buffer(end.chunk_blocks * end.block_bytes)

    def take(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        """One chunk."""
        end, count = self._end, header.num_blocks
        check_size(end, header)
        ids = memoryview(bytearray(count * BLOCK_ID_BYTES))
        view = self._staging[: header.size]
        receive_parts(end.wire.connection, ids, view)
        blocks = decode_blocks(ids)
        unpack(end, header, blocks, view)
        written(blocks)

    def close(self) -> None:
        """Its memory goes with it."""


def check_size(end: TargetEnd, header: Header) -> None:
    """Of a chunk of bytes: it must fit, and be of whole blocks.

    Raises:
        WireError: It is not.
    """
    count = header.num_blocks
    if count > end.chunk_blocks or header.size != count * end.block_bytes:
        raise WireError(f"chunk of {count} blocks and {header.size} bytes")


def unpack(end: TargetEnd, header: Header, blocks: "array[int]", view: memoryview) -> None:
    """Check the bytes of a chunk, and write them if they may be.

    Raises:
        WireError: Its checksum differs, or a block is not the migration's.
        Fenced: Nothing may be written any more.
    """
    if end.has_crc and zlib.crc32(view) != header.crc:
        raise WireError(f"checksum of a chunk of stage {header.stage} differs")
    with end.admissions.writing(end.admission, blocks):
        end.store.unpack(blocks, view)
