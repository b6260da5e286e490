"""KV caches of any layout in plain memory, and what their blocks are by coordinates alone."""

import ctypes
import itertools
import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

from llx.cuda.layout import Strided

GUARD_BYTES = 4096


class Arena:
    """Memory full of random bytes, larger than what is used of it."""

    def __init__(self, size: int, seed: int, *, shift: int = 0) -> None:
        self._memory = ctypes.create_string_buffer(
            random.Random(seed).randbytes(size + 2 * GUARD_BYTES + 256)
        )
        begin = ctypes.addressof(self._memory)
        self.begin = begin
        self.size = len(self._memory)
        self.address = (begin + GUARD_BYTES + 127) // 128 * 128 + shift

    def content(self) -> bytearray:
        return bytearray(self._memory)


@dataclass
class Cache:
    """Tensors in one arena."""

    arena: Arena
    tensors: list[Strided]
    described: str = ""

    @property
    def num_blocks(self) -> int:
        first = self.tensors[0]
        return first.shape[first.block_dim]

    def elements(self, block: int) -> list[tuple[int, int]]:
        """Address and size of every element of a block, in the order of its coordinates."""
        found = []
        for t in self.tensors:
            ranges = [
                range(block, block + 1) if dim == t.block_dim else range(size)
                for dim, size in enumerate(t.shape)
            ]
            for index in itertools.product(*ranges):
                at = sum(i * s for i, s in zip(index, t.strides, strict=True))
                found.append((t.address + at * t.itemsize, t.itemsize))
        return found

    def block(self, block: int) -> bytes:
        """Its bytes, in the order of its coordinates."""
        return b"".join(ctypes.string_at(*element) for element in self.elements(block))


@dataclass(frozen=True)
class Shape:
    """Of a cache: dims by letter (L layers, B blocks, K keys and values, H heads, N, C)."""

    order: str  # in memory, outermost first
    sizes: dict[str, int]
    itemsize: int = 2
    padding: dict[str, int] = field(default_factory=dict)  # elements after each of a dimension
    logical: str = "BKHNC"
    dtype: str = "bfloat16"

    def strides(self) -> dict[str, int]:
        strides = {}
        size = 1
        for dim in reversed(self.order):
            size += self.padding.get(dim, 0)
            strides[dim] = size
            size *= self.sizes[dim]
        return strides

    @property
    def elements(self) -> int:
        strides = self.strides()
        return sum((self.sizes[d] - 1) * strides[d] for d in self.order) + 1

    def tensor(self, begin: int, layer: int) -> Strided:
        strides = self.strides()
        return Strided(
            address=begin + layer * strides["L"] * self.itemsize,
            shape=tuple(self.sizes[d] for d in self.logical),
            strides=tuple(strides[d] for d in self.logical),
            itemsize=self.itemsize,
            block_dim=self.logical.index("B"),
            dtype=self.dtype,
        )


def cache_of(*shapes: Shape, seed: int = 1, shift: int = 0) -> Cache:
    """One after the other in memory, each with its layers as tensors."""
    sizes = [shape.elements * shape.itemsize for shape in shapes]
    sizes = [-(-size // 64) * 64 for size in sizes]
    arena = Arena(sum(sizes), seed, shift=shift)
    tensors = []
    begin = arena.address
    for shape, size in zip(shapes, sizes, strict=True):
        tensors += [shape.tensor(begin, layer) for layer in range(shape.sizes["L"])]
        begin += size
    return Cache(arena, tensors, " ".join(map(repr, shapes)))


def llama(order: str, *, num_blocks: int = 5, layers: int = 3, **sizes: int) -> Shape:
    """As vLLM lays attention out: keys and values packed in the content of a token."""
    dims = {"L": layers, "B": num_blocks, "K": 1, "H": 2, "N": 4, "C": 16} | sizes
    return Shape(order="K" + order, sizes=dims)


VLLM_ORDERS = ["LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]


@st.composite
def shapes(draw, num_blocks: int) -> Shape:
    order = "".join(draw(st.permutations("LBKHNC")))
    sizes = {
        "L": draw(st.integers(1, 3)),
        "B": num_blocks,
        "K": draw(st.sampled_from([1, 1, 2])),
        "H": draw(st.integers(1, 3)),
        "N": draw(st.integers(1, 4)),
        "C": draw(st.integers(1, 9)),
    }
    padded = draw(st.lists(st.sampled_from("LBKHN"), max_size=2))
    return Shape(
        order=order,
        sizes=sizes,
        itemsize=draw(st.sampled_from([1, 2, 4, 8])),
        padding={dim: draw(st.integers(1, 5)) for dim in padded},
        logical="".join(draw(st.permutations("BKHNC"))),
    )


@st.composite
def caches(draw, max_shapes: int = 2) -> Cache:
    num_blocks = draw(st.integers(2, 6))
    chosen = draw(st.lists(shapes(num_blocks), min_size=1, max_size=max_shapes))
    itemsize = max(shape.itemsize for shape in chosen)
    shift = draw(st.sampled_from([0, 0, 16, 8])) // itemsize * itemsize
    return cache_of(*chosen, seed=draw(st.integers(0, 99)), shift=shift)
