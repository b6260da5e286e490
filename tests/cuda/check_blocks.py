"""Gathering and scattering blocks against plain indexing; run by `test_blocks` with torch there."""

import random
from array import array

import torch

from llx.cuda.blocks import BlockPacker

NUM_BLOCKS = 37
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8]


def layer(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits, NaNs among them."""
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return raw.view(dtype)


def caches(dtype: torch.dtype) -> dict[str, tuple[list[torch.Tensor], int | list[int]]]:
    """KV caches as engines lay them out, by name."""
    n = NUM_BLOCKS
    permuted = [layer(dtype, (2, n, 4, 16, 8)).permute(1, 0, 3, 2, 4) for _ in range(2)]
    return {
        "blocks first": ([layer(dtype, (n, 2, 16, 3, 8)) for _ in range(3)], 0),
        "keys, then values": ([layer(dtype, (2, n, 16, 3, 8)) for _ in range(3)], 1),
        "heads before slots": (permuted, 0),
        "blocks last": ([layer(dtype, (3, 5, n)) for _ in range(2)], 2),
        "every second": ([layer(dtype, (n, 16, 6))[:, ::2, ::3]], 0),
        "two kinds": ([layer(dtype, (n, 7)), layer(torch.float32, (n, 3)),
                       layer(torch.uint8, (2, n, 5))], [0, 0, 1]),
    }  # fmt: skip


def bits(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    raw = tensor.movedim(dim, 0).contiguous()
    return raw.view(torch.uint8).reshape(len(raw), -1).clone()


def check(name: str, tensors: list[torch.Tensor], block_dim: int | list[int]) -> None:
    dims = [block_dim] * len(tensors) if isinstance(block_dim, int) else block_dim
    packer = BlockPacker(tensors, block_dim)
    assert packer.num_blocks == NUM_BLOCKS, name
    assert packer.block_bytes == sum(
        t.numel() * t.element_size() // NUM_BLOCKS for t in tensors
    ), name  # fmt: skip
    source = random.sample(range(NUM_BLOCKS), 11)
    target = random.sample(range(NUM_BLOCKS), 11)
    before = [bits(t, d) for t, d in zip(tensors, dims, strict=True)]
    data = bytearray(len(source) * packer.block_bytes)
    packer.pack(array("i", source), memoryview(data))
    for tensor, dim, old in zip(tensors, dims, before, strict=True):
        assert torch.equal(bits(tensor, dim), old), f"{name}: packing has written"
    packer.unpack(target, memoryview(bytes(data)))
    for tensor, dim, old in zip(tensors, dims, before, strict=True):
        wanted = old.clone()
        wanted[target] = old[source]
        assert torch.equal(bits(tensor, dim), wanted), name
    again = bytearray(len(data))
    packer.pack(target, memoryview(again))
    assert again == data, name
    packer.pack([], memoryview(b""))
    packer.unpack([], memoryview(b""))


def main() -> None:
    random.seed(5)
    torch.manual_seed(5)
    for dtype in DTYPES:
        for name, (tensors, block_dim) in caches(dtype).items():
            check(f"{name}, {dtype}", tensors, block_dim)
    one = BlockPacker([torch.zeros(4, 2, 3), torch.zeros(4, 2, 3), torch.zeros(4, 5)], 0)
    assert one.layout == "2xfloat32[2,3] 1xfloat32[5]", one.layout


if __name__ == "__main__":
    main()
