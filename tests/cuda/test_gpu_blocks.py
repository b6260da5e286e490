"""`GpuBlocks` on a fake GPU: orders of streams, lists of ids, peers, and everything that fails."""

import ctypes
import gc
import json
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.cuda import staging
from llx.cuda.gpu_blocks import GpuBlocks
from llx.errors import EngineError
from tests.cuda.caches import Cache, Shape, cache_of, caches, llama
from tests.cuda.fake_driver import FakeDriver, FakeTensor, World
from tests.example_counts import of_a_hundred

NOTHING = {"device": 0, "host": 0, "streams": 0, "events": 0, "mapped": 0}


def blocks_of(cache: Cache, driver: FakeDriver | None = None, **other) -> GpuBlocks:
    driver = driver or FakeDriver()
    driver.lend(cache.arena.begin, cache.arena.size)
    tensors = [FakeTensor(each) for each in cache.tensors]
    dims = [each.block_dim for each in cache.tensors]
    return GpuBlocks(tensors, dims, driver=driver, **other)


@pytest.fixture
def small_staging(monkeypatch) -> None:
    """So that small copies take many turns."""
    monkeypatch.setattr(staging, "STAGING_BYTES", 1)


def rest_of(cache: Cache, blocks: list[int]) -> bytearray:
    """All memory but those blocks."""
    content = cache.arena.content()
    for block in blocks:
        for address, size in cache.elements(block):
            begin = address - cache.arena.begin
            content[begin : begin + size] = bytes(size)
    return content


@settings(max_examples=of_a_hundred(60), deadline=None)
@given(caches(), st.data(), st.integers(0, 1000))
def test_what_is_packed_is_unpacked_and_nothing_else_written(cache, data, seed) -> None:
    count = cache.num_blocks
    gpu = blocks_of(cache, FakeDriver(seed=seed))
    source = data.draw(st.lists(st.integers(0, count - 1), max_size=count))
    target = data.draw(st.permutations(range(count)))[: len(source)]
    wanted = [cache.block(block) for block in source]
    before, rest = cache.arena.content(), rest_of(cache, target)
    out = gpu.buffer(len(source) * gpu.block_bytes)
    gpu.pack(source, out)
    assert cache.arena.content() == before
    gpu.unpack(target, memoryview(bytes(out)))
    assert [cache.block(block) for block in target] == wanted
    assert rest_of(cache, target) == rest
    gpu.close()


@pytest.mark.usefixtures("small_staging")
@pytest.mark.parametrize("order", ["LBNHC", "BLNHC"])
@pytest.mark.parametrize("seed", range(20))
def test_buffers_are_not_filled_before_they_are_empty(order: str, seed: int) -> None:
    cache = cache_of(llama(order, num_blocks=12))
    driver = FakeDriver(seed=seed)
    gpu = blocks_of(cache, driver)
    source, target = random.Random(seed).sample(range(12), 9), list(range(9))
    wanted = [cache.block(block) for block in source]
    out = bytearray(9 * gpu.block_bytes)
    gpu.pack(source, memoryview(out))
    assert len(driver.device) == 3, "a table and two buffers"
    gpu.unpack(target, memoryview(out))
    assert [cache.block(block) for block in target] == wanted
    gpu.close()
    assert driver.holds() == NOTHING


def test_blocks_in_one_run_go_over_the_link_as_they_are() -> None:
    cache = cache_of(llama("BLNHC", C=4096))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver)
    assert gpu.is_contiguous
    assert gpu.block_bytes >= 64 << 10
    wanted = cache.block(3) + cache.block(1)
    again = [ctypes.string_at(gpu.address_of(block), gpu.block_bytes) for block in (3, 1)]
    out = gpu.buffer(len(wanted))
    gpu.pack([3, 1], out)
    assert b"".join(again) == bytes(out)
    gpu.unpack([0, 2], out)
    assert cache.block(0) + cache.block(2) == wanted
    assert driver.launched == []


