"""What every KV transport promises: `llx.ports.KvTransport`, by every medium, and by ranks.

`tcp`, `local`, `cuda-ipc` and `nccl` are instances of one rank in this process, the last two with
GPUs that are not there; `ranks` of two ranks in processes of their own.
"""

import itertools
import random
import time

import pytest

from llx.agent.transport import admissions
from llx.core.model import MigrationId, RequestId
from llx.wire import Route
from tests.contract.kv_pair import SOON_S, TOKEN, M, Pair, near_pair
from tests.contract.kv_ranks import EndElsewhere, Nursery, end_elsewhere
from tests.contract.kv_rig import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    NUM_BLOCKS,
    Answer,
    wait_until,
)

pytestmark = [pytest.mark.contract]


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def elsewhere(nursery: Nursery, tmp_path):
    """Makes ends whose ranks are processes; afterwards none is left."""
    ends: list[EndElsewhere] = []

    def make(num_ranks: int) -> EndElsewhere:
        ends.append(end_elsewhere(nursery, tmp_path / f"end{len(ends)}", num_ranks))
        return ends[-1]

    yield make
    for end in ends:
        end.transport.stop()
        for process in end.processes:
            process.wait_gone()


@pytest.fixture(params=["tcp", "local", "cuda-ipc", "nccl", "ranks"])
def pair(request, here, elsewhere, gpus):
    if request.param == "ranks":
        return Pair(request.param, elsewhere(2), elsewhere(2))
    return near_pair(request.param, here, gpus)


@pytest.fixture(params=["tcp", "local", "cuda-ipc", "nccl"])
def near(request, here, gpus):
    """A pair in this process, whose stores can be tampered with."""
    return near_pair(request.param, here, gpus)


# ---------------------------------------------------------------------- copies


def test_blocks_arrive_where_they_belong_and_nowhere_else(pair: Pair) -> None:
    source, target = random.sample(range(NUM_BLOCKS), 23), random.sample(range(NUM_BLOCKS), 23)
    pair.begin(target[:13])
    assert pair.send(0, source[:13], target[:13]).get() == pair.size(13)
    pair.target.transport.allow(M, target[13:])
    assert pair.send(1, source[13:21], target[13:21]).get() == pair.size(8)
    done = pair.send(2, source[21:], target[21:], state_of=RequestId("r-7"))
    assert done.get() == pair.size(2)
    assert done.copied is not None
    assert done.copied.medium == {"local": "shm", "ranks": "shm"}.get(pair.kind, pair.kind)
    assert [pair.target.heard.next() for _ in range(3)] == [(M, 0), (M, 1), (M, 2)]
    pair.assert_copied(zip(source, target, strict=True))
    assert [store.kept(M) for store in pair.target.stores] == [b"state of r-7"] * len(
        pair.target.stores
    )
    pair.target.transport.finish(M)
    pair.source.transport.close(M)
    time.sleep(0.05)
    assert pair.target.heard.events.empty(), "the end of a finished migration is no failure"


def test_a_stage_without_blocks_brings_the_state(pair: Pair) -> None:
    pair.begin([])
    assert pair.send(0, state_of=RequestId("r-1")).get() == 0
    assert pair.target.heard.next() == (M, 0)
    assert pair.target.stores[-1].kept(M) == b"state of r-1"
    pair.assert_copied([])


def test_stages_may_be_asked_for_at_once(pair: Pair) -> None:
    pair.begin(range(20))
    answers = [pair.send(stage, range(stage, stage + 5), range(5)) for stage in range(4)]
    assert [answer.get() for answer in answers] == [pair.size(5)] * 4
    assert [pair.target.heard.next()[1] for _ in range(4)] == [0, 1, 2, 3]
    pair.assert_copied(zip(range(3, 8), range(5), strict=True))


