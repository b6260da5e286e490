"""Requests that leave one engine model and arrive in another: blocks, queues, tokens, news."""

from dataclasses import dataclass, field

import pytest

from llx.core.engine_model import EngineModel, Step
from llx.core.engine_state import EngineRequest
from llx.core.migration import Cut, Progress, Reservation
from llx.core.model import MigrationId, Nanos, RequestId
from tests.core.test_engine_model import make_engine, make_request, names

pytestmark = pytest.mark.core

A, B = RequestId("a"), RequestId("b")
M, N = MigrationId("m"), MigrationId("n")


@dataclass
class News:
    """What an engine has told."""

    lost: list[tuple[str, str]] = field(default_factory=list)
    cuts: list[Cut | None] = field(default_factory=list)


def watch(engine: EngineModel) -> News:
    news = News()
    engine.moves.watch(lambda request, why: news.lost.append((request, why)))
    return news


def step(engine: EngineModel) -> Step:
    """One step, from plan to tokens."""
    planned = engine.schedule(Nanos(0))
    assert planned is not None
    engine.complete(planned)
    engine.moves.tell()
    return planned


def cut(engine: EngineModel, request: RequestId) -> Cut:
    told: list[Cut | None] = []
    engine.moves.begin(request)
    engine.moves.cut(request, told.append)
    assert told == []  # never from within the call
    assert engine.moves.tell()
    assert told[0] is not None
    return told[0]


def reserve(engine: EngineModel, request: EngineRequest, num_tokens: int) -> Reservation:
    reservation = engine.moves.reserve(M, request, num_tokens)
    assert isinstance(reservation, Reservation)
    return reservation


# ---------------------------------------------------------------- leaving


def test_progress_tells_what_is_settled() -> None:
    engine = make_engine(budget=6)
    engine.add(make_request("a", prompt=9))
    assert engine.moves.progress(A) is None
    assert engine.moves.begin(A) == Progress(9, 9, 0, (), is_waiting=True)
    assert engine.moves.begin(A) == "it is leaving already"
    assert engine.moves.begin(B) == "it is not here"
    step(engine)
    assert engine.moves.progress(A) == Progress(9, 9, 6, (0, 1))
    planned = engine.schedule(Nanos(0))
    assert planned is not None
    assert engine.moves.progress(A) == Progress(9, 9, 6, (0, 1, 2))  # the step has not settled
    engine.complete(planned)
    assert engine.moves.progress(A) == Progress(10, 9, 9, (0, 1, 2))
    engine.moves.unwatch(A)
    assert engine.moves.progress(A) is None


def test_a_cut_leaves_the_batch_with_its_blocks_and_resumes_as_it_was() -> None:
    engine = make_engine()
    engine.add(make_request("a", prompt=5, max_tokens=9))
    engine.add(make_request("b", prompt=5, max_tokens=9))
    step(engine)
    left = cut(engine, A)

    assert left == Cut((7,), 5, (0, 1))
    assert engine.block_table(A) == (0, 1)
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.used) == (2, 0, 4)
    assert engine.requests()[0].state == "leaving"
    assert names(step(engine)) == ["b"]

    assert engine.moves.resume(A)
    assert [each.state for each in engine.requests()] == ["running", "running"]
    assert sorted(names(step(engine))) == ["a", "b"]


def test_a_cut_in_an_open_step_waits_for_its_token() -> None:
    engine, cuts = make_engine(), []
    engine.add(make_request("a", prompt=4, max_tokens=9))
    engine.moves.begin(A)
    planned = engine.schedule(Nanos(0))
    assert planned is not None
    engine.moves.cut(A, cuts.append)
    assert not engine.moves.tell()
    assert not engine.moves.is_cut(A)

    assert [output.token for output in engine.complete(planned)] == [7]
    assert cuts == []
    assert engine.moves.tell()
    assert cuts == [Cut((7,), 4, (0,))]
    assert engine.schedule(Nanos(0)) is None  # nothing but what was cut


def test_a_cut_beside_an_open_step_takes_effect_at_once() -> None:
    engine, cuts = make_engine(budget=4), []
    for name in "ab":
        engine.add(make_request(name, prompt=4))
    planned = engine.schedule(Nanos(0))
    assert planned is not None
    assert names(planned) == ["a"]
    engine.moves.begin(B)
    engine.moves.cut(B, cuts.append)
    assert engine.moves.tell()
    assert cuts == [Cut((), 0, ())]


