"""One rank's KV cache as bytes, and what its sampler remembers of a request. Any thread.

Blocks are addressed by the scheduler's ids, which are the same on every rank. vLLM keeps one view
per layer over one allocation (``[block, head, token, content]``, whatever the order in memory);
layers that share their KV are one view.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

import torch

from llx.core.model import MigrationId, RequestId
from llx.cuda.blocks import BlockPacker
from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.gpu_kv import GpuKv
from llx.errors import EngineError

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 0.0005
"""A thread that moves KV, or answers for it, waits at most this long for one that computes."""
_SAMPLED_S: Final = 5.0
_GENERATOR: Final = b"g1"
"""Heads the state of a `torch.Generator`, as the V1 model runner keeps one per seeded request."""


class VllmKvStore:
    """The `KvStore` of a vLLM model runner, V1 or V2.

    Raises:
        EngineError: A layer's view has no dimension that counts the blocks, or this GPU's kernels
            cannot be made.
    """

    def __init__(self, runner: Any, *, block_size: int, tensor_parallel: int) -> None:
        self._runner = runner
        self._tensors = _block_views(runner.kv_caches, runner.kv_cache_config.num_blocks)
        self._block_bytes = sum(each[0].nbytes for each in self._tensors)
        backend = runner.attn_groups[0][0].backend.get_name()
        self._packer: BlockPacker | GpuBlocks
        self._device: GpuKv | None = None
        if _are_on_cpu(self._tensors):
            self._packer = BlockPacker(self._tensors, 0)
            layout = _describe(self._tensors)
        else:
            self._packer = GpuBlocks(self._tensors, 0)
            self._device = GpuKv(self._packer)
            layout = self._packer.layout
        self._layout = f"{layout} block={block_size} {backend}"
        if tensor_parallel > 1:
            self._layout += f" tp={tensor_parallel}"
        self._sampling: frozenset[str] = frozenset()
        self._sampled = threading.Condition()
        self._lock = threading.Lock()
        self._kept: dict[MigrationId, bytes] = {}

    @property
    def block_bytes(self) -> int:
        """See `llx.ports.KvStore`, as all that follows."""
        return self._block_bytes

    @property
    def layout(self) -> str:
        """For instance ``float32 6x[3, 32, 128](0, 1, 2) block=32 CPU_ATTN``."""
        return self._layout

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        """Gather blocks, in the order asked for."""
        self._packer.pack(blocks, out)

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        """Scatter what `pack` has gathered."""
        self._packer.unpack(blocks, data)

    def buffer(self, size_bytes: int) -> memoryview:
        """Pinned for a GPU."""
        if isinstance(self._packer, GpuBlocks):
            return self._packer.buffer(size_bytes)
        return memoryview(bytearray(size_bytes))

    @property
    def device(self) -> GpuKv | None:
        """Of a cache on a GPU."""
        return self._device

    def sampler_state(self, request: RequestId) -> bytes:
        """The generator of a seeded request. The V2 runner has none: it draws by seed and position.

        The request must have been cut. The core knows that its last step is over from one rank
        alone; another one may be about to sample, each with a generator of its own.
        """
        with self._sampled:
            if not self._sampled.wait_for(lambda: request not in self._sampling, _SAMPLED_S):
                log.warning("kv.sampler_busy request=%s", request)
        state = getattr(self._runner, "requests", {}).get(request)
        if state is None or state.generator is None:
            return b""
        return _GENERATOR + bytes(state.generator.get_state().numpy())

    def begin_step(self, requests: Iterable[str]) -> None:
        """The worker computes a step of these requests, and samples for them at its end."""
        with self._sampled:
            self._sampling = frozenset(requests)

    def end_step(self) -> None:
        """It has sampled."""
        with self._sampled:
            self._sampling = frozenset()
            self._sampled.notify_all()

    def keep_sampler_state(self, migration: MigrationId, state: bytes) -> None:
        """Keep it until `take_generator_state` asks for it."""
        with self._lock:
            if state:
                self._kept[migration] = state
            else:
                self._kept.pop(migration, None)

    def take_generator_state(self, migration: MigrationId) -> "torch.Tensor | None":
        """What was kept for a migration, once, as `torch.Generator.set_state` wants it."""
        with self._lock:
            state = self._kept.pop(migration, b"")
        if not state.startswith(_GENERATOR):
            return None
        return torch.frombuffer(bytearray(state[len(_GENERATOR) :]), dtype=torch.uint8)


def _are_on_cpu(tensors: Sequence[torch.Tensor]) -> bool:
    return all(each.device.type == "cpu" for each in tensors)


def _block_views(caches: Sequence[torch.Tensor], num_blocks: int) -> list[torch.Tensor]:
    """The distinct views, each with the blocks as its first dimension."""
    views: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
    for cache in caches:
        where = [axis for axis, size in enumerate(cache.shape) if size == num_blocks]
        if not where:
            raise EngineError(
                f"KV cache of shape {tuple(cache.shape)} for {num_blocks} blocks: its blocks are"
                " not those of the scheduler"
            )
        view = cache.movedim(where[0], 0)
        views.setdefault((view.data_ptr(), tuple(view.shape)), view)
    if not views:
        raise EngineError("the model has no KV cache")
    return list(views.values())


def _describe(tensors: Sequence[torch.Tensor]) -> str:
    """Type, shape of a block and order of its dimensions in memory, equal layers counted."""

    def of(tensor: torch.Tensor) -> str:
        strides = tensor.stride()[1:]
        order = tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}{order}"

    names = [of(tensor) for tensor in tensors]
    return " ".join(f"{len(list(same))}x{name}" for name, same in groupby(names))
