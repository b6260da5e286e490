"""KV through shared memory within a host: the source packs into a slot, the target unpacks it.

    source    SLOTS (a sealed memfd beside it)                 target    maps it
              pack into a free slot ─► CHUNK: slot, blocks               checked ─► unpack
                                     ◄─ FREED: slot

While the target unpacks one slot, the next is packed.
"""

import mmap
import os
import socket
import zlib
from array import array
from collections.abc import Callable

from llx.agent.transport.choice import Medium
from llx.agent.transport.frames import HEADER_BYTES, Header, Kind, decode_header
from llx.agent.transport.medium import CLOSED, SourceEnd, TargetEnd
from llx.agent.transport.medium_tcp import check_size, unpack
from llx.agent.transport.slots import Slots, make_slots, map_slots
from llx.errors import EngineError, WireError

NUM_SLOTS = 2
_MOST_SLOTS = 64
_MOST_SLOT_BYTES = 1 << 30
"""Most shared memory that is mapped for one connection."""


class ShmSource:
    """See `llx.agent.transport.medium.SourceMedium`."""

    medium = Medium.SHM

    def __init__(self, end: SourceEnd) -> None:
        self._end = end
        fd, self._slots = make_slots(end.wire.chunk_blocks * end.block_bytes, NUM_SLOTS)
        self._free = list(range(NUM_SLOTS))
        end.wire.on_freed = self._freed
        header = Header(Kind.SLOTS, NUM_SLOTS, size=self._slots.slot_bytes)
        try:
            # The header alone carries the descriptor: the target reads exactly that with it.
            socket.send_fds(end.wire.connection, [header.encode()], [fd])
        except BaseException:
            self._slots.close()
            raise
        finally:
            os.close(fd)

    def copy(
        self, stage: int, source: "array[int]", target: "array[int]", *, is_final: bool
    ) -> None:
        """A chunk at a time."""
        most = self._end.wire.chunk_blocks
        for first in range(0, len(source), most):
            chunk = slice(first, first + most)
            self._end.pace(len(source[chunk]))
            slot, view = self.buffer()
            view = view[: len(source[chunk]) * self._end.block_bytes]
            self._end.store.pack(source[chunk], view)
            if self._end.closing.is_set():
                raise EngineError(CLOSED)
            self.send(stage, target[chunk], slot, view)

    def buffer(self) -> tuple[int, memoryview]:
        """A slot that is free, waited for if all are with the target."""
        while not self._free:
            self._end.wire.take_freed()
        slot = self._free.pop()
        return slot, self._slots[slot]

    def send(self, stage: int, blocks: "array[int]", slot: int, view: memoryview) -> None:
        """One chunk, which lies at the beginning of a slot."""
        wire = self._end.wire
        crc = zlib.crc32(view) if wire.hello.has_crc else 0
        wire.send(Header(Kind.CHUNK, slot, stage, len(blocks), crc, len(view)), blocks.tobytes())

    def close(self) -> None:
        """Unmap the slots."""
        self._end.wire.on_freed = None
        self._slots.close()

    def _freed(self, header: Header) -> None:
        if header.mark >= NUM_SLOTS or header.mark in self._free:
            raise WireError(f"slot {header.mark} given back, which it has not")
        self._free.append(header.mark)


class ShmTarget:
    """See `llx.agent.transport.medium.TargetMedium`. Made when the source is to say SLOTS.

    Raises:
        WireError: It says something else, or of memory that could do harm.
    """

    def __init__(self, end: TargetEnd) -> None:
        self._end = end
        data, fds, _, _ = socket.recv_fds(
            end.wire.connection, HEADER_BYTES, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL
        )
        try:
            self._slots = self._map(data, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _map(self, data: bytes, fds: list[int]) -> Slots:
        if not data:
            raise ConnectionResetError("the peer hung up")
        header = decode_header(data)
        if header.kind is not Kind.SLOTS:
            raise WireError(f"{header.kind.name} before the slots")
        slot_bytes, num_slots = header.size, header.mark
        most = self._end.chunk_blocks * self._end.block_bytes
        if len(fds) != 1 or slot_bytes < most or not 1 <= num_slots <= _MOST_SLOTS:
            raise WireError("slots too small for a chunk, or without their memory")
        if slot_bytes * num_slots > max(_MOST_SLOT_BYTES, 2 * most + mmap.PAGESIZE * num_slots):
            raise WireError(f"{num_slots} slots of {slot_bytes} bytes")
        return map_slots(fds[0], slot_bytes, num_slots)

    def take(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        """One chunk."""
        check_size(self._end, header)
        blocks = self._end.wire.blocks(header.num_blocks)
        if header.mark >= self._slots.num_slots:
            raise WireError(f"chunk in slot {header.mark} of {self._slots.num_slots}")
        unpack(self._end, header, blocks, self._slots[header.mark][: header.size])
        self._end.wire.send(Header(Kind.FREED, mark=header.mark))
        written(blocks)

    def close(self) -> None:
        """Unmap the slots."""
        self._slots.close()
