"""Requests that move between two simulated engines of one process, by their ports alone."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import pytest

from llx.agent.engine_codec import (
    EngineCoreRequest,
    EventType,
    FinishReason,
    PrefillStats,
    SamplingParams,
    encode,
)
from llx.agent.sim_core import REQUESTS
from llx.agent.sim_kv import SimKv, sim_compatibility
from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, MigrationId, RequestId
from llx.core.token_model import HashedTokens, Vocabulary
from llx.wire import Add, Call, Outputs, Reply, RequestView, Reserve
from tests.agent.test_sim_engine import FACTS, FAST, WAIT_S, Rig, is_idle, start

T = TypeVar("T")

A, M = RequestId("a"), MigrationId("m")
LONG = SamplingParams(max_tokens=60, temperature=0.0)
SLOW = {"step_base_ms": 30.0}
"""So that nothing ends while a test that has been kept waiting for its turn gets on with it."""
GATEWAY = 4
"""The gateway's session at the target."""


@dataclass
class End:
    """An engine, with what its port has told."""

    rig: Rig
    lost: "queue.SimpleQueue[tuple[str, str]]" = field(default_factory=queue.SimpleQueue)

    @property
    def moves(self):
        return self.rig.engine.moves

    @property
    def kv(self):
        return self.rig.engine.kv

    def do(self, action: Callable[[], T]) -> T:
        """Run an action on the core thread, between two steps."""
        results: queue.SimpleQueue[T] = queue.SimpleQueue()
        self.moves.on_core(lambda: results.put(action()))
        return results.get(timeout=WAIT_S)

    def cut(self, request: RequestId) -> Cut | None:
        results: queue.SimpleQueue[Cut | None] = queue.SimpleQueue()
        self.moves.on_core(lambda: self.moves.cut(request, results.put))
        return results.get(timeout=WAIT_S)

    def begin(self, request: RequestId = A) -> Begun:
        begun = self.do(lambda: self.moves.begin(request))
        assert isinstance(begun, Begun)
        return begun

    def reserve(self, begun: Begun, num_tokens: int, request: RequestId = A) -> Reservation | str:
        header = Reserve(M, request, Epoch(2), "gateway", begun.name, "", num_tokens)
        prepared = self.moves.prepare(header, [memoryview(frame) for frame in begun.payload])
        if isinstance(prepared, str):
            return prepared
        return self.do(lambda: self.moves.reserve(M, prepared, num_tokens, reuse_prefix=True))

    def commit(self, cut: Cut, epoch: int = 2, peer: int = GATEWAY) -> str:
        return self.do(
            lambda: self.moves.commit(M, peer, Epoch(epoch), cut.outputs, cut.num_computed)
        )

    def is_free(self) -> bool:
        self.do(self.rig.outlet.loads.clear)  # so that the next report is of after this
        load = self.rig.outlet.wait_load(lambda *_: True)
        return load.free == load.total


@contextlib.contextmanager
def started(**changes: object) -> Iterator[End]:
    end = End(start(msgspec.structs.replace(FAST, **changes)))
    end.moves.watch(lambda request, why: end.lost.put((request, why)))
    yield end
    end.rig.engine.stop()
    end.rig.core.join(WAIT_S)
    assert not end.rig.core.is_alive()
    assert end.rig.core.failure is None


@pytest.fixture
def source() -> Iterator[End]:
    with started(**SLOW) as end:
        yield end


@pytest.fixture
def other() -> Iterator[End]:
    with started(**SLOW) as end:
        yield end


@pytest.fixture
def target() -> Iterator[End]:
    with started(num_blocks=70) as end:
        yield end


def copy(source: End, here: tuple[int, ...], target: End, there: tuple[int, ...]) -> None:
    data = memoryview(bytearray(len(here) * source.kv.block_bytes))
    source.kv.pack(here, data)
    target.kv.unpack(there[: len(here)], data)


