"""Which medium is taken and why; what pairs of GPUs must survive. On GPUs that are not there."""

import re
import threading
import time
from functools import partial

import pytest

from llx.agent.transport import joining
from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.pairs import Pairs
from llx.agent.transport.rank import RankAgent
from llx.core.model import MigrationId, RequestId
from llx.ports import Copied
from llx.specs import MigrationSpec
from tests.contract.kv_gpus import FakeDevice, Gpus
from tests.contract.kv_pair import SOON_S, M, Pair, near_pair
from tests.contract.kv_rig import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    NUM_BLOCKS,
    Answer,
    BytesStore,
    Heard,
    count_fds,
    end_here,
    wait_until,
)

pytestmark = [pytest.mark.contract]

R = RequestId("r")


def spec(transport: str = "auto", **options) -> MigrationSpec:
    chunk_bytes = CHUNK_BLOCKS * BLOCK_BYTES
    return MigrationSpec(chunk_bytes=chunk_bytes, checksum=True, transport=transport, **options)


def copied(pair: Pair, migration: MigrationId = M) -> Copied | str:
    """What one migration of one block is answered with; it is finished if it got there."""
    pair.begin([1], migration)
    answer = pair.send(0, [2], [1], migration)
    result = answer.get()
    if answer.copied is not None:
        assert pair.target.stores[0].of(1) == pair.source.stores[0].of(2)
        pair.target.transport.finish(migration)
    pair.source.transport.close(migration)
    return answer.copied or str(result)


def snapshot(pair: Pair) -> bytes:
    return bytes(pair.target.stores[0].data)


def numbered(count: int) -> list[MigrationId]:
    return [MigrationId(f"n-{number}") for number in range(count)]


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("kind", "medium", "why"),
    [
        ("tcp", "tcp", "cuda-ipc: no GPU; nccl: no GPU; shm: not within one host"),
        ("local", "shm", "cuda-ipc: no GPU; nccl: no GPU"),
        ("nccl", "nccl", "cuda-ipc: not within one host"),
        ("cuda-ipc", "cuda-ipc", ""),
    ],
)
def test_the_best_is_taken_and_what_is_better_explained(kind, medium, why, here, gpus) -> None:
    pair = near_pair(kind, here, gpus)
    assert copied(pair) == Copied(BLOCK_BYTES, medium, why)


@pytest.mark.parametrize("is_source", [True, False])
def test_a_gpu_at_one_end_alone_is_told(is_source: bool, here, gpus) -> None:
    one, other = here(device_of=partial(FakeDevice, gpus)), here()
    pair = Pair("local", one, other) if is_source else Pair("local", other, one)
    where = "target" if is_source else "source"
    why = f"cuda-ipc: no GPU at the {where}; nccl: no GPU at the {where}"
    assert copied(pair) == Copied(BLOCK_BYTES, "shm", why)


@pytest.mark.parametrize("source", ["", "2.28.9", "2.29.7"])
@pytest.mark.parametrize("target", ["", "2.28.9"])
def test_versions_of_nccl_must_be_equal(source: str, target: str, here, gpus) -> None:
    pair = Pair(
        "nccl",
        here(device_of=partial(FakeDevice, gpus, nccl=source)),
        here(device_of=partial(FakeDevice, gpus, nccl=target)),
    )
    found = copied(pair)
    assert isinstance(found, Copied)
    match source, target:
        case "", "":
            assert "nccl: no NCCL;" in found.why
        case ("", _) | (_, ""):
            assert f"nccl: no NCCL at the {'target' if source else 'source'};" in found.why
        case "2.29.7", _:
            assert "nccl: NCCL 2.29.7 at the source, 2.28.9 at the target" in found.why
        case _:
            assert found.medium == "nccl"


def test_what_cuda_ipc_fails_of_is_told_and_the_next_best_taken(here, gpus) -> None:
    pair = near_pair("cuda-ipc", here, gpus)
    pair.target.stores[0].device.refuses_open = "another\nnamespace"
    assert copied(pair) == Copied(BLOCK_BYTES, "nccl", "cuda-ipc: another namespace")
    pair.source.stores[0].device.refuses_share = "expandable segments"
    found = copied(pair, MigrationId("m-2"))
    assert found == Copied(BLOCK_BYTES, "nccl", "cuda-ipc: expandable segments")


