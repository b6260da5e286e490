"""Where the bytes of KV blocks lie, over the layouts that engines use and many that they do not."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.cuda.layout import (
    Piece,
    Strided,
    aligned_to,
    alignment_of,
    parts_of,
    plan_of,
    width_of,
)
from llx.errors import EngineError
from tests.cuda.caches import VLLM_ORDERS, Cache, Shape, cache_of, caches, llama, shapes

pytestmark = pytest.mark.core


def packed(pieces, block: int) -> bytes:
    return b"".join(
        ctypes.string_at(p.address + block * p.stride_bytes, p.size_bytes) for p in pieces
    )


def addresses(pieces, block: int) -> list[int]:
    begins = [(p.address + block * p.stride_bytes, p.size_bytes) for p in pieces]
    return [begin + i for begin, size in begins for i in range(size)]


@given(caches())
def test_pieces_are_the_bytes_of_a_block_each_once(cache: Cache) -> None:
    plan = plan_of(cache.tensors)
    assert plan.num_blocks == cache.num_blocks
    for block in range(cache.num_blocks):
        wanted = [a + i for a, size in cache.elements(block) for i in range(size)]
        found = addresses(plan.pieces, block)
        assert len(found) == plan.block_bytes
        assert sorted(found) == sorted(wanted)


@given(st.data())
def test_equal_layout_means_equal_bytes(data) -> None:
    """However layers, blocks and padding lie: what one packs, the other unpacks."""
    count = 3
    first = data.draw(shapes(count))
    order = "".join(data.draw(st.permutations(first.order)))
    second = Shape(
        order,
        first.sizes | {"B": count + 1},
        first.itemsize,
        data.draw(st.dictionaries(st.sampled_from("LBKHN"), st.integers(1, 3), max_size=2)),
        first.logical,
    )
    source, target = cache_of(first, seed=1), cache_of(second, seed=2)
    plans = plan_of(source.tensors), plan_of(target.tensors)
    if plans[0].layout != plans[1].layout:
        return
    for theirs, own in aligned_to(plans[0].pieces, plans[1].pieces):
        assert theirs.size_bytes == own.size_bytes
        ctypes.memmove(own.address + 3 * own.stride_bytes, theirs.address, own.size_bytes)
    assert target.block(3) == source.block(0)


@pytest.mark.parametrize(
    ("order", "pieces"),
    [("LBNHC", 3), ("LBHNC", 3), ("LHBNC", 6), ("BLHNC", 1), ("BLNHC", 1), ("BHLNC", 1)],
)
def test_layouts_of_vllm(order: str, pieces: int) -> None:
    plan = plan_of(cache_of(llama(order)).tensors)
    assert len(plan.pieces) == pieces
    assert plan.block_bytes == 3 * 2 * 4 * 16 * 2


def test_how_blocks_and_layers_are_interleaved_is_no_part_of_the_layout() -> None:
    layouts = {order: plan_of(cache_of(llama(order)).tensors).layout for order in VLLM_ORDERS}
    assert layouts["LBNHC"] == layouts["BLNHC"] == "3xbfloat16[1,2,4,16](2,1,3)"
    assert layouts["LBHNC"] == layouts["LHBNC"] == layouts["BLHNC"] == "3xbfloat16[1,2,4,16]"
    assert layouts["BHLNC"].startswith("3xbfloat16[1,2,4,16] order=")


def test_keys_apart_from_values_are_pieces_of_their_own() -> None:
    split = Shape("LKBNHC", {"L": 2, "B": 4, "K": 2, "H": 2, "N": 4, "C": 8})
    sizes = {piece.size_bytes for piece in plan_of(cache_of(split).tensors).pieces}
    assert (len(plan_of(cache_of(split).tensors).pieces), sizes) == (4, {128})


def test_one_latent_per_token() -> None:
    mla = Shape("LBKHNC", {"L": 3, "B": 4, "K": 1, "H": 1, "N": 16, "C": 576})
    indexer = Shape(
        "LBKHNC", {"L": 2, "B": 4, "K": 1, "H": 1, "N": 16, "C": 132}, itemsize=1, dtype="uint8"
    )
    plan = plan_of(cache_of(mla, indexer).tensors)
    assert [piece.size_bytes for piece in plan.pieces] == [18_432] * 3 + [2112] * 2
    assert plan.layout == "3xbfloat16[1,1,16,576] 2xuint8[1,1,16,132]"
    assert width_of(alignment_of(plan.pieces)) == 16


def test_tensors_listed_against_the_order_of_memory() -> None:
    cache = cache_of(llama("BLNHC"))
    there, here = plan_of(cache.tensors), plan_of(cache.tensors[::-1])
    assert len(here.pieces) == 1
    assert there.layout != here.layout


def strided(**other) -> Strided:
    plain = {"address": 4096, "shape": (4, 8), "strides": (8, 1), "itemsize": 2}
    return Strided(**(plain | {"block_dim": 0, "dtype": "float16"} | other))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([], "blocks"),
        ([strided(), strided(address=8192, shape=(5, 8))], "blocks"),
        ([strided(shape=(0, 8))], "blocks"),
        ([strided(shape=(4, 0))], "no bytes"),
        ([strided(strides=(4, 1))], "share memory"),
        ([strided(strides=(0, 1))], "share memory"),
        ([strided(strides=(8, 0))], "share memory"),
        ([strided(), strided()], "share memory"),
        ([strided(shape=(2, 300, 300), strides=(1, 600, 2))], "pieces"),
    ],
)
def test_what_is_no_kv_cache_is_refused(tensors: list[Strided], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        plan_of(tensors)


def test_blocks_of_unequal_size_are_not_aligned() -> None:
    with pytest.raises(EngineError, match="24 bytes there and 16 here"):
        list(aligned_to([Piece(0, 24, 24)], [Piece(0, 16, 16)]))


@given(
    st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_parts_are_the_pieces_in_order(sizes: list[tuple[int, int]], grains: int) -> None:
    pieces = [Piece(1 << (30 + i), 1 << 29, size * n) for i, (size, n) in enumerate(sizes)]
    parts = parts_of(pieces, grains * 2048)
    assert max(part.size_bytes for part in parts) <= grains * 2048
    ends = [part.offset + part.size_bytes for part in parts]
    assert [part.offset for part in parts] == [0, *ends[:-1]]
    assert addresses_of_ends(parts) == addresses_of_ends(pieces)
    width = width_of(alignment_of(pieces))
    assert all(n % width == 0 for p in parts for n in (p.address, p.size_bytes, p.offset))


def addresses_of_ends(runs) -> list[tuple[int, int]]:
    """Begin and end of what lies side by side."""
    joined: list[tuple[int, int]] = []
    for run in runs:
        end = run.address + run.size_bytes
        if joined and joined[-1][1] == run.address:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((run.address, end))
    return joined


@pytest.mark.parametrize(
    ("numbers", "width"), [((0, 64), 16), ((24,), 8), ((16, 20), 4), ((6,), 2), ((16, 17), 1)]
)
def test_the_widest_access_that_is_aligned(numbers: tuple[int, ...], width: int) -> None:
    assert width_of(*numbers) == width