def test_gather_and_scatter_return_before_they_are_done() -> None:
    cache = cache_of(llama("LBHNC"))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver, max_ctas=2)
    with driver.current():
        stream, event = driver.new_stream(), driver.new_event()
        packed = driver.allocate(3 * gpu.block_bytes)
        wanted = [cache.block(block) for block in (4, 0, 4)]
        gpu.gather([4, 0, 4], packed, stream)
        gpu.scatter([1, 2], packed, stream, max_ctas=1)
        assert cache.block(1) != wanted[0]
        driver.record(event, stream)
        driver.wait(event, 1)
    assert [cache.block(block) for block in (1, 2)] == wanted[:2]
    assert driver.launched == [("llx_gather_16", 2), ("llx_scatter_16", 1)]


def test_width_follows_where_the_bytes_are_packed() -> None:
    cache = cache_of(llama("LBHNC"))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver)
    with driver.current():
        stream = driver.new_stream()
        packed = driver.allocate(gpu.block_bytes + 16)
    for shift in (0, 8, 4, 2, 1):
        gpu.gather([1], packed + shift, stream)
    widths = [kernel.split("_")[-1] for kernel, _ in driver.launched]
    assert widths == ["16", "8", "4", "2", "1"]


def test_long_lists_take_several_launches(monkeypatch) -> None:
    monkeypatch.setattr("llx.cuda.gpu_blocks.MAX_IDS", 2)
    monkeypatch.setattr("llx.cuda.peers.MAX_IDS", 2)
    cache = cache_of(llama("LBHNC"))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver)
    wanted = b"".join(cache.block(block) for block in range(5))
    gpu.pack(range(5), out := gpu.buffer(len(wanted)))
    gpu.unpack([4, 3, 2, 1, 0], out)
    assert b"".join(cache.block(block) for block in (4, 3, 2, 1, 0)) == wanted
    assert len(driver.launched) == 6


@pytest.mark.parametrize("blocks", [[5], [-1], [0, 1 << 40], [-(1 << 40)]])
def test_ids_that_are_none_reach_no_gpu(blocks: list[int]) -> None:
    cache = cache_of(llama("LBHNC"))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver)
    before = cache.arena.content()
    data = memoryview(bytearray(len(blocks) * gpu.block_bytes))
    for call in (
        lambda: gpu.pack(blocks, data),
        lambda: gpu.unpack(blocks, data),
        lambda: gpu.gather(blocks, 4096, 1),
        lambda: gpu.scatter(blocks, 4096, 1),
    ):
        with pytest.raises(EngineError, match="of 5"):
            call()
    assert driver.launched == []
    assert cache.arena.content() == before


def test_bytes_that_do_not_fit_are_a_broken_invariant() -> None:
    gpu = blocks_of(cache_of(llama("LBHNC")))
    with pytest.raises(AssertionError):
        gpu.pack([1], memoryview(bytearray(1)))


def test_pinned_memory_lives_as_long_as_its_last_view() -> None:
    driver = FakeDriver()
    gpu = blocks_of(cache_of(llama("LBHNC")), driver)
    held = len(driver.host)
    view = gpu.buffer(100)[10:20]
    assert (view.nbytes, view.readonly, view.format) == (10, False, "B")
    gc.collect()
    assert len(driver.host) == held + 1
    del view
    gc.collect()
    assert len(driver.host) == held
    assert gpu.buffer(0).nbytes == 0


@pytest.mark.parametrize("failing", ["launch", "move", "hold", "record"])
def test_a_copy_that_fails_is_told(failing: str) -> None:
    cache = cache_of(llama("LBHNC"))
    driver = FakeDriver()
    gpu = blocks_of(cache, driver)
    out = gpu.buffer(gpu.block_bytes)
    driver.fails = {failing}
    with pytest.raises(EngineError, match=failing):
        gpu.pack([1], out)
    driver.fails = set()
    if failing != "record":
        gpu.pack([1], out)
        assert bytes(out) == cache.block(1)