def test_many_at_once_in_both_directions(pair: Pair) -> None:
    back = Pair(pair.kind, pair.target, pair.source)
    pair.before = [bytes(store.data) for store in pair.target.stores]
    half = NUM_BLOCKS // 2
    plans = []
    for number in range(8):
        one, migration = (back if number % 2 else pair), MigrationId(f"m-{number}")
        first = (number // 2) * 8
        read, written = range(first, first + 8), range(half + first, half + first + 8)
        one.begin(written, migration)
        plans.append((one, migration, read, written))
    answers = [
        one.send(stage, read[stage::2], written[stage::2], migration)
        for stage in (0, 1)
        for one, migration, read, written in plans
    ]
    assert [answer.get() for answer in answers] == [pair.size(4)] * 16
    everything = list(itertools.chain(*(zip(r, w, strict=True) for _, _, r, w in plans[::2])))
    pair.assert_copied(everything)
    back.assert_copied(everything)


def test_a_checked_copy_arrives(pair: Pair) -> None:
    pair.begin(range(30), is_checked=True)
    pair.send(0, range(10, 19), range(9)).get()
    pair.send(1, range(30, 40), range(20, 30)).get()
    assert pair.send(2, [5], [10], state_of=RequestId("r")).get() == pair.size(1)
    assert [pair.target.heard.next()[1] for _ in range(3)] == [0, 1, 2]


# ---------------------------------------------------------------------- refusals


def test_a_wrong_token_is_refused(pair: Pair) -> None:
    pair.begin([1], token=b"another")
    reason = pair.send(0, [0], [1]).get()
    assert "token" in str(reason)
    pair.assert_copied([])
    assert pair.target.heard.events.empty()
    assert pair.send(1, [0], [1]).get() == reason, "a failure stays"


def test_a_migration_that_nobody_expects_is_refused(pair: Pair) -> None:
    routes = pair.target.routes(pair.kind)
    pair.source.transport.open(M, routes, TOKEN, is_checked=False)
    assert "expected" in str(pair.send(0, [0], [1]).get())


def test_what_is_expected_a_moment_later_is_admitted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "_PATIENCE_S", 30.0)  # as long as a busy machine may take
    routes = pair.target.routes(pair.kind)
    pair.source.transport.open(M, routes, TOKEN, is_checked=False)
    answer = pair.send(0, [0, 2], [1, 3])
    time.sleep(0.05)
    pair.target.transport.expect(M, TOKEN, [1])
    time.sleep(0.05)
    pair.target.transport.allow(M, [3])
    assert answer.get() == pair.size(2)


def test_blocks_that_were_not_reserved_are_refused(pair: Pair) -> None:
    pair.begin(range(10))
    pair.send(0, [0], [1]).get()
    pair.target.heard.next()
    assert "not reserved" in str(pair.send(1, [0, 1], [2, 10]).get())
    migration, reason = pair.target.heard.next()
    assert migration == M
    assert "not reserved" in str(reason)
    pair.assert_copied([(0, 1)])


def test_block_ids_of_nonsense_are_refused_and_the_next_migration_works(pair: Pair) -> None:
    pair.begin([1])
    assert "block" in str(pair.send(0, [0], [2**40]).get())
    pair.begin([1], MigrationId("m-2"))
    assert pair.send(0, [0], [1], MigrationId("m-2")).get() == pair.size(1)


@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_another_layout_is_refused_with_words(kind: str, here) -> None:
    pair = Pair(kind, here(layout="8xbfloat16"), here(layout="8xfloat32"))
    pair.begin([1])
    reason = str(pair.send(0, [0], [1]).get())
    assert "8xbfloat16" in reason
    assert "8xfloat32" in reason
    pair.assert_copied([])


def test_another_number_of_ranks_is_refused_with_words(pair: Pair) -> None:
    routes = [*pair.target.routes(pair.kind), Route("x", "127.0.0.1:1", "")]
    pair.source.transport.open(M, routes, TOKEN, is_checked=False)
    assert "ranks" in str(pair.send(0, [0], [1]).get())
    pair.source.transport.close(M)


def test_nobody_there_is_said_by_the_first_send(pair: Pair) -> None:
    routes = [Route("x", "127.0.0.1:1", "") for _ in pair.source.stores]
    pair.source.transport.open(M, routes, TOKEN, is_checked=False)
    assert "cannot be reached" in str(pair.send(0).get())


def test_without_a_way_within_the_host_tcp_is_used(near: Pair) -> None:
    [route] = near.target.transport.routes
    near.target.transport.expect(M, TOKEN, [1])
    there = [Route(route.host_id, route.address, "llx-nobody-listens-here")]
    near.source.transport.open(M, there, TOKEN, is_checked=False)
    assert near.send(0, [0], [1]).get() == BLOCK_BYTES


# ---------------------------------------------------------------------- damage


def test_damaged_blocks_are_found_by_a_checked_migration(near: Pair) -> None:
    near.target.stores[0].flip_at_unpack = True
    near.begin(range(10), is_checked=True)
    assert near.send(0, range(9), range(9)).get() == near.size(9)
    near.target.heard.next()
    assert "differ" in str(near.send(1, [9], [9], state_of=RequestId("r")).get())
    assert "differ" in str(near.target.heard.next()[1])
    assert near.target.stores[0].kept(M) is None


def test_a_store_that_fails_breaks_the_migration_at_both_ends(near: Pair) -> None:
    near.begin(range(NUM_BLOCKS * 2))
    reason = str(near.send(0, [0], [NUM_BLOCKS]).get())  # a block that the store has not
    assert "at the target" in reason
    assert near.target.heard.next() == (M, reason)
    near.begin([1], MigrationId("m-2"))
    reason = str(near.send(0, [NUM_BLOCKS], [1], MigrationId("m-2")).get())
    assert "at the source" in reason
    assert near.target.heard.next()[0] == "m-2"
    near.begin([1], MigrationId("m-3"))
    assert near.send(0, [0], [1], MigrationId("m-3")).get() == BLOCK_BYTES


# ---------------------------------------------------------------------- ends