@pytest.mark.parametrize("medium", ["cuda-ipc", "nccl", "shm", "tcp"])
def test_the_one_that_is_asked_for_is_taken(medium: str, here, gpus) -> None:
    pair = near_pair("cuda-ipc", here, gpus, spec=spec(medium))
    assert copied(pair) == Copied(BLOCK_BYTES, medium, "")


@pytest.mark.parametrize(
    ("medium", "kind", "why"),
    [
        ("cuda-ipc", "tcp", "no GPU"),
        ("cuda-ipc", "nccl", "not within one host"),
        ("nccl", "local", "no GPU"),
        ("shm", "tcp", "not within one host"),
    ],
)
def test_the_one_that_is_asked_for_or_none(medium, kind, why, here, gpus) -> None:
    pair = near_pair(kind, here, gpus, spec=spec(medium))
    before = snapshot(pair)
    assert copied(pair) == f"{medium} is asked for, but {why}"
    assert pair.target.heard.next() == (M, f"{medium} is asked for, but {why}")
    assert snapshot(pair) == before


def test_ranks_that_go_by_several_media_say_each(here, gpus) -> None:
    ends = []
    for _ in range(2):
        stores = [BytesStore(NUM_BLOCKS, BLOCK_BYTES) for _ in range(2)]
        stores[0].device = FakeDevice(gpus, stores[0])
        end = here()
        end.transport.stop()
        end.stores = stores
        agents = [RankAgent(store, spec(), "127.0.0.1") for store in stores]
        end.transport = InstanceTransport(agents, end.heard)
        ends.append(end)
    found = copied(Pair("nccl", *ends))
    assert isinstance(found, Copied)
    assert (found.size_bytes, found.medium) == (2 * BLOCK_BYTES, "nccl, tcp")
    assert found.why.startswith("cuda-ipc: not within one host | cuda-ipc: no GPU;")


# ---------------------------------------------------------------------- joining


@pytest.mark.parametrize("kind", ["nccl", "near"])
@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_pair_that_cannot_be_joined_falls_back_and_is_left_alone(
    kind: str, how: str, here, gpus: Gpus
) -> None:
    options = {"device_of": partial(FakeDevice, gpus)}
    source, target = here(**options), here(pairs=Pairs(shun_s=0.4), **options)
    pair = Pair(kind, source, target)
    if kind == "near":
        target.stores[0].device.refuses_open = "no"
    if how == "refuses":
        gpus.refuses_join = "no route"
    else:
        gpus.hangs_join, gpus.join_s = True, 0.3
    found = copied(pair)
    assert isinstance(found, Copied)
    assert found.medium == ("tcp" if kind == "nccl" else "shm")
    why = "nccl: no route" if how == "refuses" else "nccl: the other end did not join in time"
    assert why in found.why
    gpus.refuses_join, gpus.hangs_join = "", False
    found = copied(pair, MigrationId("m-2"))
    assert isinstance(found, Copied)
    assert re.search(r"nccl: could not be joined \d+ s ago: ", found.why)
    assert gpus.num_joined == 0


def test_after_a_while_a_pair_is_tried_again(here, gpus: Gpus) -> None:
    options = {"device_of": partial(FakeDevice, gpus)}
    pairs = Pairs(shun_s=0.2), Pairs(shun_s=0.2)
    pair = Pair("nccl", *(here(pairs=each, **options) for each in pairs))
    gpus.refuses_join = "no route"
    found = copied(pair)
    assert isinstance(found, Copied)
    assert found.medium == "tcp"
    gpus.refuses_join = ""
    time.sleep(0.25)
    found = copied(pair, MigrationId("m-2"))
    assert isinstance(found, Copied)
    assert found.medium == "nccl"


def test_no_fallback_from_a_pair_that_was_asked_for(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus, spec=spec("nccl"))
    gpus.refuses_join = "no route"
    assert copied(pair) == "nccl is asked for, but no route"
    assert pair.target.heard.next() == (M, "nccl is asked for, but no route")


