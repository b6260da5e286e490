"""Gather scattered KV blocks on the GPU, and scatter them again: one launch for all layers.

The twin of `llx.cuda.blocks` for a cache in the memory of a GPU. What a caller writes or reads with
a stream of its own is for it to order; this module's own streams wait for nobody's, so a block is
only given to it when nothing that is under way on the GPU writes it.
"""

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llx.cuda.driver import Driver, driver_of
from llx.cuda.layout import Plan, Strided, alignment_of, parts_of, plan_of, width_of
from llx.cuda.peers import PART_BYTES, GpuPeer, shared_of
from llx.cuda.staging import Staging
from llx.cuda.tables import MAX_IDS, PartTable, check_ids, ids_of
from llx.errors import EngineError

if TYPE_CHECKING:
    import torch

_DIRECT_BYTES: Final = 64 << 10
"""From this size on, copying whole blocks one by one over the link is as fast as gathering them."""

_PEER_FACTOR: Final = 2


class GpuBlocks:
    """The blocks of a KV cache that lies in tensors of one GPU, one or more per layer. Any thread.

    Bytes are block by block, and within a block as `llx.cuda.layout` says. Blocks are the ids of a
    call, in its order; an id may come twice where blocks are read. All methods raise `EngineError`
    for an id that is none, before anything is copied, and for whatever CUDA refuses.

    Args:
        tensors: Of any strides and dtypes; written in place, and kept.
        block_dim: Which dimension of all of them counts blocks; or one for each.
        max_ctas: How much of the GPU a copy takes unless told otherwise: that many CTAs of 256
            threads, of which an H100 runs about a thousand.
        driver: Of the GPU on which the tensors lie; opened if it is not given.
    """

    def __init__(
        self,
        tensors: "Sequence[torch.Tensor]",
        block_dim: int | Sequence[int],
        *,
        max_ctas: int = 8,
        driver: Driver | None = None,
    ) -> None:
        assert max_ctas >= 1, f"{max_ctas} CTAs copy nothing"
        dims = [block_dim] * len(tensors) if isinstance(block_dim, int) else block_dim
        self._tensors = tuple(tensors)
        self._plan: Plan = plan_of(
            [_strided(each, dim) for each, dim in zip(tensors, dims, strict=True)]
        )
        self._max_ctas = max_ctas
        self._driver = driver or driver_of(_gpu_of(tensors))
        self._alignment = alignment_of(self._plan.pieces)
        with self._driver.current():
            self._table = PartTable(self._driver, parts_of(self._plan.pieces, PART_BYTES))
        self._staging = Staging(self._driver, self._plan.block_bytes)

    @property
    def num_blocks(self) -> int:
        """How many there are."""
        return self._plan.num_blocks

    @property
    def block_bytes(self) -> int:
        """Of one block, all layers together."""
        return self._plan.block_bytes

    @property
    def layout(self) -> str:
        """Dtypes and shapes of a block and the order of its bytes: equal where they mean the same.

        How blocks and layers are interleaved is no part of it.
        """
        return self._plan.layout

    @property
    def driver(self) -> Driver:
        """Of the GPU on which they lie."""
        return self._driver

    @property
    def gpu(self) -> str:
        """UUID of the GPU."""
        return self._driver.gpu

    @property
    def is_contiguous(self) -> bool:
        """Whether a block is one run of memory: nothing need be gathered then."""
        return len(self._plan.pieces) == 1

    def address_of(self, block: int) -> int:
        """Where a block lies on the GPU, if it is one run of memory."""
        assert self.is_contiguous, "a block in several pieces has no address"
        check_ids([block], self.num_blocks)
        (piece,) = self._plan.pieces
        return piece.address + block * piece.stride_bytes

    def gather(
        self, blocks: Sequence[int], out: int, stream: int, *, max_ctas: int | None = None
    ) -> None:
        """Copy blocks into ``len(blocks) * block_bytes`` bytes at `out` on the GPU.

        Returns at once; it is done in the order of `stream`, a handle of CUDA.
        """
        self._copy("gather", blocks, out, stream, max_ctas)

    def scatter(
        self, blocks: Sequence[int], source: int, stream: int, *, max_ctas: int | None = None
    ) -> None:
        """Copy what `gather` has gathered into blocks, in the same order; returns at once too.

        No block may come twice.
        """
        self._copy("scatter", blocks, source, stream, max_ctas)

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        """Gather blocks into `out`, ``len(blocks) * block_bytes`` bytes; done on return.

        Fastest into what `buffer` gives.
        """
        host = self._host_address(blocks, out)
        if not blocks:
            return
        with self._driver.current():
            if self._is_copied_whole:
                self._staging.whole_to_host(map(self.address_of, blocks), host, out)
            else:
                self._staging.to_host(blocks, host, self.gather, out)

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        """Scatter what `pack` has gathered into blocks, in the same order; done on return."""
        host = self._host_address(blocks, data)
        if not blocks:
            return
        with self._driver.current():
            if self._is_copied_whole:
                self._staging.whole_to_device(map(self.address_of, blocks), host, data)
            else:
                self._staging.to_device(blocks, host, self.scatter, data)

    def buffer(self, size_bytes: int) -> memoryview:
        """Pinned memory of the host; freed with the last view of it."""
        if size_bytes == 0:
            return memoryview(bytearray())
        with self._driver.current():
            address = self._driver.allocate_host(size_bytes)
        memory = (ctypes.c_ubyte * size_bytes).from_address(address)
        # At the end of the process CUDA may be gone before, and the memory goes anyway.
        weakref.finalize(memory, _free_host, self._driver, address).atexit = False
        return memoryview(memory).cast("B")

    def share(self) -> bytes:
        """For `open_peer` in another process of this host, while this one keeps the cache.

        Raises:
            EngineError: CUDA cannot export this memory; the remedy says what to set.
        """
        with self._driver.current():
            return shared_of(self._driver, self._plan)

    def open_peer(self, shared: bytes, *, max_ctas: int | None = None) -> GpuPeer:
        """Map the cache of another process of this host, whose layout has to be the same.

        Reading it takes twice the CTAs of other copies unless told otherwise: no link is between
        that would hold them up, and what it reads may be far away.

        Raises:
            EngineError: It is of another layout or version, not in bounds, or cannot be mapped.
        """
        with self._driver.current():
            ctas = max_ctas or _PEER_FACTOR * self._max_ctas
            return GpuPeer(self._driver, self._plan, shared, max_ctas=ctas, owner=self)

    def close(self) -> None:
        """Free what copying needs; nothing may be under way, and peers have to be closed before."""
        with self._driver.current():
            self._staging.close()
            self._table.close()

    @property
    def _is_copied_whole(self) -> bool:
        return self.is_contiguous and self.block_bytes >= _DIRECT_BYTES

    def _copy(
        self, kernel: str, blocks: Sequence[int], packed: int, stream: int, max_ctas: int | None
    ) -> None:
        check_ids(blocks, self.num_blocks)
        width = width_of(self._alignment, packed)
        with self._driver.current():
            for begin in range(0, len(blocks), MAX_IDS):
                some = blocks[begin : begin + MAX_IDS]
                ctas = self._table.ctas(len(some), max_ctas or self._max_ctas)
                at = packed + begin * self.block_bytes
                table = self._table
                arguments = (table.address, table.num_parts, len(some), at, self.block_bytes)
                name = f"llx_{kernel}_{width}"
                self._driver.launch(name, ctas, (*arguments, ids_of(some)), stream)

    def _host_address(self, blocks: Sequence[int], memory: memoryview) -> int:
        size = len(blocks) * self.block_bytes
        assert memory.nbytes == size, f"{memory.nbytes} bytes for {len(blocks)} blocks of {size}"
        check_ids(blocks, self.num_blocks)
        return _address_of(memory) if blocks else 0


def _strided(tensor: "torch.Tensor", block_dim: int) -> Strided:
    return Strided(
        address=tensor.data_ptr(),
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        itemsize=tensor.element_size(),
        block_dim=block_dim % len(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
    )


def _gpu_of(tensors: "Sequence[torch.Tensor]") -> int:
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise EngineError(f"a KV cache on {sorted(map(str, devices))}, not on one GPU")
    (device,) = devices
    if device.type != "cuda" or device.index is None:
        raise EngineError(f"a KV cache on {device}, not on a GPU of CUDA")
    return int(device.index)


def _free_host(driver: Driver, address: int) -> None:
    with driver.current():
        driver.free_host(address)


class _Buffer(ctypes.Structure):
    """`Py_buffer` of Python's stable ABI: the one way to the address of constant memory."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address_of(memory: memoryview) -> int:
    """Where contiguous memory begins; it is the caller's to keep it."""
    view = _Buffer()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get(ctypes.py_object(memory), ctypes.byref(view), 0)
    try:
        return int(view.buf)
    finally:
        release(ctypes.byref(view))