@pytest.mark.parametrize("failing", ["allocate", "new_stream", "new_event"])
def test_what_cannot_be_made_leaves_nothing(failing: str) -> None:
    driver = FakeDriver()
    with driver.current():
        driver.fails = {failing}
        with pytest.raises(EngineError, match=failing):
            blocks_of(cache_of(llama("LBHNC")), driver)
    assert driver.holds() == NOTHING


def test_a_gpu_that_does_not_end_a_copy_keeps_its_memory(monkeypatch) -> None:
    monkeypatch.setattr(staging, "WAIT_S", 0.05)
    driver = FakeDriver()
    gpu = blocks_of(cache_of(llama("LBHNC")), driver)
    held = len(driver.host)
    out = gpu.buffer(gpu.block_bytes)
    driver.is_stuck = True
    with pytest.raises(EngineError, match="within"):
        gpu.pack([1], out)
    driver.is_stuck = False
    with pytest.raises(EngineError, match="failed before"):
        gpu.pack([1], out)
    del out
    gc.collect()
    assert len(driver.host) == held + 1, "the GPU may still write there"


def test_many_threads_at_once() -> None:
    class Locked(FakeDriver):
        """The fake's queues are no thread's own."""

        lock = threading.RLock()

        def has_passed(self, event: int) -> bool:
            with self.lock:
                return super().has_passed(event)

        def _called(self, name: str) -> None:
            if name in self.fails:
                raise EngineError(name)

    cache = cache_of(llama("LBHNC", num_blocks=8))
    gpu = blocks_of(cache, Locked())
    failed = []

    def work(block: int) -> None:
        wanted = cache.block(block)
        for _ in range(20):
            out = bytearray(gpu.block_bytes)
            gpu.pack([block], memoryview(out))
            if bytes(out) != wanted:
                failed.append(block)
            gpu.unpack([block], memoryview(out))

    threads = [threading.Thread(target=work, args=(block,)) for block in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


# -------------------------------------------------------------------- peers


def pair(theirs: Cache, own: Cache) -> tuple[GpuBlocks, GpuBlocks]:
    world = World()
    return blocks_of(theirs, FakeDriver(world)), blocks_of(own, FakeDriver(world))


@pytest.mark.parametrize(
    ("there", "here"), [("LBNHC", "LBNHC"), ("LBNHC", "BLNHC"), ("BLNHC", "LBNHC")]
)
def test_a_peer_is_read_however_its_blocks_lie(there: str, here: str) -> None:
    theirs, own = cache_of(llama(there), seed=1), cache_of(llama(here, num_blocks=9), seed=2)
    source, target = pair(theirs, own)
    rest = rest_of(own, [8, 0])
    peer = target.open_peer(source.share())
    peer.read([1, 4], [8, 0])
    peer.read([], [])
    assert [own.block(8), own.block(0)] == [theirs.block(1), theirs.block(4)]
    assert rest_of(own, [8, 0]) == rest
    peer.close()
    peer.close()
    with pytest.raises(EngineError, match="closed"):
        peer.read([1], [1])
    target.close()
    assert target._driver.holds() == NOTHING


def test_handles_are_opened_once() -> None:
    source, target = pair(cache_of(llama("LBNHC"), seed=1), cache_of(llama("LBNHC"), seed=2))
    shared = source.share()
    assert len(json.loads(shared)["allocations"]) == 1
    peers = [target.open_peer(shared) for _ in range(3)]
    before = target._driver.holds()
    for peer in peers:
        peer.close()
    assert before["mapped"] == 1
    assert target._driver.mapped == {}


def test_ids_of_a_peer_are_checked_at_both_ends() -> None:
    theirs, own = cache_of(llama("LBNHC", num_blocks=3)), cache_of(llama("LBNHC", num_blocks=9))
    source, target = pair(theirs, own)
    peer = target.open_peer(source.share())
    for ids in (([3], [0]), ([0], [9]), ([-1], [0]), ([0, 1], [0])):
        with pytest.raises(EngineError):
            peer.read(*ids)
    assert target._driver.launched == []
    peer.read([2], [8])
    assert own.block(8) == theirs.block(2)


def test_memory_that_cannot_be_exported_says_what_to_do() -> None:
    driver = FakeDriver()
    gpu = blocks_of(cache_of(llama("LBNHC")), driver)
    driver.is_exportable = False
    with pytest.raises(EngineError, match="expandable_segments"):
        gpu.share()


def changed(shared: bytes, **other) -> bytes:
    return json.dumps(json.loads(shared) | other).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"layout": "another"},
        {"num_blocks": 0},
        {"num_blocks": 10_000},
        {"num_blocks": "5"},
        {"num_blocks": True},
        {"allocations": []},
        {"allocations": [["00", 4096]]},
        {"allocations": [["zz" * 64, 4096]]},
        {"allocations": [["00" * 64, 1 << 40]]},
        {"pieces": []},
        {"pieces": [[0, 0, 256, 256]]},
        {"pieces": [[0, 0, 256]]},
        {"pieces": [[1, 0, 256, 256]] * 3},
        {"pieces": [[0, -8, 256, 256]] * 3},
        {"pieces": [[0, 1.5, 256, 256]] * 3},
        {"pieces": [[0, 1 << 40, 256, 256]] * 3},
        {"pieces": [[0, 0, 1 << 61, 256]] * 3},
        {"pieces": 7},
    ],
)
def test_what_a_peer_says_is_not_believed(change: dict) -> None:
    source, target = pair(cache_of(llama("LBNHC")), cache_of(llama("LBNHC")))
    before = target._driver.holds()
    with pytest.raises(EngineError):
        target.open_peer(changed(source.share(), **change))
    assert target._driver.holds() == before


