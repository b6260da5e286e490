"""KV caches on the GPU in any order of memory, and their blocks by plain indexing of torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

GUARD_BYTES = 4096
LOGICAL = "BKHNC"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TorchCache:
    """One allocation and the views of it, one per layer, blocks first."""

    raw: torch.Tensor
    tensors: list[torch.Tensor]

    def bits(self) -> list[torch.Tensor]:
        """The views, as integers."""
        return [t.view(_BITS[t.element_size()]) for t in self.tensors]

    def packed(self, blocks: Sequence[int]) -> torch.Tensor:
        """Bytes of blocks as `GpuBlocks` packs them: layer by layer, as they lie in memory."""
        rows = []
        for t in self.bits():
            order = sorted(range(1, t.dim()), key=lambda dim: (-t.stride(dim), dim))
            chosen = t.permute(0, *order)[list(blocks)].contiguous()
            rows.append(chosen.view(torch.uint8).reshape(len(blocks), -1))
        return torch.cat(rows, dim=1).reshape(-1)


def torch_cache(
    order: str,
    sizes: dict[str, int],
    dtype: torch.dtype,
    *,
    seed: int,
    padding: dict[str, int] | None = None,
    shift: int = 0,
) -> TorchCache:
    """Dims by letter, outermost first: L layers, B blocks, K keys and values, H heads, N, C."""
    item = torch.empty(0, dtype=dtype).element_size()
    strides, size = {}, 1
    for dim in reversed(order):
        size += (padding or {}).get(dim, 0)
        strides[dim] = size
        size *= sizes[dim]
    generator = torch.Generator("cuda").manual_seed(seed)
    whole = math.ceil((size * item + shift) / 16) * 16 + 2 * GUARD_BYTES
    raw = torch.randint(0, 256, (whole,), dtype=torch.uint8, device="cuda", generator=generator)
    begin = GUARD_BYTES + shift
    flat = raw[begin : begin + size * item].view(dtype)
    views = [
        flat.as_strided(
            [sizes[dim] for dim in LOGICAL],
            [strides[dim] for dim in LOGICAL],
            flat.storage_offset() + layer * strides["L"],
        )
        for layer in range(sizes["L"])
    ]
    return TorchCache(raw, views)


def layered(num_layers: int, num_blocks: int, page_bytes: int, *, seed: int) -> list[torch.Tensor]:
    """Layers of bfloat16 in memory of their own, as vLLM lays them out: pages of 16 tokens."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (num_blocks, 16, page_bytes // 32)
    return [
        torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, device="cuda", generator=generator)
        .view(torch.bfloat16)
        for _ in range(num_layers)
    ]  # fmt: skip
