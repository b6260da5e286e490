"""The simulated engine behind an outlet that records: real time, no sockets."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from llx.agent.engine_codec import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    EventType,
    FinishReason,
    PrefillStats,
    SamplingParams,
    decode_logprobs,
    decode_outputs,
    encode,
)
from llx.agent.sim_core import RESULTS, SimEngine
from llx.agent.sim_engine import CoreThread, engine_config, make_engine, ready_response
from llx.agent.sim_model import ModelFacts, read_model
from llx.core.model import Epoch, RequestId
from llx.core.token_model import Vocabulary
from llx.errors import ConfigError
from llx.ports import Frame
from llx.specs import SimSpec
from llx.wire import Add, Call, FromInstance, Load, Outputs, Reply

FAST = SimSpec(
    step_base_ms=1.0,
    step_ms_per_prefill_token=0.0,
    step_ms_per_decode=0.0,
    step_ms_per_context_ktoken=0.0,
    num_blocks=64,
    block_size=4,
    max_num_seqs=8,
    max_num_batched_tokens=64,
)
FACTS = ModelFacts(max_model_len=128, dtype="float32", vocabulary=Vocabulary(range(100, 400)))
WAIT_S = 20.0


@dataclass
class Sent:
    peer: int
    message: FromInstance
    frames: list[bytes]

    @property
    def outputs(self) -> EngineCoreOutputs:
        assert isinstance(self.message, Outputs)
        return decode_outputs(self.frames)


@dataclass
class RecordingOutlet:
    sent: "queue.SimpleQueue[Sent]" = field(default_factory=queue.SimpleQueue)
    loads: list[tuple[Load, dict[int, int]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def emit(
        self,
        peer: int,
        message: FromInstance,
        payload: Callable[[], Sequence[Frame]] | None = None,
    ) -> None:
        self.sent.put(Sent(peer, message, [bytes(f) for f in payload()] if payload else []))

    def report(self, load: Load, seen: dict[int, int]) -> None:
        with self.changed:
            self.loads.append((load, seen))
            self.changed.notify_all()

    def wait_load(self, predicate: Callable[[Load, dict[int, int]], bool]) -> Load:
        with self.changed:
            assert self.changed.wait_for(
                lambda: any(predicate(load, seen) for load, seen in self.loads), WAIT_S
            )
            return next(load for load, seen in self.loads if predicate(load, seen))


@dataclass
class Rig:
    engine: SimEngine
    outlet: RecordingOutlet
    core: CoreThread
    epochs: int = 0

    def add(
        self,
        name: str,
        prompt: Sequence[int] = (1, 2, 3),
        *,
        peer: int = 0,
        epoch: int = 1,
        seq: int = 1,
        params: SamplingParams | None = None,
        **fields: object,
    ) -> None:
        params = params or SamplingParams(max_tokens=5, temperature=0.0)
        request = EngineCoreRequest(
            name, list(prompt), None, params, None, 1.0, None, None, None, external_req_id=name
        )
        request = msgspec.structs.replace(request, **fields)
        self.engine.add(peer, Add(RequestId(name), Epoch(epoch), seq), [encode(request)])

    def next(self) -> Sent:
        return self.outlet.sent.get(timeout=WAIT_S)

    def collect(self, *names: str) -> dict[str, list[EngineCoreOutput]]:
        """Outputs by request until all of `names` have finished; offsets are checked."""
        outputs: dict[str, list[EngineCoreOutput]] = {name: [] for name in names}
        counts = dict.fromkeys(names, 0)
        while not all(o and o[-1].finish_reason is not None for o in outputs.values()):
            sent = self.next()
            assert isinstance(sent.message, Outputs)
            for output, owner in zip(sent.outputs.outputs, sent.message.owners, strict=True):
                assert owner[1] == counts[output.request_id]
                counts[output.request_id] += len(output.new_token_ids)
                outputs[output.request_id].append(output)
        return outputs

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.collect(name)[name] for token in output.new_token_ids]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The core thread stands still, and then takes in at once what has been sent meanwhile."""
        gate = threading.Event()
        self.engine.moves.on_core(lambda: self._wait(gate))
        yield
        gate.set()

    def _wait(self, gate: threading.Event) -> None:
        assert gate.wait(WAIT_S)

    def sync(self) -> None:
        """Wait until the core thread has taken in all that was sent before."""
        self.engine.call(99, Call(1, "is_sleeping"), [])
        while not isinstance(self.next().message, Reply):
            pass


