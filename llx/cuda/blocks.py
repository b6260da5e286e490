"""Gather scattered KV blocks into bytes, and scatter them again: on the CPU, over torch tensors.

One call of a library per layer, whatever the number of blocks. Torch is imported inside alone: the
operator's environment has none.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class BlockPacker:
    """The blocks of a KV cache that lies in CPU tensors, one or more per layer.

    The bytes of a call are layer by layer, the widest element first, so that each layer begins
    aligned; within a layer block by block, in the order of the call. So what one call has packed is
    for one call to unpack.

    Args:
        tensors: Of any strides and any dtype of 1, 2, 4 or 8 bytes; written in place.
        block_dim: Which dimension of all of them counts blocks; or one for each.
    """

    def __init__(self, tensors: "Sequence[torch.Tensor]", block_dim: int | Sequence[int]) -> None:
        import torch

        dims = [block_dim] * len(tensors) if isinstance(block_dim, int) else block_dim
        # Floats as integers: no conversion, no NaN, and NumPy knows no bfloat16.
        widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        pairs = sorted(zip(tensors, dims, strict=True), key=lambda pair: -pair[0].element_size())
        self._dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor, _ in pairs]
        self._layers: list[torch.Tensor] = [
            tensor.detach().view(widths[tensor.element_size()]).movedim(dim, 0)
            for tensor, dim in pairs
        ]
        self._arrays = [layer.numpy() for layer in self._layers]
        self._sizes: list[int] = [layer[0].numel() * layer.element_size() for layer in self._layers]
        counts = {len(layer) for layer in self._layers}
        assert len(counts) == 1, f"layers of {sorted(counts)} blocks"
        self.num_blocks: int = counts.pop()
        self.block_bytes = sum(self._sizes)
        """Of one block, all layers together."""

    @property
    def layout(self) -> str:
        """Dtypes and shapes of a block, layer by layer: equal where bytes mean the same."""
        layers = [
            f"{dtype}[{','.join(map(str, layer.shape[1:]))}]"
            for dtype, layer in zip(self._dtypes, self._layers, strict=True)
        ]
        return " ".join(f"{len(list(group))}x{name}" for name, group in groupby(layers))

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        """Gather blocks into `out`, ``len(blocks) * block_bytes`` bytes."""
        import torch

        self._check(blocks, out)
        if not blocks:
            return
        ids = torch.tensor(blocks, dtype=torch.int64)
        data = torch.frombuffer(out, dtype=torch.uint8)
        begin = 0
        for layer, size in zip(self._layers, self._sizes, strict=True):
            part = data[begin : begin + len(blocks) * size].view(layer.dtype)
            torch.index_select(layer, 0, ids, out=part.view(len(blocks), *layer.shape[1:]))
            begin += len(blocks) * size

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        """Scatter what `pack` has gathered into blocks, in the same order."""
        import numpy as np

        self._check(blocks, data)
        # NumPy copies whole rows where torch's `index_copy_` on the CPU goes element by element.
        ids = np.fromiter(blocks, dtype=np.int64, count=len(blocks))
        begin = 0
        for layer, size in zip(self._arrays, self._sizes, strict=True):
            part = data[begin : begin + len(blocks) * size]
            rows = np.frombuffer(part, dtype=layer.dtype)
            layer[ids] = rows.reshape(len(blocks), *layer.shape[1:])
            begin += len(blocks) * size

    def _check(self, blocks: Sequence[int], data: memoryview) -> None:
        size = len(blocks) * self.block_bytes
        assert data.nbytes == size, f"{data.nbytes} bytes for {len(blocks)} blocks of {size}"