@pytest.mark.parametrize("shared", [b"", b"[]", b"null", b"{", b"\xff", b"{}"])
def test_what_is_no_message_at_all(shared: bytes) -> None:
    with pytest.raises(EngineError):
        blocks_of(cache_of(llama("LBNHC"))).open_peer(shared)


def test_an_allocation_that_maps_smaller_than_told_is_refused() -> None:
    source, target = pair(cache_of(llama("LBNHC")), cache_of(llama("LBNHC")))
    shared = source.share()
    world = source._driver.world
    world.handles = {handle: (base, 64) for handle, (base, _) in world.handles.items()}
    target._driver.ranges = source._driver.ranges = {}
    with pytest.raises(EngineError, match="maps as 64"):
        target.open_peer(shared)
    assert target._driver.mapped == {}


def test_a_peer_that_is_stuck_stays_mapped(monkeypatch) -> None:
    monkeypatch.setattr("llx.cuda.peers.WAIT_S", 0.05)
    source, target = pair(cache_of(llama("LBNHC")), cache_of(llama("LBNHC")))
    peer = target.open_peer(source.share())
    target._driver.is_stuck = True
    with pytest.raises(EngineError, match="within"):
        peer.read([1], [1])
    peer.close()
    assert len(target._driver.mapped) == 1, "a kernel may still read it"
    with pytest.raises(EngineError, match="failed before"):
        peer.read([1], [1])


def test_tensors_that_lie_elsewhere_are_refused() -> None:
    class Device:
        type, index = "cpu", None

        def __str__(self) -> str:
            return "cpu"

    (tensor,) = cache_of(Shape("LBKHNC", dict.fromkeys("LBKHNC", 1) | {"B": 2})).tensors
    with pytest.raises(EngineError, match="cpu"):
        GpuBlocks([FakeTensor(tensor, Device())], 0)