def test_a_request_that_stands_still_waits_a_moment_for_a_pair(
    here, gpus: Gpus, monkeypatch
) -> None:
    monkeypatch.setattr(joining, "_STANDING_S", 0.1)
    pair = near_pair("nccl", here, gpus)
    gpus.hangs_join = True
    pair.begin([1])
    answer = pair.send(0, [2], [1], state_of=RequestId("r"))
    assert answer.get(SOON_S) == pair.size(1), "it takes less than joining may"
    assert answer.copied is not None
    assert answer.copied.medium == "tcp"


def test_who_was_joined_in_vain_for_long_is_left_alone_however_that_ended(
    here, gpus: Gpus, monkeypatch
) -> None:
    monkeypatch.setattr(joining, "_LONG_S", 0.05)
    pair = near_pair("nccl", here, gpus)
    gpus.hangs_join = True
    pair.begin([1])
    answer = pair.send(0, [2], [1])
    assert gpus.is_hanging.wait(SOON_S)
    time.sleep(0.2)
    pair.source.transport.close(M)
    assert isinstance(answer.get(SOON_S), str)
    gpus.hangs_join = False
    found = copied(pair, MigrationId("m-2"))
    assert isinstance(found, Copied)
    assert found.medium == "tcp"
    assert "could not be joined" in found.why