def move(source: End, target: End, epoch: int = 2) -> Cut:
    """A whole move of request `a`, in two stages."""
    begun = source.begin()
    reservation = target.reserve(begun, begun.progress.num_tokens + 4)
    assert isinstance(reservation, Reservation)
    progress = source.do(lambda: source.moves.progress(A))
    assert isinstance(progress, Progress)
    num_full = progress.num_settled // FAST.block_size
    copy(source, progress.blocks[:num_full], target, reservation.blocks)
    cut = source.cut(A)
    assert cut is not None
    reservation = target.do(lambda: target.moves.extend(M, cut.num_computed + 1))
    assert isinstance(reservation, Reservation)
    copy(source, cut.blocks[num_full:], target, reservation.blocks[num_full:])
    assert target.commit(cut, epoch) == ""
    source.do(lambda: source.moves.release(A))
    return cut


def received(end: End, count: int) -> list[tuple[tuple[int, int], int]]:
    """The next `count` tokens of one request, each with its stamp."""
    tokens: list[tuple[tuple[int, int], int]] = []
    while len(tokens) < count:
        sent = end.rig.next()
        assert isinstance(sent.message, Outputs)
        for output, owner in zip(sent.outputs.outputs, sent.message.owners, strict=True):
            tokens += [(owner, token) for token in output.new_token_ids]
    return tokens


def unmoved(end: End) -> list[int]:
    end.rig.add("unmoved", params=LONG)
    return end.rig.tokens("unmoved")


# ---------------------------------------------------------------- a whole move


def test_a_moved_request_goes_on_as_if_it_had_stayed(source: End, target: End) -> None:
    reference = unmoved(target)
    source.rig.add("a", epoch=1, params=LONG)
    before = received(source, 9)
    cut = move(source, target)
    before += received(source, len(cut.outputs) - len(before))
    after = received(target, 60 - len(cut.outputs))

    assert [token for _, token in before + after] == reference
    assert [owner for owner, _ in before] == [(1, k) for k in range(len(before))]
    assert [owner for owner, _ in after] == [(2, k) for k in range(len(before), 60)]
    assert list(cut.outputs) == reference[: len(before)]
    assert source.is_free()
    assert target.is_free()
    assert source.lost.empty()


def test_the_front_end_is_not_told_twice_how_it_was_prefilled(source: End, target: End) -> None:
    params = msgspec.structs.replace(LONG, logprobs=2)
    source.rig.add("a", params=params)
    received(source, 3)
    move(source, target)
    sent = target.rig.next()
    output = sent.outputs.outputs[0]
    assert sent.peer == GATEWAY
    assert output.prefill_stats is None
    assert [event.type for event in output.events or ()] == [EventType.SCHEDULED]
    assert output.new_logprobs is not None


def test_a_request_may_move_on_and_back(source: End, other: End, target: End) -> None:
    reference = unmoved(target)
    source.rig.add("a", epoch=1, params=LONG)
    tokens = received(source, 5)
    for epoch, (here, there) in enumerate(((source, other), (other, source)), start=2):
        cut = move(here, there, epoch)
        tokens += received(here, len(cut.outputs) - len(tokens))
        tokens += received(there, 4)
    tokens += received(source, 60 - len(tokens))
    assert [token for _, token in tokens] == reference
    assert tokens[-1][0] == (3, 59)


def test_what_a_source_says_of_a_request_is_what_its_gateway_sent(source: End) -> None:
    asked = EngineCoreRequest("a", [1, 2, 3], None, LONG, None, 1.0, None, None, None, priority=7)
    payload = bytearray(encode(asked))
    header = Add(A, Epoch(5), 1, "chat-1")
    source.rig.engine.add(3, header, [memoryview(payload)])
    payload[:] = bytes(len(payload))  # as a socket may use its buffer again
    begun = source.begin()
    assert (begun.peer, begun.epoch, begun.name) == (3, 5, "chat-1")
    assert msgspec.msgpack.decode(begun.payload[0], type=EngineCoreRequest) == asked
    assert source.do(lambda: source.moves.begin(A)) == "it is leaving already"
    assert source.do(lambda: source.moves.begin(RequestId("b"))) == "it is not here"