def start(sim: SimSpec = FAST) -> Rig:
    engine, _ = make_engine(sim, FACTS)
    outlet = RecordingOutlet()
    core = CoreThread(engine, outlet)
    core.start()
    return Rig(engine, outlet, core)


@contextlib.contextmanager
def started(sim: SimSpec) -> Iterator[Rig]:
    rig = start(sim)
    yield rig
    rig.engine.stop()
    rig.core.join(WAIT_S)
    assert not rig.core.is_alive()
    assert rig.core.failure is None


@pytest.fixture
def rig() -> Iterator[Rig]:
    with started(FAST) as rig:
        yield rig


@pytest.fixture
def slow() -> Iterator[Rig]:
    """In which nothing long ends before a test that is kept waiting gets on."""
    with started(msgspec.structs.replace(FAST, step_base_ms=50.0)) as rig:
        yield rig


def is_idle(load: Load, _seen: dict[int, int]) -> bool:
    return load.num_running == load.num_waiting == 0 and load.free == load.total


def test_a_request_streams_its_tokens_and_ends(rig: Rig) -> None:
    rig.add("a")
    outputs = rig.collect("a")["a"]

    assert [len(o.new_token_ids) for o in outputs] == [1] * 5
    assert [o.finish_reason for o in outputs] == [None] * 4 + [FinishReason.LENGTH]
    assert outputs[0].prefill_stats == PrefillStats(3, 3)
    assert [e.type for e in outputs[0].events or ()] == [EventType.QUEUED, EventType.SCHEDULED]
    assert all(o.prefill_stats is None and o.events is None for o in outputs[1:])


def test_the_same_prompt_gives_the_same_tokens_in_any_company(rig: Rig) -> None:
    rig.add("a")
    alone = rig.tokens("a")
    rig.add("b", epoch=3)
    rig.add("c", (9, 9, 9, 9, 9, 9))
    together = rig.collect("b", "c")
    assert [t for o in together["b"] for t in o.new_token_ids] == alone
    assert [t for o in together["c"] for t in o.new_token_ids] != alone


def test_owners_carry_the_epoch_and_contiguous_offsets(rig: Rig) -> None:
    rig.add("a", epoch=7)
    owners = []
    for _ in range(5):
        message = rig.next().message
        assert isinstance(message, Outputs)
        owners += message.owners
    assert owners == [(7, 0), (7, 1), (7, 2), (7, 3), (7, 4)]


def test_stop_tokens_end_a_request_but_not_before_min_tokens(rig: Rig) -> None:
    rig.add("free", params=SamplingParams(max_tokens=8, temperature=0.0))
    free = rig.tokens("free")
    third = free[2]
    stopped = SamplingParams(
        max_tokens=8, stop_token_ids=[third], all_stop_token_ids=[third], temperature=0.0
    )
    rig.add("stopped", params=stopped)
    last = rig.collect("stopped")["stopped"][-1]
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, third)

    rig.add("later", params=msgspec.structs.replace(stopped, min_tokens=8))
    assert third not in rig.tokens("later")


