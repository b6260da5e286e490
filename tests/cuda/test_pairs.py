"""Pairs of GPUs over a fake NCCL and a fake GPU: order, overlap, deadlines, and the end of it."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.cuda import nccl, pairs
from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.gpu_kv import GpuKv
from llx.cuda.nccl import Communicator
from llx.cuda.pairs import DEPTH, Pair
from llx.errors import EngineError
from tests.cuda.caches import Cache, cache_of, caches, llama
from tests.cuda.fake_driver import FakeDriver, FakeTensor
from tests.cuda.fake_nccl import FakeNccl
from tests.example_counts import of_a_hundred


def never() -> bool:
    return False


@dataclass
class Two:
    """Two caches of one fake GPU, and what joins them."""

    source: Cache
    target: Cache
    seed: int = 0
    busy: int = 0
    ends: list[Pair] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver = FakeDriver(seed=self.seed)
        self.api = FakeNccl(self.driver, busy=self.busy)
        self.blocks = [self._blocks(each) for each in (self.source, self.target)]
        self.kv = [GpuKv(each, self.api) for each in self.blocks]
        self.before = self.driver.holds()

    def _blocks(self, cache: Cache) -> GpuBlocks:
        self.driver.lend(cache.arena.begin, cache.arena.size)
        tensors = [FakeTensor(each) for each in cache.tensors]
        return GpuBlocks(tensors, [each.block_dim for each in cache.tensors], driver=self.driver)

    def join(self) -> tuple[Pair, Pair]:
        named = self.kv[0].new_pair()
        for kv, is_source in zip(self.kv, (True, False), strict=True):
            self.ends.append(kv.join(named, is_source=is_source, is_cancelled=never))
        source, target = self.ends[-2:]
        return source, target

    def copy(self, ends: tuple[Pair, Pair], here: list[int], there: list[int]) -> None:
        """A round, as the transport goes about it."""
        source, target = ends
        most = min(source.chunk_blocks, target.chunk_blocks)
        unsent = 0
        for first in range(0, len(here), most):
            if unsent == source.depth:
                source.send(never)
                unsent -= 1
            source.prepare(here[first : first + most], never)
            target.receive(there[first : first + most], never)
            unsent += 1
        for _ in range(unsent):
            source.send(never)
        source.finish(never)
        target.finish(never)

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for kv in self.kv:
            kv.close()
        assert not self.api.handles, "every communicator is aborted"
        assert self.driver.holds() == self.before


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    """So that a few blocks take many turns."""
    monkeypatch.setattr(pairs.Pair.__init__, "__kwdefaults__", {"chunk_bytes": 2048})


@pytest.fixture
def quick(monkeypatch) -> None:
    """Deadlines that a test can wait for."""
    limits = {"join_s": 0.05, "stall_s": 0.05}
    monkeypatch.setattr(Communicator.__init__, "__kwdefaults__", limits)


def two(order: str = "LBNHC", **other) -> Two:
    shape = llama(order, num_blocks=12)
    return Two(cache_of(shape, seed=1), cache_of(shape, seed=2), **other)


@settings(max_examples=of_a_hundred(40), deadline=None)
@given(caches(), st.data(), st.integers(0, 1000), st.integers(0, 3))
def test_blocks_arrive_bit_by_bit_and_nothing_else_is_written(cache, data, seed, busy) -> None:
    count = cache.num_blocks
    world = Two(cache, cache, seed=seed, busy=busy)
    here = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count // 2))
    free = [block for block in range(count) if block not in here]
    there = data.draw(st.permutations(free))[: len(here)]
    here = here[: len(there)]
    wanted = [cache.block(block) for block in here]
    kept = {block: cache.block(block) for block in range(count) if block not in there}
    ends = world.join()
    world.copy(ends, here, there)
    assert [cache.block(block) for block in there] == wanted
    assert {block: cache.block(block) for block in kept} == kept
    world.close()


@pytest.mark.parametrize("order", ["LBNHC", "BLNHC"])
@pytest.mark.parametrize("seed", range(10))
def test_buffers_are_not_filled_before_they_are_empty(order: str, seed: int) -> None:
    world = two(order, seed=seed, busy=seed % 3)
    ends = world.join()
    for turn in range(3):
        chosen = random.Random(seed + turn)
        here, there = chosen.sample(range(12), 9), chosen.sample(range(12), 9)
        wanted = [world.source.block(block) for block in here]
        world.copy(ends, here, there)
        assert [world.target.block(block) for block in there] == wanted
    world.close()


def test_a_block_that_is_one_run_goes_as_it_lies() -> None:
    world = two("BLNHC")
    ends = world.join()
    world.copy(ends, [1, 2, 3], [4, 5, 6])
    assert not world.driver.launched, "nothing is gathered"
    assert world.target.block(5) == world.source.block(2)
    world.close()


def test_chunks_overlap() -> None:
    """The second chunk is gathered before the first one is sent."""
    world = two()
    source, target = world.join()
    sends = world.api.calls.count("send")
    for chunk in ([0], [1]):
        source.prepare(chunk, never)
        target.receive(chunk, never)
    assert len(world.driver.launched) == 2 * DEPTH, "two gathers and two scatters wait"
    assert world.api.calls.count("send") == sends
    for _ in range(DEPTH):
        source.send(never)
    source.finish(never)
    target.finish(never)
    world.close()


def test_a_thousand_transfers_leave_nothing_behind() -> None:
    world = two(seed=3)
    ends = world.join()
    world.copy(ends, [0, 1, 2], [3, 4, 5])
    held = world.driver.holds()
    for turn in range(1000):
        world.copy(ends, [turn % 12], [(turn + 5) % 12])
    assert world.driver.holds() == held
    world.close()


@pytest.mark.usefixtures("quick")
def test_a_peer_that_does_not_join_is_waited_for_so_long() -> None:
    world = two()
    world.api.is_deaf = True
    with pytest.raises(EngineError, match=r"waited 0\.05 s for the peer to join"):
        world.join()
    assert world.api.calls.count("abort") == 1
    world.close()


def test_joining_can_be_cancelled() -> None:
    world = two()
    world.api.is_deaf = True
    with pytest.raises(EngineError, match="gave up waiting for the peer"):
        world.kv[0].join(world.kv[0].new_pair(), is_source=True, is_cancelled=lambda: True)
    world.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("order", ["LBNHC", "BLNHC"])
def test_a_stalled_transfer_is_aborted_and_the_next_pair_is_good(order: str) -> None:
    world = two(order)
    source, target = world.join()
    world.api.is_stalled = True
    source.prepare([1], never)
    target.receive([2], never)
    source.send(never)
    for end in (source, target):
        with pytest.raises(EngineError, match="for a transfer to be done"):
            end.finish(never)
        assert not end._communicator.is_open
        end.close()
        end.close()
    assert world.api.calls.count("abort") == 2, "once each"
    before = world.target.arena.content()
    world.api.is_stalled = False
    for _ in range(100):
        world.driver._step()
    assert world.target.arena.content() == before, "nothing is written any more"
    world.copy(world.join(), [1, 3], [2, 4])
    assert world.target.block(4) == world.source.block(3)
    world.close()


def test_a_peer_that_dies_is_noticed_while_waiting() -> None:
    world = two()
    source, target = world.join()
    target.receive([1], never)
    world.api.fail("remote process exited or there was a network error")
    with pytest.raises(EngineError, match="remote process exited"):
        target.finish(never)
    with pytest.raises(EngineError, match="aborted"):
        target.receive([1], never)
    source.prepare([1], never)
    with pytest.raises(EngineError, match="remote process exited"):
        source.send(never)
    world.close()


def test_waiting_can_be_cancelled_in_the_middle_of_a_chunk() -> None:
    world = two()
    source, target = world.join()
    target.receive([1], never)
    with pytest.raises(EngineError, match="gave up"):
        target.finish(lambda: True)
    source.close()
    world.close()


def test_closing_in_the_middle_of_a_chunk_ends_it() -> None:
    world = two()
    source, target = world.join()
    target.receive([1], never)
    source.prepare([1], never)
    target.close()
    source.close()
    assert not any(world.driver.streams.values())
    world.close()


@pytest.mark.parametrize("number", range(1, 40))
def test_whatever_call_fails_nothing_is_called_afterwards(number: int) -> None:
    world = two(busy=1)
    world.api.fails_at = number
    with pytest.raises(EngineError, match="unhandled cuda error"):
        world.copy(world.join(), [0, 1, 2, 3], [4, 5, 6, 7])
    world.close()


@pytest.mark.usefixtures("quick")
def test_buffers_that_may_still_be_written_are_left_to_whom_writes_them() -> None:
    world = two()
    source, target = world.join()
    target.receive([1], never)
    world.driver.is_stuck = True
    with pytest.raises(EngineError, match="has not copied KV"):
        target.close()
    world.driver.is_stuck = False
    held = set(world.driver.device)
    source.close()
    world.ends.clear()
    third, fourth = world.join()
    world.copy((third, fourth), [1], [2])
    assert len(set(world.driver.device) - held) >= DEPTH, "others were allocated"


def test_a_rank_without_nccl_says_so(monkeypatch) -> None:
    def none() -> None:
        raise EngineError("NCCL cannot be loaded: no such file")

    monkeypatch.setattr("llx.cuda.gpu_kv.Nccl", none)
    world = two()
    kv = GpuKv(world.blocks[0])
    assert kv.nccl == ""
    with pytest.raises(EngineError, match="cannot be loaded"):
        kv.new_pair()
    with pytest.raises(EngineError, match="cannot be loaded"):
        kv.join(b"x", is_source=True, is_cancelled=never)


def test_nccl_that_cannot_be_loaded_is_an_error(monkeypatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nccl.ctypes, "CDLL", missing)
    with pytest.raises(EngineError, match="NCCL cannot be loaded"):
        nccl.Nccl()


def test_caches_that_send_otherwise_are_told_apart() -> None:
    """A block in one run goes by itself, others go together: the two ends have to agree."""
    assert two("LBNHC").kv[0].nccl != two("BLNHC").kv[0].nccl
    assert two("LBNHC").kv[0].nccl == two("LBNHC").kv[1].nccl