def test_closing_ends_a_join(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    gpus.hangs_join = True
    pair.begin([1])
    answer = pair.send(0, [2], [1])
    assert gpus.is_hanging.wait(SOON_S)
    pair.source.transport.close(M)
    assert "closed" in str(answer.get(SOON_S))
    assert pair.target.heard.next(SOON_S)[0] == M
    gpus.hangs_join = False
    found = copied(pair, MigrationId("m-2"))
    assert isinstance(found, Copied)
    assert found.medium == "nccl", "who was cut off is not shunned"


def test_a_fence_ends_a_join(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    gpus.hangs_join = True
    pair.begin([1])
    answer, fenced = pair.send(0, [2], [1]), Answer()
    assert gpus.is_hanging.wait(SOON_S)
    pair.target.transport.fence(M, fenced)
    fenced.get(SOON_S)
    assert isinstance(answer.get(SOON_S), str)


# ---------------------------------------------------------------------- sharing


def test_a_pair_is_joined_once_and_used_again(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    back = Pair("nccl", pair.target, pair.source)
    for migration in numbered(10):
        for one in (pair, back):
            found = copied(one, MigrationId(f"{migration}-{one is back}"))
            assert isinstance(found, Copied)
            assert found.medium == "nccl"
    assert gpus.num_joined == 2, "one for each direction"


def test_many_migrations_of_both_directions_share_pairs(
    here, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight each way, three stages, all at once; every block where it belongs."""
    monkeypatch.setattr(joining, "_STANDING_S", SOON_S)
    there = near_pair("nccl", here, gpus)
    back = Pair("nccl", there.target, there.source)
    before = bytes(there.source.stores[0].data), snapshot(there)
    plans = []
    for number, migration in enumerate(numbered(16)):
        one = back if number % 2 else there
        first = 4 * (number // 2)
        read, written = range(first, first + 4), range(32 + first, 32 + first + 4)
        one.begin(written, migration, is_checked=number % 3 == 0)
        plans.append((one, migration, read, written))
    answers = [
        one.send(stage, read[stage::2], written[stage::2], migration, state_of)
        for stage, state_of in ((0, None), (1, R))
        for one, migration, read, written in plans
    ]
    assert [answer.get() for answer in answers] == [2 * BLOCK_BYTES] * 32
    half = NUM_BLOCKS // 2 * BLOCK_BYTES
    assert bytes(back.target.stores[0].data) == before[0][:half] + before[1][:half]
    assert snapshot(there) == before[1][:half] + before[0][:half]
    assert gpus.num_joined == 2


def test_a_stage_goes_in_rounds_and_under_a_limit_chunk_by_chunk(here, gpus: Gpus) -> None:
    size = NUM_BLOCKS * BLOCK_BYTES
    pair = near_pair("nccl", here, gpus, spec=spec(bandwidth_bytes_s=4 * size))
    pair.begin(range(NUM_BLOCKS))
    begin = time.monotonic()
    assert pair.send(0, range(NUM_BLOCKS), range(NUM_BLOCKS)).get() == size
    assert time.monotonic() - begin > 0.15
    assert pair.source.stores[0].data == pair.target.stores[0].data


# ---------------------------------------------------------------------- failures


def stalled(pair: Pair, gpus: Gpus) -> Answer:
    """A migration that stalls with half of its first chunk written."""
    gpus.flows.clear()
    pair.begin(range(NUM_BLOCKS))
    answer = pair.send(0, range(20), range(20))
    assert gpus.is_stalled.wait(SOON_S)
    return answer


def recovers(pair: Pair, gpus: Gpus, num_joined: int = 2) -> None:
    gpus.flows.set()
    gpus.is_stalled.clear()
    found = copied(pair, MigrationId("m-after"))
    assert isinstance(found, Copied)
    assert found.medium == "nccl"
    assert gpus.num_joined == num_joined


def test_a_fence_cuts_a_chunk_and_nothing_is_written_afterwards(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    answer, fenced = stalled(pair, gpus), Answer()
    pair.target.transport.fence(M, fenced)
    fenced.get(SOON_S)
    after = snapshot(pair)
    gpus.flows.set()
    assert isinstance(answer.get(SOON_S), str)
    time.sleep(0.05)
    assert snapshot(pair) == after
    assert pair.target.heard.events.empty()
    wait_until(lambda: gpus.open_ends == 0)
    recovers(pair, gpus)


@pytest.mark.parametrize("kind", ["cuda-ipc", "nccl"])
def test_what_may_still_write_is_never_fenced(kind: str, here, gpus: Gpus) -> None:
    """Its blocks are lost, which is better than another request's KV in them."""
    pair = near_pair(kind, here, gpus)
    gpus.never_ends = True
    gpus.breaks = "the GPU is stuck" if kind == "nccl" else ""
    pair.begin([1])
    answer = pair.send(0, [2], [1])
    assert isinstance(answer.get(), str)
    assert pair.target.heard.next(SOON_S)[0] == M
    fenced = Answer()
    pair.target.transport.fence(M, fenced)
    time.sleep(0.2)
    assert not fenced.has_come
    gpus.never_ends, gpus.breaks = False, ""


def test_closing_cuts_a_chunk(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    answer = stalled(pair, gpus)
    pair.source.transport.close(M)
    assert "closed" in str(answer.get(SOON_S))
    migration, reason = pair.target.heard.next(SOON_S)
    assert migration == M
    assert "connection" in str(reason)
    wait_until(lambda: gpus.open_ends == 0)
    recovers(pair, gpus)


@pytest.mark.parametrize("who", ["source", "target"])
def test_the_end_of_a_peer_in_a_chunk_is_noticed(who: str, here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    answer = stalled(pair, gpus)
    getattr(pair, who).transport.stop()
    assert isinstance(answer.get(SOON_S), str)
    if who == "source":
        assert pair.target.heard.next(SOON_S)[0] == M
    wait_until(lambda: gpus.open_ends == 0)
    again = here(device_of=partial(FakeDevice, gpus))
    recovers(
        Pair("nccl", again, pair.target) if who == "source" else Pair("nccl", pair.source, again),
        gpus,
    )


def test_what_breaks_in_a_pair_is_told_at_both_ends_and_a_new_one_joined(here, gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    pair.begin(range(NUM_BLOCKS))
    pair.send(0, [0], [0]).get()
    pair.target.heard.next()
    gpus.breaks = "remote error of the network"
    assert "remote error of the network" in str(pair.send(1, range(20), range(20)).get())
    migration, reason = pair.target.heard.next()
    assert migration == M
    assert "remote error of the network" in str(reason)
    wait_until(lambda: gpus.open_ends == 0)
    gpus.breaks = ""
    recovers(pair, gpus)


def test_a_broken_pair_breaks_one_migration_and_the_others_join_anew(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    beside, hurried = MigrationId("beside"), MigrationId("hurried")
    for migration, blocks in ((beside, range(40, 45)), (hurried, range(50, 55))):
        pair.begin(blocks, migration)
        assert pair.send(0, [1], blocks[:1], migration).get() == BLOCK_BYTES
        pair.target.heard.next()
    answer, fenced = stalled(pair, gpus), Answer()
    waiting = pair.send(1, range(2, 6), range(41, 45), beside)
    pair.target.transport.fence(M, fenced)
    fenced.get(SOON_S)
    assert isinstance(answer.get(SOON_S), str)
    gpus.flows.set()
    assert waiting.get() == 4 * BLOCK_BYTES
    assert pair.target.stores[0].of(44) == pair.source.stores[0].of(5)
    assert gpus.num_joined == 2
    # Its pair is gone as well, and a request stands still: it does not wait for a new one.
    assert "broke in another" in str(pair.send(1, [1], [51], hurried, R).get())


def test_a_new_process_of_a_target_gets_a_pair_of_its_own(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    copied(pair)
    again = here(device_of=partial(FakeDevice, gpus))
    recovers(Pair("nccl", pair.source, again), gpus)


def test_a_target_that_has_lost_its_pair_gets_another(here, gpus: Gpus) -> None:
    pairs = Pairs(idle_s=0.2)
    options = {"device_of": partial(FakeDevice, gpus)}
    pair = Pair("nccl", here(**options), here(pairs=pairs, **options))
    copied(pair)
    wait_until(lambda: gpus.open_ends == 1)  # the target's is closed, as unused
    recovers(pair, gpus)


# ---------------------------------------------------------------------- bounds


def test_unused_pairs_are_closed_and_their_number_is_bounded(here, gpus: Gpus) -> None:
    pairs = Pairs(most=1)
    options = {"device_of": partial(FakeDevice, gpus)}
    source = here(pairs=pairs, **options)
    first, second = (Pair("nccl", source, here(**options)) for _ in range(2))
    first.begin([1])
    first.send(0, [2], [1]).get()
    found = copied(second, MigrationId("m-2"))
    assert isinstance(found, Copied)
    assert "nccl: 1 pairs of GPUs are in use" in found.why
    first.source.transport.close(M)
    third = Pair("nccl", source, here(**options))
    wait_until(lambda: not any("kv-source" in each.name for each in threading.enumerate()))
    found = copied(third, MigrationId("m-3"))
    assert isinstance(found, Copied)
    assert found.medium == "nccl", "an unused one makes room"
    assert len(pairs) == 1


@pytest.mark.parametrize("kind", ["nccl", "cuda-ipc"])
@pytest.mark.slow
def test_many_migrations_leave_nothing(kind: str, gpus: Gpus) -> None:
    def run(number_of_migrations: int) -> None:
        device_of = partial(FakeDevice, gpus)
        pair = Pair(kind, end_here(device_of=device_of), end_here(device_of=device_of))
        for number, migration in enumerate(numbered(number_of_migrations)):
            pair.begin(range(20), migration, is_checked=number % 2 == 0)
            answer = pair.send(0, range(20), range(20), migration)
            if number % 5 != 4:
                answer.get()
            match number % 5:
                case 0 | 4:
                    pair.source.transport.close(migration)
                    pair.target.transport.fence(migration, Answer())
                case 1:
                    pair.target.transport.fence(migration, Answer())
                case 2:
                    pair.send(1, [1], [25], migration).get()  # not reserved
                case _:
                    pair.target.transport.finish(migration)
            pair.source.transport.close(migration)
        wait_until(lambda: sum("kv-" in each.name for each in threading.enumerate()) <= 2)
        assert gpus.open_peers == 0
        assert gpus.open_ends <= 2
        pair.source.transport.stop()
        pair.target.transport.stop()
        wait_until(lambda: gpus.open_ends == 0)

    run(5)
    wait_until(lambda: not any("kv-" in each.name for each in threading.enumerate()))
    num_fds, num_threads = count_fds(), threading.active_count()
    run(20)
    wait_until(lambda: threading.active_count() <= num_threads)
    assert count_fds() <= num_fds
    assert gpus.violations == []


def test_a_listener_hears_each_stage_once(here, gpus: Gpus) -> None:
    pair = near_pair("nccl", here, gpus)
    heard: Heard = pair.target.heard
    pair.begin(range(NUM_BLOCKS))
    for stage in range(3):
        pair.send(stage, range(7), range(7), state_of=R if stage == 2 else None).get()
    assert [heard.next() for _ in range(3)] == [(M, 0), (M, 1), (M, 2)]
    assert heard.events.empty()
    assert pair.target.stores[0].kept(M) == b"state of r"