def test_logprobs_name_the_sampled_token_first(rig: Rig) -> None:
    rig.add("a", params=SamplingParams(max_tokens=2, logprobs=3))
    sent = rig.next()
    output = sent.outputs.outputs[0]
    ids, values, ranks = decode_logprobs(output.new_logprobs, sent.frames)
    assert ids[0] == ids[1] == output.new_token_ids[0]
    assert len(set(ids[1:])) == 3
    assert values[0] == values[1] > values[2] > values[3]
    assert ranks == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"params": SamplingParams(structured_outputs={"regex": "a"})},
        {"params": SamplingParams(prompt_logprobs=1)},
        {"params": SamplingParams(logprobs=-1)},
        {"params": SamplingParams(logprobs=300)},
        {"params": SamplingParams(logprob_token_ids=[1])},
        {"params": SamplingParams(max_tokens=0)},
        {"lora_request": {"lora_name": "x"}},
        {"mm_features": [{"data": 1}]},
        {"pooling_params": {"task": "embed"}},
        {"sampling_params": None},
        {"prompt_token_ids": None},
        {"prompt_token_ids": []},
        {"prompt_token_ids": list(range(128))},
        {"prompt_embeds": ["float32", [1, 2], 1]},
        {"resumable": True},
        {"arrival_time": float("nan")},
        {"request_id": "another"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_with_an_error_output(
    rig: Rig, change: dict[str, object]
) -> None:
    rig.add("bad", epoch=4, **change)  # type: ignore[arg-type]
    sent = rig.next()
    assert isinstance(sent.message, Outputs)
    assert sent.message.owners == [(4, 0)]
    output = sent.outputs.outputs[0]
    assert (output.request_id, output.new_token_ids) == ("bad", [])
    assert output.finish_reason is FinishReason.ERROR
    assert [e.type for e in output.events or ()] == [EventType.QUEUED, EventType.SCHEDULED]
    rig.add("good")
    assert len(rig.tokens("good")) == 5


@pytest.mark.parametrize("payload", [[], [b""], [b"\xc1"], [b"\x93\x01\x02\x03"]])
def test_an_unreadable_request_is_answered_with_an_error(rig: Rig, payload: list[bytes]) -> None:
    rig.engine.add(3, Add(RequestId("r"), Epoch(1), 1), payload)
    sent = rig.next()
    assert sent.peer == 3
    assert sent.outputs.outputs[0].finish_reason is FinishReason.ERROR


def test_a_request_to_be_aborted_at_once_is(rig: Rig) -> None:
    rig.add("a", abort_immediately=True)
    assert rig.collect("a")["a"][0].finish_reason is FinishReason.ABORT


def test_a_second_add_of_a_held_id_changes_nothing(rig: Rig) -> None:
    rig.add("a", params=SamplingParams(max_tokens=40))
    rig.add("a", (7, 7, 7), peer=1, epoch=2)
    rig.add("b", params=SamplingParams(max_tokens=40))
    outputs = rig.collect("a", "b")
    assert outputs["a"][-1].finish_reason is FinishReason.LENGTH
    assert [o.new_token_ids for o in outputs["a"]] == [o.new_token_ids for o in outputs["b"]]


def test_abort_heeds_the_epoch_and_says_nothing(slow: Rig) -> None:
    slow.add("a", epoch=5, params=SamplingParams(max_tokens=100))
    slow.next()
    slow.engine.abort(0, [(RequestId("a"), Epoch(4)), (RequestId("unknown"), Epoch(9))])
    slow.sync()
    slow.next()  # still running
    slow.engine.abort(0, [(RequestId("a"), Epoch(5)), (RequestId("a"), Epoch(5))])
    slow.sync()
    slow.outlet.loads.clear()
    slow.add("b")
    assert len(slow.tokens("b")) == 5
    slow.outlet.wait_load(is_idle)


def test_an_abort_brings_the_front_end_its_stats(slow: Rig) -> None:
    slow.add("a", params=SamplingParams(max_tokens=100))
    slow.next()
    slow.engine.abort(0, [(RequestId("a"), Epoch(1))])
    while (outputs := slow.next().outputs).outputs:
        pass
    assert outputs.scheduler_stats is not None
    assert outputs.scheduler_stats.num_running_reqs == 0


def test_a_lost_peer_takes_its_requests_along(rig: Rig) -> None:
    rig.add("mine", peer=0, params=SamplingParams(max_tokens=120))
    rig.add("theirs", peer=1)
    rig.engine.drop_peer(0)
    rig.outlet.wait_load(lambda load, seen: is_idle(load, seen) and seen == {1: 1})


def test_outputs_go_to_the_peer_that_asked(rig: Rig) -> None:
    rig.add("a", peer=0)
    rig.add("b", peer=1)
    by_peer: dict[int, set[str]] = {0: set(), 1: set()}
    for _ in range(10):
        sent = rig.next()
        by_peer[sent.peer] |= {output.request_id for output in sent.outputs.outputs}
    assert by_peer == {0: {"a"}, 1: {"b"}}


def test_load_reports_show_what_was_taken_in(rig: Rig) -> None:
    rig.outlet.wait_load(is_idle)
    rig.add("a", list(range(9)), seq=12, params=SamplingParams(max_tokens=20), priority=10)
    load = rig.outlet.wait_load(lambda load, seen: load.num_running == 1)
    assert load.total - load.free == 3
    assert load.classes == {10: (1, 0, 0)}
    rig.collect("a")
    rig.outlet.wait_load(lambda load, seen: is_idle(load, seen) and seen == {0: 12})


def test_scheduler_stats_come_with_the_last_output(rig: Rig) -> None:
    rig.add("a")
    seen = []
    while True:
        outputs = rig.next().outputs
        seen.append(outputs.scheduler_stats)
        if outputs.outputs[0].finish_reason is not None:
            break
    assert seen[0] is not None
    assert seen[0].num_running_reqs == 1
    assert seen[-1] is not None
    assert (seen[-1].num_running_reqs, seen[-1].kv_cache_usage) == (0, 0.0)


@pytest.mark.parametrize("method", sorted(RESULTS))
def test_utilities_answer(rig: Rig, method: str) -> None:
    rig.engine.call(0, Call(5, method), [b"\xc1 not even msgpack"])
    sent = rig.next()
    assert sent.message == Reply(5)
    assert msgspec.msgpack.decode(sent.frames[0]) == RESULTS[method]


def test_an_unknown_utility_fails_alone(rig: Rig) -> None:
    rig.engine.call(0, Call(6, "collective_rpc"), [])
    message = rig.next().message
    assert isinstance(message, Reply)
    assert "collective_rpc" in message.error


def test_a_step_lasts_as_long_as_the_model_says() -> None:
    rig = start(msgspec.structs.replace(FAST, step_base_ms=40.0))
    begun = time.monotonic()
    rig.add("a", params=SamplingParams(max_tokens=3))
    stamps = [rig.next().outputs.timestamp for _ in range(3)]
    rig.engine.stop()
    rig.core.join(WAIT_S)
    assert all(stamp - begun >= 0.039 * number for number, stamp in enumerate(stamps, start=1))


def test_stop_aborts_what_is_running_and_waiting() -> None:
    rig = start(msgspec.structs.replace(FAST, max_num_seqs=1, step_base_ms=100.0))
    rig.add("running", params=SamplingParams(max_tokens=120))
    rig.add("waiting", params=SamplingParams(max_tokens=120))
    rig.next()
    rig.engine.stop()
    outputs = drain(rig)
    rig.core.join(WAIT_S)
    assert outputs == {"running": FinishReason.ABORT, "waiting": FinishReason.ABORT}
    assert rig.core.failure is None


class BrokenOutlet(RecordingOutlet):
    def report(self, load: Load, seen: dict[int, int]) -> None:
        raise RuntimeError("no more room")


def test_a_failure_of_the_core_thread_is_kept() -> None:
    engine, _ = make_engine(FAST, FACTS)
    core = CoreThread(engine, BrokenOutlet())
    core.start()
    core.join(WAIT_S)
    assert isinstance(core.failure, RuntimeError)


def drain(rig: Rig) -> dict[str, FinishReason]:
    ends: dict[str, FinishReason] = {}
    while len(ends) < 2:
        for output in rig.next().outputs.outputs:
            if output.finish_reason is not None:
                ends[output.request_id] = output.finish_reason
    return ends


def test_preemption_is_told_and_does_not_change_tokens() -> None:
    small = msgspec.structs.replace(FAST, num_blocks=32)
    rig = start(small)
    params = SamplingParams(max_tokens=80, temperature=0.0)
    with rig.held():
        rig.add("a", list(range(20)), params=params, priority=0)
        rig.add("b", list(range(20)), params=params, priority=1)
    outputs = rig.collect("a", "b")
    rig.engine.stop()
    rig.core.join(WAIT_S)
    kinds = [event.type for output in outputs["b"] for event in output.events or ()]
    assert kinds[:2] == [EventType.QUEUED, EventType.SCHEDULED]
    assert kinds[2:4] == [EventType.PREEMPTED, EventType.SCHEDULED]
    count = kinds.count(EventType.PREEMPTED)
    rig.outlet.wait_load(lambda load, _: load.num_preemptions == count)
    assert [o.new_token_ids for o in outputs["a"]] == [o.new_token_ids for o in outputs["b"]]


# ---------------------------------------------------------------- the model's directory


def write_model(folder: Path, tokenizer: object | None = None, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512} | config))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_words_of_the_tokenizer_make_the_vocabulary(tmp_path: Path) -> None:
    vocab = {f"Ġ{'word' * 2}{chr(97 + k % 26)}{chr(97 + k // 26)}": k + 10 for k in range(40)}
    vocab |= {"<s>": 0, "Ã": 1, "a": 2}
    folder = write_model(
        tmp_path,
        {"model": {"vocab": vocab, "merges": []}, "added_tokens": [{"id": 10, "content": "x"}]},
        max_position_embeddings=2048,
        torch_dtype="bfloat16",
    )
    facts = read_model(str(folder), {})
    assert (facts.max_model_len, facts.dtype, len(facts.vocabulary)) == (2048, "bfloat16", 39)
    assert facts.vocabulary.pick(0, frozenset()) == 11
    assert read_model(str(folder), {"max_model_len": 99}).max_model_len == 99
    assert read_model(str(folder), {"max_model_len": "auto"}).max_model_len == 2048