@pytest.mark.parametrize("how", ["resume", "release", "abort", "finish"])
def test_a_cut_that_is_still_draining_can_be_overtaken(how: str) -> None:
    engine, news = make_engine(), News()
    engine.moves.watch(lambda request, why: news.lost.append((request, why)))
    engine.add(make_request("a", prompt=4, max_tokens=1 if how == "finish" else 9))
    engine.moves.begin(A)
    planned = engine.schedule(Nanos(0))
    assert planned is not None
    engine.moves.cut(A, news.cuts.append)
    match how:
        case "resume":
            assert engine.moves.resume(A)
        case "release":
            assert engine.moves.release(A)
        case "abort":
            engine.abort(A)
    outputs = engine.complete(planned)
    engine.moves.tell()
    expected = {
        "resume": ([], [], 1, 1),
        "release": ([], [], 0, 0),
        "abort": ([None], [(A, "aborted")], 0, 0),
        "finish": ([None], [(A, "finished")], 1, 0),
    }
    assert (news.cuts, news.lost, len(outputs), engine.num_requests) == expected[how]


def test_a_waiting_request_leaves_without_kv_and_comes_back_to_the_queue() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(make_request("a", max_tokens=2))
    engine.add(make_request("b", max_tokens=2))
    step(engine)
    assert cut(engine, B) == Cut((), 0, ())
    assert engine.moves.progress(B) == Progress(5, 5, 0, (), is_waiting=True)
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.waiting_tokens) == (2, 0, 0)

    engine.moves.resume(B)
    assert engine.load().num_waiting == 1
    assert engine.requests()[1].state == "waiting"
    step(engine)
    assert names(step(engine)) == ["b"]


def test_the_place_of_a_cut_request_is_kept_for_it() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(make_request("a", max_tokens=9))
    engine.add(make_request("b"))
    step(engine)
    cut(engine, A)
    assert engine.schedule(Nanos(0)) is None
    engine.moves.release(A)
    assert names(step(engine)) == ["b"]


def test_the_end_of_a_watched_request_is_told_once() -> None:
    engine = make_engine()
    news = watch(engine)
    for name in ("a", "b", "c", "d"):
        engine.add(make_request(name, max_tokens=1 if name == "a" else 9))
        if name != "d":
            engine.moves.begin(RequestId(name))
    step(engine)
    assert news.lost == [("a", "finished")]
    engine.abort(B)
    engine.abort(RequestId("d"))
    engine.moves.tell()
    assert news.lost == [("a", "finished"), ("b", "aborted")]
    engine.moves.cut(RequestId("c"), news.cuts.append)
    engine.moves.tell()
    engine.moves.release(RequestId("c"))
    assert not engine.moves.tell()
    assert engine.load().free == 16
    assert not engine.moves.resume(B)
    assert not engine.moves.release(B)


def test_a_preempted_request_is_lost_to_its_move_but_not_to_the_engine() -> None:
    engine = make_engine(num_blocks=4)
    news = watch(engine)
    engine.add(make_request("a", prompt=8, max_tokens=6, priority=9))
    engine.add(make_request("b", prompt=8, max_tokens=6, priority=0))
    step(engine)
    engine.moves.begin(A)
    step(engine)
    assert news.lost == [("a", "preempted")]
    assert engine.moves.progress(A) is None
    engine.moves.cut(A, news.cuts.append)
    engine.moves.tell()
    assert news.cuts == [None]
    assert engine.moves.begin(A) == Progress(9, 8, 0, (), is_waiting=True)


# ---------------------------------------------------------------- arriving


def test_a_reservation_takes_blocks_and_is_in_no_queue() -> None:
    engine = make_engine()
    request = make_request("a")
    assert reserve(engine, request, 9) == Reservation(9, (0, 1, 2), 0)
    assert engine.moves.extend(M, 4) == Reservation(9, (0, 1, 2), 0)
    assert engine.moves.extend(M, 13) == Reservation(13, (0, 1, 2, 3), 0)
    load = engine.load()
    assert (load.used, load.num_running, load.num_waiting) == (4, 0, 0)
    assert engine.schedule(Nanos(0)) is None

    assert engine.moves.reserve(M, request, 1) == "it is reserved for already"
    assert "another migration" in str(engine.moves.reserve(N, request, 1))
    engine.moves.abandon(M)
    engine.moves.abandon(M)
    assert engine.load().free == 16
    assert engine.moves.extend(M, 1) == "nothing is reserved for it"
    engine.add(request)
    assert engine.moves.reserve(M, request, 1) == "still held here"


def test_a_reservation_leaves_running_requests_what_they_need_next() -> None:
    engine = make_engine(num_blocks=10, budget=4)
    engine.add(make_request("a", prompt=9, max_tokens=9))  # one block of three, one to come
    step(engine)
    request = make_request("b", prompt=30)
    assert engine.moves.reserve(M, request, 28) == "no room: 7 blocks wanted, 6 to spare"
    reserve(engine, request, 20)
    assert engine.moves.extend(M, 28) == "no room: 2 blocks wanted, 1 to spare"
    assert isinstance(engine.moves.extend(M, 24), Reservation)
    assert "more than 40" in str(engine.moves.extend(M, 41))
    for _ in range(3):
        step(engine)
    assert len(engine.block_table(A)) == 3