def test_after_a_fence_nothing_is_written(pair: Pair) -> None:
    pair.begin(range(NUM_BLOCKS))
    assert pair.send(0, [0], [0]).get() == pair.size(1)
    pair.target.heard.next()
    fenced = Answer()
    pair.target.transport.fence(M, fenced)
    fenced.get()
    assert isinstance(pair.send(1, range(1, 40), range(1, 40)).get(), str)
    pair.assert_copied([(0, 0)])
    assert pair.target.heard.events.empty(), "who has fenced it need not be told"
    again = Answer()
    pair.target.transport.fence(MigrationId("never heard of"), again)
    again.get()


@pytest.mark.parametrize("kind", ["tcp", "local", "cuda-ipc"])
def test_a_fence_waits_for_the_chunk_that_is_being_written(kind: str, here, gpus) -> None:
    near = near_pair(kind, here, gpus)
    num_written = 20 if kind == "cuda-ipc" else CHUNK_BLOCKS
    store = near.target.stores[0]
    store.hold.clear()
    near.begin(range(NUM_BLOCKS))
    answer = near.send(0, range(20), range(20))
    assert store.is_inside.wait(SOON_S)
    fences = Answer(), Answer()
    for fence in fences:
        near.target.transport.fence(M, fence)
    time.sleep(0.05)
    assert not any(fence.has_come for fence in fences)
    store.hold.set()
    for fence in fences:
        fence.get()
    near.assert_copied((block, block) for block in range(num_written))
    assert isinstance(answer.get(), str)
    near.assert_copied((block, block) for block in range(num_written))


def test_closing_tells_both_ends_and_interrupts(pair: Pair) -> None:
    pair.begin(range(NUM_BLOCKS))
    assert pair.send(0, [0], [1]).get() == pair.size(1)
    pair.target.heard.next()
    begin = time.monotonic()
    pair.source.transport.close(M)
    migration, reason = pair.target.heard.next()
    assert migration == M
    assert isinstance(reason, str)
    assert time.monotonic() - begin < SOON_S
    assert isinstance(pair.send(1, [0], [1]).get(), str)
    pair.source.transport.close(M)


def test_closing_answers_what_is_under_way(near: Pair) -> None:
    near.target.stores[0].hold.clear()
    near.begin(range(NUM_BLOCKS))
    answers = [near.send(stage, range(20), range(20)) for stage in range(3)]
    assert near.target.stores[0].is_inside.wait(SOON_S)
    near.source.transport.close(M)
    assert all(isinstance(answer.get(SOON_S), str) for answer in answers)
    near.target.stores[0].hold.set()


@pytest.mark.parametrize("kind", ["tcp", "local"])
@pytest.mark.parametrize("is_busy", [False, True])
def test_the_death_of_a_target_is_noticed(kind: str, is_busy: bool, here, elsewhere) -> None:
    target = elsewhere(1)
    pair = Pair(kind, here(), target)
    pair.begin(range(NUM_BLOCKS))
    pair.send(0, [0], [0]).get()
    answers = [pair.send(s, range(64), range(64)) for s in range(1, 200 if is_busy else 1)]
    target.processes[0].kill()
    begin = time.monotonic()
    assert "target" in str(pair.send(200, [1], [1]).get())
    assert time.monotonic() - begin < SOON_S
    for answer in answers:
        answer.get()
    while isinstance(target.heard.next()[1], int):
        pass  # what arrived before
    wait_until(lambda: target.heard.events.empty())
    fenced = Answer()
    target.transport.fence(M, fenced)
    fenced.get()


@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_the_death_of_a_source_is_noticed(kind: str, here, elsewhere) -> None:
    source = elsewhere(1)
    pair = Pair(kind, source, here())
    pair.begin(range(NUM_BLOCKS))
    pair.send(0, [0], [0]).get()
    pair.target.heard.next()
    store = pair.target.stores[0]
    store.is_inside.clear()
    store.hold.clear()
    answers = [pair.send(stage, range(64), range(64)) for stage in range(1, 200)]
    assert store.is_inside.wait(SOON_S)
    source.processes[0].kill()
    store.hold.set()
    begin = time.monotonic()
    while isinstance(pair.target.heard.next()[1], int):
        pass
    assert time.monotonic() - begin < SOON_S
    assert "gone" in str(answers[-1].get(SOON_S))


def test_one_dead_rank_of_two_breaks_the_whole(elsewhere) -> None:
    pair = Pair("ranks", elsewhere(2), elsewhere(2))
    pair.begin(range(NUM_BLOCKS))
    pair.send(0, [0], [0]).get()
    assert pair.target.heard.next() == (M, 0)
    pair.target.processes[1].kill()
    assert isinstance(pair.target.heard.next()[1], str)
    assert isinstance(pair.send(1, [1], [1]).get(), str)
    fenced = Answer()
    pair.target.transport.fence(M, fenced)
    fenced.get()
    assert pair.target.heard.events.empty(), "a whole stage of half the ranks, or broken twice"