def test_a_list_vocabulary_or_none_at_all_will_do(tmp_path: Path) -> None:
    listed = [
        ["<unk>", 0.0],
        *[[f"▁ab{chr(97 + k % 26)}{'x' * (k // 26)}", -1.0] for k in range(60)],
    ]
    facts = read_model(str(write_model(tmp_path, {"model": {"vocab": listed}})), {})
    assert len(facts.vocabulary) == 60
    (tmp_path / "tokenizer.json").unlink()
    assert len(read_model(str(tmp_path), {}).vocabulary) == 256


def test_sizes_nested_for_a_multimodal_model_are_found(tmp_path: Path) -> None:
    nested = {"text_config": {"vocab_size": 900, "max_position_embeddings": 777}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    facts = read_model(str(tmp_path), {})
    assert (facts.max_model_len, len(facts.vocabulary)) == (777, 450)


def test_a_model_that_is_no_directory_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        read_model("org/name", {})
    with pytest.raises(ConfigError, match="neither"):
        read_model(str(write_model(tmp_path, vocab_size=3)), {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_model(str(tmp_path), {})


def test_the_window_is_what_the_blocks_can_hold() -> None:
    config = engine_config(msgspec.structs.replace(FAST, num_blocks=4), 4096)
    assert config.max_model_len == 16
    ready = ready_response(config, dtype="float32", name="tiny-0")
    again = msgspec.msgpack.decode(encode(ready), type=EngineCoreReadyResponse)
    assert (again.max_model_len, again.num_gpu_blocks, again.block_size) == (16, 4, 4)