def test_a_waiting_request_moves_without_kv(target: End) -> None:
    with started(max_num_seqs=1, **SLOW) as source:
        source.rig.add("first", params=SamplingParams(max_tokens=120))
        source.rig.add("a", params=LONG)
        begun = source.begin()
        assert begun.progress.is_waiting
        assert target.reserve(begun, 0) == Reservation(0, (), 0)
        cut = source.cut(A)
        assert cut == Cut((), 0, ())
        assert target.commit(cut) == ""
        source.do(lambda: source.moves.release(A))
    sent = target.rig.next()
    output = sent.outputs.outputs[0]
    assert sent.message.owners == [(2, 0)]
    assert output.prefill_stats == PrefillStats(3, 3)
    kinds = [event.type for event in output.events or ()]
    assert kinds == [EventType.QUEUED, EventType.SCHEDULED]
    tokens = output.new_token_ids + [token for _, token in received(target, 59)]
    assert tokens == unmoved(target)


def test_a_request_is_given_away_with_the_priority_that_it_has_by_then(source: End) -> None:
    source.rig.add("a", params=LONG)
    received(source, 1)
    source.begin()
    assert source.do(lambda: source.moves.set_priority(A, 7)), "also while it is being copied"
    cut = source.cut(A)
    assert cut is not None
    assert cut.priority == 7
    assert not source.do(lambda: source.moves.set_priority(A, 8)), "too late for its target to know"
    source.do(lambda: source.moves.resume(A, Epoch(3)))
    assert source.do(lambda: source.moves.set_priority(A, 8))


def test_what_is_pinned_does_not_begin_to_leave(source: End) -> None:
    source.rig.add("a", params=LONG)
    received(source, 1)
    assert source.do(lambda: source.moves.pin(A, "by ann")) == ""
    assert source.do(lambda: source.moves.begin(A)) == "pinned: by ann"
    assert source.do(lambda: source.moves.pin(A, "")) == ""
    source.begin()
    assert source.do(lambda: source.moves.pin(A, "by ann")) == "it is being moved"
    assert source.do(lambda: source.moves.pin(A, "")) == ""


# ---------------------------------------------------------------- moves that end early


def test_a_request_that_stays_goes_on_under_its_new_epoch(source: End, target: End) -> None:
    reference = unmoved(target)
    source.rig.add("a", epoch=1, params=LONG)
    before = received(source, 4)
    source.begin()
    cut = source.cut(A)
    assert cut is not None
    before += received(source, len(cut.outputs) - len(before))
    assert source.rig.outlet.sent.empty()
    source.do(lambda: source.moves.resume(A, Epoch(3)))
    after = received(source, 60 - len(before))
    assert [token for _, token in before + after] == reference
    assert after[0][0] == (3, len(before))
    assert source.do(lambda: source.moves.begin(A)) == "it is not here"


def test_a_move_that_is_called_off_before_the_cut_leaves_no_trace(source: End, target: End) -> None:
    source.rig.add("a", params=LONG)
    begun = source.begin()
    assert isinstance(target.reserve(begun, 8), Reservation)
    assert not target.is_free()
    source.do(lambda: source.moves.unwatch(A))
    target.do(lambda: target.moves.abandon(M))
    assert target.is_free()
    assert len(received(source, 60)) == 60
    assert target.commit(Cut((1,), 3, ())) == "nothing is reserved for it"
    assert target.is_free()
    assert source.lost.empty()


@pytest.mark.parametrize("how", ["finish", "abort", "leave"])
def test_the_end_of_a_request_is_told(source: End, how: str) -> None:
    source.rig.add("a", params=LONG)
    source.begin()
    match how:
        case "abort":
            source.rig.engine.abort(0, [(A, Epoch(1))])
        case "leave":
            source.rig.engine.drop_peer(0)
    why = "finished" if how == "finish" else "aborted"
    assert source.lost.get(timeout=WAIT_S) == ("a", why)
    assert source.do(lambda: source.moves.progress(A)) is None
    assert source.cut(A) is None
    source.do(lambda: source.moves.release(A))
    assert source.is_free()


