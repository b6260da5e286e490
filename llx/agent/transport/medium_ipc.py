"""KV read by the target's GPU out of the source's memory, within a host: no bytes on the socket.

    source    CHUNK: target blocks, source blocks        target    checked ─► reads them
                                     ◄─ FREED

The source keeps the blocks until the stage has arrived. It announces two chunks at most, so that
little is read for nothing once a migration is over.
"""

from array import array
from collections.abc import Callable

from llx.agent.transport.choice import Medium
from llx.agent.transport.frames import MAX_CHUNK_BLOCKS, Header, Kind
from llx.agent.transport.medium import SourceEnd, TargetEnd
from llx.errors import WireError
from llx.ports import PeerKv

CHUNK_BYTES = 64 << 20
_AHEAD = 2


class IpcSource:
    """See `llx.agent.transport.medium.SourceMedium`."""

    medium = Medium.CUDA_IPC

    def __init__(self, end: SourceEnd, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._end = end
        self._chunk_blocks = min(MAX_CHUNK_BLOCKS, max(1, chunk_bytes // end.block_bytes))
        self._num_ahead = 0
        end.wire.on_freed = self._freed

    def copy(
        self, stage: int, source: "array[int]", target: "array[int]", *, is_final: bool
    ) -> None:
        """A chunk at a time."""
        most = self._chunk_blocks
        for first in range(0, len(source), most):
            chunk = slice(first, first + most)
            blocks = target[chunk]
            self._end.pace(len(blocks))
            while self._num_ahead >= _AHEAD:
                self._end.wire.take_freed()
            self._num_ahead += 1
            header = Header(Kind.CHUNK, stage=stage, num_blocks=len(blocks))
            self._end.wire.send(header, blocks.tobytes() + source[chunk].tobytes())

    def close(self) -> None:
        """It holds nothing but its place in the wire."""
        self._end.wire.on_freed = None

    def _freed(self, header: Header) -> None:
        if not self._num_ahead:
            raise WireError("a chunk given back that was not announced")
        self._num_ahead -= 1


class IpcTarget:
    """See `llx.agent.transport.medium.TargetMedium`.

    Args:
        end: What it works with.
        peer: The source's cache; closed with this.
    """

    def __init__(self, end: TargetEnd, peer: PeerKv) -> None:
        self._end = end
        self._peer = peer

    def take(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        """One chunk."""
        end = self._end
        if header.size:
            raise WireError(f"chunk of {header.size} bytes, where none travel")
        target, source = end.wire.blocks(header.num_blocks), end.wire.blocks(header.num_blocks)
        if min(source) < 0:
            raise WireError(f"block {min(source)} of the source")
        with end.admissions.writing(end.admission, target):
            self._peer.read(source, target)
        end.wire.send(Header(Kind.FREED))
        written(target)

    def close(self) -> None:
        """Unmap the source's cache."""
        self._peer.close()
