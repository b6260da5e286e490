"""Where the bytes of a KV block lie: the runs of memory it consists of, over all layers. Pure.

A *run* is what one block has side by side in one tensor; runs of several tensors that touch are
joined into one *piece*. So a cache of layers in memory of their own has one piece per layer and
block, one whose blocks come first of all has a single piece per block, and one whose heads lie
outside of its blocks has a piece per layer and head.

    LBNHC   layer 0: [b0 ][b1 ][b2 ]   layer 1: [b0 ][b1 ][b2 ]      a piece per layer
    BLNHC   [b0 l0|b0 l1][b1 l0|b1 l1][b2 l0|b2 l1]                  one piece
    LHBNC   layer 0: [b0 h0][b1 h0][b0 h1][b1 h1]   layer 1: ...     a piece per layer and head
    BHLNC   [b0 h0 l0|b0 h0 l1|b0 h1 l0|b0 h1 l1][b1 ...             one piece, heads before layers

The bytes of a block are tensor by tensor, and within a tensor as they lie in memory, outermost
dimension first; where runs are joined, in the order of memory. So the first two have the same bytes
in the same order, and either can be copied to the other.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from llx.errors import EngineError

MAX_PIECES = 65_536
"""Of one block: beyond this the layout is none that an engine uses, such as blocks innermost."""

WIDTHS = (16, 8, 4, 2, 1)
"""Bytes of one access, the widest first."""

_PART_GRAIN = 2048  # what a warp has in flight at once, at the widest access


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor of a KV cache, as it lies in memory.

    `strides` count elements, as torch's do; `block_dim` is the dimension that counts blocks.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    block_dim: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Piece:
    """`size_bytes` at ``address + block * stride_bytes``, for each block."""

    address: int
    stride_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a piece: bytes `offset` to ``offset + size_bytes`` of a block that is packed."""

    address: int
    stride_bytes: int
    size_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How the blocks of a cache lie.

    Attributes:
        pieces: Of a block, in the order of its bytes.
        num_blocks: How many blocks there are.
        block_bytes: Bytes of one block, all pieces together.
        layout: Dtypes, shapes and order of the bytes: equal iff they mean the same.
    """

    pieces: tuple[Piece, ...]
    num_blocks: int
    block_bytes: int
    layout: str


def plan_of(tensors: Sequence[Strided]) -> Plan:
    """How the blocks of a cache of these tensors lie.

    Raises:
        EngineError: The tensors cannot be a KV cache: no or differing counts of blocks, elements
            that share memory, or blocks in more pieces than can be copied well.
    """
    counts = sorted({tensor.shape[tensor.block_dim] for tensor in tensors})
    if len(counts) != 1 or counts[0] < 1:
        raise EngineError(f"a KV cache of tensors with {counts} blocks cannot be copied")
    runs = [run for tensor in tensors for run in _runs(tensor)]
    if not runs:
        raise EngineError("a KV cache of no bytes cannot be copied")
    if len(runs) > MAX_PIECES:
        raise EngineError(f"each KV block is in {len(runs)} pieces, more than {MAX_PIECES}")
    _check_apart(runs)
    chains = _chains(runs)
    pieces = tuple(_whole(runs, chain) for chain in chains)
    return Plan(
        pieces=pieces,
        num_blocks=counts[0],
        block_bytes=sum(piece.size_bytes for piece in pieces),
        layout=_layout(tensors) + _order(runs, chains),
    )


def aligned_to(other: Sequence[Piece], pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Two caches of equal bytes per block, cut where either has a piece end: pairs of equal size.

    Raises:
        EngineError: Their blocks are not of the same size.
    """
    sizes = [sum(piece.size_bytes for piece in each) for each in (other, pieces)]
    if sizes[0] != sizes[1]:
        raise EngineError(f"a KV block has {sizes[0]} bytes there and {sizes[1]} here")
    left, right = list(reversed(other)), list(reversed(pieces))
    while left:
        a, b = left.pop(), right.pop()
        size = min(a.size_bytes, b.size_bytes)
        yield _cut(a, 0, size), _cut(b, 0, size)
        for rest, piece in ((left, a), (right, b)):
            if piece.size_bytes > size:
                rest.append(_cut(piece, size, piece.size_bytes))


