"""`GpuBlocks` over torch's tensors on a fake GPU, against plain indexing; run by `test_blocks`."""

import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from check_blocks import DTYPES, NUM_BLOCKS, bits, caches

from llx.cuda.gpu_blocks import GpuBlocks
from tests.cuda.fake_driver import FakeDriver


def in_memory_order(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    moved = tensor.movedim(dim, 0)
    order = sorted(range(1, moved.dim()), key=lambda each: (-moved.stride(each), each))
    return bits(moved.permute(0, *order), 0)


def check(name: str, tensors: list[torch.Tensor], block_dim: int | list[int]) -> None:
    dims = [block_dim] * len(tensors) if isinstance(block_dim, int) else block_dim
    blocks = GpuBlocks(tensors, block_dim, driver=FakeDriver(seed=3))
    assert blocks.num_blocks == NUM_BLOCKS, name
    source = [random.randrange(NUM_BLOCKS) for _ in range(11)]
    target = random.sample(range(NUM_BLOCKS), 11)
    before = [bits(t, d) for t, d in zip(tensors, dims, strict=True)]
    rows = [in_memory_order(t, d)[source] for t, d in zip(tensors, dims, strict=True)]
    out = blocks.buffer(len(source) * blocks.block_bytes)
    blocks.pack(source, out)
    assert bytes(out) == torch.cat(rows, 1).numpy().tobytes(), name
    blocks.unpack(target, memoryview(bytes(out)))
    for tensor, dim, old in zip(tensors, dims, before, strict=True):
        wanted = old.clone()
        wanted[target] = old[source]
        assert torch.equal(bits(tensor, dim), wanted), name
    blocks.close()


def main() -> None:
    random.seed(5)
    torch.manual_seed(5)
    for dtype in DTYPES:
        for name, (tensors, block_dim) in caches(dtype).items():
            check(f"{name}, {dtype}", tensors, block_dim)


if __name__ == "__main__":
    main()
