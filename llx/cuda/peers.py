"""The KV cache of another process of this host, mapped: shared as bytes, opened, read.

What is shared names allocations by handles of CUDA's inter-process communication, and pieces of
blocks by their place in an allocation. All of it is checked against what the handles map before
anything is read.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from llx.cuda.driver import Driver
from llx.cuda.layout import (
    MAX_PIECES,
    Piece,
    Plan,
    aligned_to,
    alignment_of,
    parts_of,
    width_of,
)
from llx.cuda.tables import MAX_IDS, WAIT_S, PartTable, check_ids, ids_of
from llx.errors import EngineError

PART_BYTES: Final = 8192
"""Most of a part, which one warp copies."""
_VERSION: Final = 1


def shared_of(driver: Driver, plan: Plan) -> bytes:
    """What `GpuPeer` opens in another process.

    Raises:
        EngineError: The memory cannot be mapped elsewhere, as it is not of CUDA's plain allocator.
    """
    handles: dict[int, tuple[int, str, int]] = {}
    pieces = []
    for piece in plan.pieces:
        base, size = driver.range_of(piece.address)
        if base not in handles:
            handles[base] = (len(handles), _export(driver, base).hex(), size)
        last = piece.address + (plan.num_blocks - 1) * piece.stride_bytes + piece.size_bytes
        if last > base + size:
            raise EngineError("a KV cache that spans allocations cannot be shared")
        pieces.append(
            [handles[base][0], piece.address - base, piece.stride_bytes, piece.size_bytes]
        )
    message = {
        "version": _VERSION,
        "layout": plan.layout,
        "num_blocks": plan.num_blocks,
        "allocations": [[handle, size] for _, handle, size in handles.values()],
        "pieces": pieces,
    }
    return json.dumps(message, separators=(",", ":")).encode()


def _export(driver: Driver, base: int) -> bytes:
    try:
        return driver.export(base)
    except EngineError as error:
        raise EngineError(
            f"the KV cache cannot be shared with other processes: {error.message}",
            remedy="unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF, and sleep mode",
        ) from error


class GpuPeer:
    """Another process's KV cache, mapped into this one. One thread.

    Made by `GpuBlocks.open_peer`. Opening and closing one waits for the GPU, so that a peer is best
    kept from one migration to the next. When the other process ends, CUDA keeps what is mapped: a
    copy then gets bytes that are old, and whoever asked for it has to notice that nobody answers.
    """

    def __init__(
        self, driver: Driver, plan: Plan, shared: bytes, *, max_ctas: int, owner: object
    ) -> None:
        self._driver = driver
        self._owner = owner  # keeps the memory of the plan's pieces
        self._num_targets = plan.num_blocks
        self._max_ctas = max_ctas
        message = _decoded(shared)
        if message["layout"] != plan.layout:
            raise EngineError(
                f"KV of another layout: {message['layout']} there, {plan.layout} here"
            )
        self._num_blocks: int = message["num_blocks"]
        self._handles: list[bytes] = []
        self._tables: list[PartTable] = []
        self._stream = self._event = 0
        self._closed = ""
        try:
            self._open(plan, message)
        except BaseException:
            self._free()
            raise

    def read(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy its blocks `source` into the own blocks `target`, one to one; done on return.

        Raises:
            EngineError: The copy failed; what is in the targets is undefined. If it has not ended
                within `WAIT_S` the GPU may write them still; the peer is of no use any more then,
                and its memory stays mapped.
        """
        if self._closed:
            raise EngineError(self._closed)
        if len(source) != len(target):
            raise EngineError(f"{len(source)} KV blocks cannot be copied to {len(target)}")
        check_ids(target, self._num_targets)
        check_ids(source, self._num_blocks)
        if not source:
            return
        with self._driver.current():
            try:
                for begin in range(0, len(source), MAX_IDS):
                    end = begin + MAX_IDS
                    self._launch(source[begin:end], target[begin:end])
            finally:
                self._wait()

    def close(self) -> None:
        """Unmap it; again is nothing."""
        if self._closed:
            return
        self._closed = "the peer's KV cache is closed"
        with self._driver.current():
            self._free()

    def _open(self, plan: Plan, message: dict[str, Any]) -> None:
        driver = self._driver
        bases = []
        for handle, size in message["allocations"]:
            bases.append(driver.map(handle))
            self._handles.append(handle)
            base, mapped = driver.range_of(bases[-1])
            if bases[-1] + size > base + mapped:
                raise EngineError(f"a peer's KV cache of {size} bytes maps as {mapped}")
        theirs = [
            Piece(bases[which] + begin, stride, size)
            for which, begin, stride, size in message["pieces"]
        ]
        pairs = list(aligned_to(theirs, plan.pieces))
        sides = [[theirs for theirs, _ in pairs], [own for _, own in pairs]]
        self._width = width_of(*(alignment_of(side) for side in sides))
        for side in sides:
            self._tables.append(PartTable(driver, parts_of(side, PART_BYTES)))
        self._stream = driver.new_stream()
        self._event = driver.new_event()

    def _launch(self, source: Sequence[int], target: Sequence[int]) -> None:
        theirs, own = self._tables
        arguments = (theirs.address, own.address, own.num_parts, len(source))
        lists = (ids_of(source), ids_of(target))
        ctas = own.ctas(len(source), self._max_ctas)
        name = f"llx_transfer_{self._width}"
        self._driver.launch(name, ctas, (*arguments, *lists), self._stream)

    def _wait(self) -> None:
        try:
            self._driver.record(self._event, self._stream)
            self._driver.wait(self._event, WAIT_S)
        except EngineError as error:
            # Unmapping what a kernel may still read would be a fault of the whole process.
            self._closed = f"copying KV from a peer failed before: {error.message}"
            raise

    def _free(self) -> None:
        for table in self._tables:
            table.close()
        if self._stream:
            self._driver.free_stream(self._stream)
        if self._event:
            self._driver.free_event(self._event)
        for handle in self._handles:
            self._driver.unmap(handle)
        self._tables, self._handles = [], []


def _decoded(shared: bytes) -> dict[str, Any]:
    """The message, if it is one: every number of the right type and every piece in bounds."""
    try:
        message = json.loads(shared)
        if message["version"] != _VERSION:
            raise EngineError(f"a shared KV cache of version {message['version']} is not known")
        layout, count = message["layout"], message["num_blocks"]
        allocations = [(bytes.fromhex(handle), size) for handle, size in message["allocations"]]
        pieces = [tuple(piece) for piece in message["pieces"]]
        _check_pieces(count, allocations, pieces)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"no shared KV cache: {type(error).__name__}: {error}") from error
    return {
        "layout": layout,
        "num_blocks": count,
        "allocations": allocations,
        "pieces": pieces,
    }


def _check_pieces(
    count: int, allocations: list[tuple[bytes, int]], pieces: list[tuple[int, ...]]
) -> None:
    numbers = [count, *(size for _, size in allocations), *(n for each in pieces for n in each)]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("a number is none")
    if any(len(handle) != 64 for handle, _ in allocations):
        raise ValueError("a handle is none")
    if not 1 <= len(pieces) <= MAX_PIECES or count < 1:
        raise ValueError(f"{len(pieces)} pieces of {count} blocks")
    for which, begin, stride, size in pieces:
        if which >= len(allocations):
            raise ValueError("a piece lies in no allocation")
        if size < 1 or begin + (count - 1) * stride + size > allocations[which][1]:
            raise ValueError("a piece leaves its allocation")