def test_a_preemption_is_told() -> None:
    begun: queue.SimpleQueue[Begun | str] = queue.SimpleQueue()
    with started(num_blocks=32) as source:
        with source.rig.held():
            source.rig.add("b", list(range(20)), params=SamplingParams(max_tokens=80), priority=0)
            source.rig.add("a", list(range(20)), params=SamplingParams(max_tokens=80), priority=1)
            source.moves.on_core(lambda: begun.put(source.moves.begin(A)))
        assert isinstance(begun.get(timeout=WAIT_S), Begun)
        assert source.lost.get(timeout=WAIT_S) == ("a", "preempted")
        assert len(source.rig.collect("a", "b")) == 2
        assert source.lost.empty()


def test_a_request_that_was_cut_can_be_aborted(source: End) -> None:
    source.rig.add("a", params=LONG)
    source.begin()
    assert source.cut(A) is not None
    source.rig.engine.abort(0, [(A, Epoch(1))])
    assert source.lost.get(timeout=WAIT_S) == ("a", "aborted")
    source.do(lambda: source.moves.resume(A, Epoch(3)))
    assert source.is_free()


def test_a_request_that_has_arrived_is_the_gateways_to_abort(source: End, target: End) -> None:
    source.rig.add("a", params=LONG)
    move(source, target)
    target.rig.engine.abort(GATEWAY, [(A, Epoch(1))])  # of an earlier epoch
    target.rig.engine.abort(0, [(A, Epoch(2))])  # of another peer
    received(target, 2)
    target.rig.engine.drop_peer(GATEWAY)
    target.rig.outlet.wait_load(lambda load, seen: load.num_running == 1)
    target.rig.outlet.loads.clear()
    target.rig.engine.call(99, Call(1, "is_sleeping"), [])
    target.rig.outlet.wait_load(is_idle)


def test_an_engine_that_stops_says_nothing_of_what_it_gave_away() -> None:
    with started(**SLOW) as source:
        source.rig.add("a", params=LONG)
        source.rig.add("b", params=LONG)
        source.begin()
        assert source.cut(A) is not None
    assert source.lost.get_nowait() == ("a", "aborted")
    ends = set()
    while not source.rig.outlet.sent.empty():
        outputs = source.rig.next().outputs.outputs
        ends |= {each.request_id for each in outputs if each.finish_reason is FinishReason.ABORT}
    assert ends == {"b"}


def test_the_front_end_hears_that_the_engine_is_idle_again(source: End, target: End) -> None:
    source.rig.add("a", params=LONG)
    received(source, 1)
    move(source, target)
    while (outputs := source.rig.next().outputs).outputs:
        pass
    assert outputs.scheduler_stats is not None
    assert outputs.scheduler_stats.num_running_reqs == 0


# ---------------------------------------------------------------- refusals


def test_a_target_refuses_what_it_has(source: End, other: End) -> None:
    source.rig.add("a", params=LONG)
    other.rig.add("a", params=LONG)
    other.rig.sync()
    assert other.reserve(source.begin(), 4) == "still held here"