def parts_of(pieces: Sequence[Piece], max_bytes: int) -> list[Part]:
    """The pieces cut into parts of about equal size, at most `max_bytes` (a multiple of 2048).

    One warp copies a part: few large pieces occupy a whole GPU too. Equal pieces are cut alike.
    """
    assert max_bytes % _PART_GRAIN == 0, f"{max_bytes} is no multiple of {_PART_GRAIN}"
    parts = []
    offset = 0
    for piece in pieces:
        count = -(-piece.size_bytes // max_bytes)
        size = -(-piece.size_bytes // (count * _PART_GRAIN)) * _PART_GRAIN
        for begin in range(0, piece.size_bytes, size):
            cut = _cut(piece, begin, min(begin + size, piece.size_bytes))
            parts.append(Part(cut.address, cut.stride_bytes, cut.size_bytes, offset + begin))
        offset += piece.size_bytes
    return parts


def alignment_of(pieces: Sequence[Piece]) -> int:
    """What divides all addresses, strides and sizes of the pieces, hence all offsets."""
    return math.gcd(*(n for p in pieces for n in (p.address, p.stride_bytes, p.size_bytes)))


def width_of(*numbers: int) -> int:
    """The widest access that is aligned if these numbers are addresses, strides and sizes."""
    return math.gcd(*numbers, WIDTHS[0])


def _cut(piece: Piece, begin: int, end: int) -> Piece:
    return Piece(piece.address + begin, piece.stride_bytes, end - begin)


def _inner(tensor: Strided) -> list[tuple[int, int, int]]:
    """The dimensions within a block as they lie in memory: (stride, size, dim), outermost first."""
    dims = zip(tensor.strides, tensor.shape, range(len(tensor.shape)), strict=True)
    inner = [each for each in dims if each[2] != tensor.block_dim and each[1] != 1]
    return sorted(inner, key=lambda each: (-each[0], each[2]))


def _runs(tensor: Strided) -> list[Piece]:
    """What a block has in one tensor, in the order of memory; as few and as long as can be."""
    if 0 in tensor.shape:
        return []
    size = 1  # elements of a run
    outer = _inner(tensor)
    while outer and outer[-1][0] == size:
        size *= outer.pop()[1]
    begins = [0]
    for stride, count, _ in outer:
        if len(begins) * count > MAX_PIECES:
            raise EngineError(f"each KV block is in more than {MAX_PIECES} pieces")
        begins = [begin + i * stride for begin in begins for i in range(count)]
    item = tensor.itemsize
    stride = tensor.strides[tensor.block_dim] * item
    return [Piece(tensor.address + begin * item, stride, size * item) for begin in begins]


def _chains(runs: Sequence[Piece]) -> list[list[int]]:
    """Runs that lie side by side in every block, as indices; the chain of the first run first."""
    chains: list[list[int]] = []
    end = size = 0
    for index in sorted(range(len(runs)), key=lambda index: runs[index].address):
        run = runs[index]
        size += run.size_bytes
        stride = runs[chains[-1][-1]].stride_bytes if chains else 0
        if run.address == end and run.stride_bytes == stride and size <= stride:
            chains[-1].append(index)
        else:
            chains.append([index])
            size = run.size_bytes
        end = run.address + run.size_bytes
    return sorted(chains, key=min)


def _whole(runs: Sequence[Piece], chain: Sequence[int]) -> Piece:
    first = runs[chain[0]]
    return Piece(first.address, first.stride_bytes, sum(runs[i].size_bytes for i in chain))


def _check_apart(runs: Sequence[Piece]) -> None:
    """No byte may be in two runs of a block, or in two blocks: one would be lost."""
    if any(run.stride_bytes < run.size_bytes for run in runs):
        raise EngineError("KV blocks that share memory cannot be copied")
    ordered = sorted(runs, key=lambda run: run.address)
    for one, other in pairwise(ordered):
        if other.address < one.address + one.size_bytes:
            raise EngineError("KV layers that share memory cannot be copied")


def _layout(tensors: Sequence[Strided]) -> str:
    names = [_name(tensor) for tensor in tensors if 0 not in tensor.shape]
    return " ".join(f"{len(list(group))}x{name}" for name, group in groupby(names))


def _order(runs: Sequence[Piece], chains: Sequence[Sequence[int]]) -> str:
    """Tells an order of the bytes that is not that of the tensors; empty where it is."""
    order = [index for chain in chains for index in chain]
    if order == sorted(order):
        return ""
    told = repr([(index, runs[index].size_bytes) for index in order])
    return f" order={hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _name(tensor: Strided) -> str:
    """Dtype and shape of a block, and the order of its dimensions in memory if it is another."""
    kept = [dim for dim in range(len(tensor.shape)) if dim != tensor.block_dim]
    shape = ",".join(str(tensor.shape[dim]) for dim in kept)
    order = [dim for _, _, dim in _inner(tensor)]
    if order == sorted(order):
        return f"{tensor.dtype}[{shape}]"
    return f"{tensor.dtype}[{shape}]({','.join(str(kept.index(dim)) for dim in order)})"