def test_what_arrives_with_its_kv_goes_on_ahead_of_the_waiting() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(make_request("first", max_tokens=2))
    step(engine)
    engine.add(make_request("urgent", priority=-5))
    reserve(engine, make_request("a", prompt=5, max_tokens=9, arrival=9), 8)
    assert engine.moves.commit(M, [7, 7], 6) == ""
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.waiting_tokens) == (1, 2, 5 + 1)
    assert load.waiting_demand == 2
    assert engine.requests()[-1].state == "waiting"
    step(engine)  # no place in the batch: it waits, with its blocks
    assert len(engine.block_table(A)) == 2

    planned = step(engine)
    assert planned.admitted == ("a",)
    assert [(c.start, c.end, c.is_decode) for c in planned.chunks] == [(6, 7, True)]


def test_what_arrives_without_kv_is_plainly_waiting() -> None:
    engine = make_engine()
    reserve(engine, make_request("a"), 8)
    assert engine.moves.commit(M, [7], 0) == ""
    assert engine.block_table(A) == ()
    assert (engine.load().free, engine.load().num_waiting) == (16, 1)
    assert [(c.start, c.end) for c in step(engine).chunks] == [(0, 6)]

    reserve(engine, make_request("b"), 0)
    assert engine.moves.commit(M, [], 0) == ""


@pytest.mark.parametrize(
    ("outputs", "num_computed", "why"),
    [
        ([7, 7, 7], 7, "at its end"),
        ([7], 6, "KV of 6 tokens, of 5 at most"),
        ([7, 7], -1, "KV of -1 tokens"),
        ([7, 7], 5, "KV of 5 tokens, of 4 at most"),
    ],
)
def test_a_commit_of_what_cannot_be_is_refused_and_frees(
    outputs: list[int], num_computed: int, why: str
) -> None:
    engine = make_engine()
    request = make_request("a", prompt=5, max_tokens=3)
    reserve(engine, request, 4 if len(outputs) == 2 else 8)
    assert why in engine.moves.commit(M, outputs, num_computed)
    assert engine.load().free == 16
    assert engine.moves.commit(M, [], 1) == "nothing is reserved for it"


def test_a_commit_of_an_id_that_was_added_meanwhile_is_refused() -> None:
    engine = make_engine()
    reserve(engine, make_request("a"), 8)
    engine.add(make_request("a"))
    assert engine.moves.commit(M, [7], 5) == "still held here"
    assert engine.load().free == 16


def test_what_has_arrived_can_leave_again_before_it_ran() -> None:
    engine = make_engine()
    reserve(engine, make_request("a", max_tokens=9), 8)
    engine.moves.commit(M, [7, 8], 6)
    assert cut(engine, A) == Cut((7, 8), 6, (0, 1))
    assert engine.schedule(Nanos(0)) is None
    engine.moves.resume(A)
    assert step(engine).admitted == ("a",)


# ---------------------------------------------------------------- short of blocks


def test_blocks_that_are_reserved_stop_an_engine_but_do_not_break_it() -> None:
    engine = make_engine(num_blocks=4)
    engine.add(make_request("a", prompt=8, max_tokens=6))
    step(engine)
    reserve(engine, make_request("b"), 4)
    for _ in range(4):
        step(engine)
    assert engine.schedule(Nanos(0)) is None  # a had to preempt itself, and finds no room
    assert engine.load().num_preempted == 1
    engine.moves.abandon(M)
    assert step(engine).admitted == ("a",)


def test_arrived_requests_that_block_each_other_give_way_by_urgency() -> None:
    engine = make_engine(num_blocks=4)
    for migration, name, arrival in ((N, "b", 2), (M, "a", 1)):
        request = make_request(name, prompt=7, max_tokens=5, arrival=arrival)
        assert isinstance(engine.moves.reserve(migration, request, 8), Reservation)
    for migration in (N, M):
        assert engine.moves.commit(migration, [7, 7], 8) == ""
    planned = step(engine)
    assert (planned.admitted, planned.preempted) == (("a",), ("b",))


@pytest.mark.parametrize(
    ("priority", "preempted", "runs"), [(1, ("b",), ["a"]), (-1, ("a",), ["b"])]
)
def test_the_least_urgent_loses_its_blocks_be_it_running_or_only_just_arrived(
    priority: int, preempted: tuple[str, ...], runs: list[str]
) -> None:
    engine = make_engine(num_blocks=4, max_num_seqs=1)
    engine.add(make_request("a", prompt=8, max_tokens=6))
    step(engine)
    reserve(engine, make_request("b", prompt=3, max_tokens=9, priority=priority), 4)
    assert engine.moves.commit(M, [7], 3) == ""
    planned = [step(engine) for _ in range(5)]
    assert [each.preempted for each in planned[:4]] == [()] * 4
    assert planned[4].preempted == preempted
    assert names(planned[4]) == runs