def test_a_target_refuses_what_it_has_no_room_for(source: End) -> None:
    source.rig.add("a", params=LONG)
    begun = source.begin()
    with started(num_blocks=32, step_base_ms=200.0) as target:
        target.rig.add("b", list(range(100)), params=SamplingParams(max_tokens=20))
        target.rig.next()
        assert "tokens are more than 128" in str(target.reserve(begun, 300))
        assert "no room: 8 blocks wanted" in str(target.reserve(begun, 32))
        assert isinstance(target.reserve(begun, 4), Reservation)
        target.do(lambda: target.moves.abandon(M))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\xc1", "not a payload"),
        (
            encode(
                EngineCoreRequest("other", [1], None, SamplingParams(), None, 1.0, None, None, None)
            ),
            "the payload is of 'other'",
        ),
        (
            encode(EngineCoreRequest("a", [1], None, None, {"p": 1}, 1.0, None, None, None)),
            "generates text from token ids",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_reserved(
    target: End, payload: bytes, why: str
) -> None:
    header = Reserve(M, A, Epoch(2), "gateway", "", "", 4)
    refusal = target.moves.prepare(header, [payload])
    assert isinstance(refusal, str)
    assert why in refusal


# ---------------------------------------------------------------- what is here


def views(end: End) -> dict[str, RequestView]:
    end.rig.engine.call(50, Call(8, REQUESTS), [])
    while True:
        sent = end.rig.next()
        if isinstance(sent.message, Reply):
            assert sent.message == Reply(8)
            decoded = msgspec.msgpack.decode(sent.frames[0], type=list[RequestView])
            return {view.id: view for view in decoded}


def test_requests_are_listed_as_plain_data() -> None:
    with started(max_num_seqs=1, **SLOW) as end:
        end.rig.add("a", range(9), peer=2, params=LONG, arrival_time=17e8, priority=3)
        end.rig.next()
        end.rig.add("b", range(3), peer=0, params=LONG, priority=5)
        seen = views(end)
        running, waiting = seen["a"], seen["b"]
        assert (running.state, running.peer, running.priority) == ("running", 2, 3)
        assert (running.num_prompt, running.arrival, running.pinned) == (9, 17e8, "")
        assert running.num_tokens > 9
        assert running.size_bytes == running.num_blocks * end.kv.block_bytes > 0
        assert (waiting.state, waiting.num_tokens, waiting.num_blocks) == ("waiting", 3, 0)
        end.begin()
        assert views(end)["a"].state == "leaving"


def test_the_core_thread_runs_what_it_is_asked_in_order(source: End) -> None:
    seen: list[int] = []
    done = threading.Event()
    for number in range(5):
        source.moves.on_core(lambda number=number: seen.append(number))
    source.moves.on_core(done.set)
    assert done.wait(WAIT_S)
    assert seen == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- KV as bytes


def make_kv(num_blocks: int = 16) -> tuple[HashedTokens, SimKv]:
    tokens = HashedTokens(
        Vocabulary(range(9)), num_blocks=num_blocks, block_size=2, bytes_per_token=8
    )
    return tokens, SimKv(tokens)


@pytest.mark.parametrize("blocks", [[], [3], [0, 1, 2], [5, 4, 3], [15, 2, 3, 4, 9, 10, 0]])
def test_blocks_are_packed_in_the_order_asked(blocks: list[int]) -> None:
    tokens, kv = make_kv()
    for index in range(16):
        tokens.block(index)[:] = bytes([index]) * 16
    data = memoryview(bytearray(len(blocks) * kv.block_bytes))
    kv.pack(blocks, data)
    assert bytes(data) == b"".join(bytes([index]) * 16 for index in blocks)

    other, there = make_kv()
    there.unpack(list(reversed(blocks)), data)
    assert [other.block(index)[0] for index in reversed(blocks)] == blocks


def test_blocks_that_are_not_there_and_buffers_that_do_not_fit_are_a_broken_invariant() -> None:
    _, kv = make_kv()
    for blocks, size in (([16], 16), ([-1], 16), ([1, 2], 16)):
        with pytest.raises(AssertionError):
            kv.pack(blocks, memoryview(bytearray(size)))
    assert kv.sampler_state(A) == b""
    kv.keep_sampler_state(M, b"")


def test_compatible_is_what_computes_the_same_tokens_into_the_same_blocks() -> None:
    ours = sim_compatibility("/models/tiny", FACTS, FAST)
    assert sim_compatibility("/elsewhere/tiny", FACTS, FAST) == ours
    bigger = msgspec.structs.replace(FAST, num_blocks=99, step_base_ms=9.0)
    assert sim_compatibility("/models/tiny", FACTS, bigger) == ours
    for change in ({"block_size": 8}, {"kv_bytes_per_token": 512}):
        assert sim_compatibility("tiny", FACTS, msgspec.structs.replace(FAST, **change)) != ours
    other = type(FACTS)(128, "float32", Vocabulary(range(100, 401)))
    assert sim_compatibility("tiny", other, FAST) != ours
    assert sim_compatibility("small", FACTS, FAST) != ours
    layouts = {make_kv()[1].layout, make_kv(num_blocks=99)[1].layout}
    assert layouts == {"sim, blocks of 2 x 8 bytes"}
