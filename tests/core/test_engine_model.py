"""The engine model: blocks, order, budgets, ends. Pure, driven in virtual time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llx.core.engine_model import EngineModel, Finish, Step, TokenOutput
from llx.core.engine_state import EngineConfig, EngineRequest, StepTime
from llx.core.model import Blocks, Nanos, RequestId, Tokens, blocks_for
from tests.example_counts import of_a_hundred

pytestmark = pytest.mark.core

STEP_TIME = StepTime(base_ns=1000, prefill_token_ns=10, decode_ns=100, context_ktoken_ns=500)


@dataclass
class CountedTokens:
    """A token model without content: counts, and watches that no position is skipped."""

    next_token: int = 7
    computed: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)

    def compute(self, tokens: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> None:
        assert 0 <= start < end <= len(tokens)
        self.computed.append((start, end, tuple(blocks)))

    def sample(
        self,
        request: EngineRequest,
        num_tokens: int,
        blocks: Sequence[int],
        banned: frozenset[int],
    ) -> int:
        return self.next_token if self.next_token not in banned else self.next_token + 1


def make_config(
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 32,
    max_model_len: int | None = None,
) -> EngineConfig:
    return EngineConfig(
        num_blocks=Blocks(num_blocks),
        block_size=Tokens(block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=Tokens(budget),
        max_model_len=Tokens(max_model_len or num_blocks * block_size),
        step_time=STEP_TIME,
    )


def make_request(
    name: str,
    prompt: int = 5,
    max_tokens: int = 3,
    *,
    priority: int = 0,
    arrival: int = 0,
    min_tokens: int = 0,
    eos_token: int | None = None,
    stop_tokens: frozenset[int] = frozenset(),
    banned_early: frozenset[int] = frozenset(),
) -> EngineRequest:
    return EngineRequest(
        RequestId(name),
        tuple(range(1, prompt + 1)),
        max_tokens,
        Nanos(arrival),
        priority,
        min_tokens=min_tokens,
        eos_token=eos_token,
        stop_tokens=stop_tokens,
        banned_early=banned_early,
    )


def make_engine(**size: int) -> EngineModel:
    return EngineModel(make_config(**size), CountedTokens())


def steps(engine: EngineModel, limit: int = 10_000) -> Iterator[tuple[Step, list[TokenOutput]]]:
    now = Nanos(0)
    for _ in range(limit):
        step = engine.schedule(now)
        if step is None:
            return
        yield step, engine.complete(step)
        now = Nanos(now + step.duration_ns)
    raise AssertionError("the engine does not come to an end")


def names(chunks: Step) -> list[str]:
    return [chunk.request for chunk in chunks.chunks]


# ---------------------------------------------------------------- by example


def test_another_priority_changes_the_turn_of_what_waits_and_counts_at_once() -> None:
    engine = make_engine(max_num_seqs=2)
    for name in "abcd":
        engine.add(make_request(name, prompt=7, max_tokens=30, priority=5))
    step = engine.schedule(Nanos(0))
    assert step is not None
    engine.complete(step)
    assert engine.running() == ["a", "b"]
    assert engine.set_priority(RequestId("d"), 4)
    assert engine.set_priority(RequestId("a"), 9)
    assert not engine.set_priority(RequestId("x"), 1)
    load = engine.load().classes
    assert {key: (each.num_running, each.num_waiting) for key, each in load.items()} == {
        4: (0, 1), 5: (1, 1), 9: (1, 0)
    }  # fmt: skip
    for name in "ab":
        engine.abort(RequestId(name))
    step = engine.schedule(Nanos(0))
    assert step is not None
    assert step.admitted == ("d", "c")


def test_a_request_prefills_then_decodes_and_ends_by_length() -> None:
    engine = make_engine()
    engine.add(make_request("a", prompt=5, max_tokens=3))

    trace = list(steps(engine))

    assert [(s.chunks[0].start, s.chunks[0].end) for s, _ in trace] == [(0, 5), (5, 6), (6, 7)]
    assert [out[0].finish for _, out in trace] == [None, None, Finish.LENGTH]
    assert engine.load().free == 16
    assert engine.num_requests == 0


def test_step_time_is_the_sum_of_its_terms() -> None:
    engine = make_engine()
    engine.add(make_request("a", prompt=4, max_tokens=5))
    first = engine.schedule(Nanos(0))
    assert first is not None
    engine.complete(first)
    engine.add(make_request("b", prompt=8, max_tokens=5))
    second = engine.schedule(first.duration_ns)
    assert second is not None

    assert first.duration_ns == 1000 + 10 * 4 + 500 * 4 // 1000
    assert second.duration_ns == 1000 + 10 * 8 + 100 * 1 + 500 * (5 + 8) // 1000


def test_a_long_prompt_is_prefilled_in_chunks_of_the_budget() -> None:
    engine = make_engine(budget=6)
    engine.add(make_request("a", prompt=14, max_tokens=1))

    trace = list(steps(engine))

    assert [(s.chunks[0].start, s.chunks[0].end) for s, _ in trace] == [(0, 6), (6, 12), (12, 14)]
    assert [len(out) for _, out in trace] == [0, 0, 1]


def test_running_requests_decode_before_a_new_prefill_takes_the_rest() -> None:
    engine = make_engine(budget=4)
    engine.add(make_request("a", prompt=4, max_tokens=9))
    first = engine.schedule(Nanos(0))
    assert first is not None
    engine.complete(first)
    engine.add(make_request("b", prompt=8, max_tokens=9, priority=-5))

    step = engine.schedule(first.duration_ns)

    assert step is not None
    assert [(c.request, c.num_tokens) for c in step.chunks] == [("a", 1), ("b", 3)]


def test_admission_follows_priority_then_arrival() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(make_request("late", priority=1, arrival=2, max_tokens=1))
    engine.add(make_request("early", priority=1, arrival=1, max_tokens=1))
    engine.add(make_request("urgent", priority=0, arrival=9, max_tokens=1))

    assert [names(step) for step, _ in steps(engine)] == [["urgent"], ["early"], ["late"]]


def test_a_request_whose_prompt_does_not_fit_is_not_overtaken() -> None:
    engine = make_engine(num_blocks=4)
    engine.add(make_request("holder", prompt=9, max_tokens=2))
    first = engine.schedule(Nanos(0))
    assert first is not None
    engine.complete(first)
    engine.add(make_request("big", prompt=10, arrival=1))
    engine.add(make_request("small", prompt=1, arrival=2))

    step = engine.schedule(first.duration_ns)

    assert step is not None
    assert names(step) == ["holder"]
    assert engine.load().num_waiting == 2


def test_out_of_blocks_preempts_the_least_urgent_and_recomputes_it() -> None:
    engine = make_engine(num_blocks=4)
    engine.add(make_request("batch", prompt=7, max_tokens=6, priority=9))
    engine.add(make_request("chat", prompt=7, max_tokens=6, priority=0))

    trace = list(steps(engine))

    assert [step.preempted for step, _ in trace if step.preempted] == [("batch",)]
    counts = dict.fromkeys(("batch", "chat"), 0)
    for _, outputs in trace:
        for output in outputs:
            counts[output.request] += 1
    assert counts == {"batch": 6, "chat": 6}
    ends = [o.request for _, outputs in trace for o in outputs if o.finish]
    assert ends == ["chat", "batch"]


def test_preemption_frees_the_blocks_and_shows_in_the_load() -> None:
    engine = make_engine(num_blocks=4)
    engine.add(make_request("batch", prompt=8, max_tokens=6, priority=9))
    engine.add(make_request("chat", prompt=8, max_tokens=6, priority=0))
    first = engine.schedule(Nanos(0))
    assert first is not None
    engine.complete(first)

    second = engine.schedule(first.duration_ns)

    assert second is not None
    assert second.preempted == ("batch",)
    assert engine.block_table(RequestId("batch")) == ()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_preempted) == (1, 1, 1)
    assert load.waiting_tokens == 9
    assert load.waiting_demand == 3
    assert load.classes[9].num_waiting == 1
    assert load.classes[0].num_running == 1


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    engine = make_engine(num_blocks=4)
    engine.add(make_request("a", prompt=8, max_tokens=6, priority=5))
    engine.add(make_request("b", prompt=8, max_tokens=6, priority=6))
    first = engine.schedule(Nanos(0))
    assert first is not None
    engine.complete(first)
    engine.add(make_request("urgent", prompt=1, priority=0))

    step = engine.schedule(first.duration_ns)

    assert step is not None
    assert step.preempted == ("b",)
    assert step.admitted == ()


def test_abort_during_a_step_drops_its_output_and_frees_its_blocks() -> None:
    engine = make_engine()
    engine.add(make_request("a"))
    engine.add(make_request("b"))
    step = engine.schedule(Nanos(0))
    assert step is not None

    assert engine.abort(RequestId("a"))
    assert not engine.abort(RequestId("a"))
    engine.add(make_request("a", arrival=5))  # the same id again: not in this step

    assert [output.request for output in engine.complete(step)] == ["b"]
    assert engine.block_table(RequestId("a")) == ()


def test_stop_token_eos_and_length_end_a_request() -> None:
    tokens = CountedTokens(next_token=7)
    engine = EngineModel(make_config(max_model_len=8), tokens)
    engine.add(make_request("stop", stop_tokens=frozenset({7})))
    engine.add(make_request("eos", eos_token=7))
    engine.add(make_request("window", prompt=6, max_tokens=99))

    last = {o.request: o for _, outputs in steps(engine) for o in outputs if o.finish}

    assert (last[RequestId("stop")].finish, last[RequestId("stop")].stop_token) == (Finish.STOP, 7)
    assert (last[RequestId("eos")].finish, last[RequestId("eos")].stop_token) == (Finish.STOP, None)
    assert last[RequestId("window")].finish is Finish.LENGTH


def test_min_tokens_bans_the_stop_tokens_at_first() -> None:
    engine = EngineModel(make_config(), CountedTokens(next_token=7))
    engine.add(
        make_request("a", max_tokens=9, min_tokens=2, eos_token=7, banned_early=frozenset({7}))
    )

    assert [o.token for _, outputs in steps(engine) for o in outputs] == [8, 8, 7]


def test_a_config_that_cannot_hold_its_longest_request_is_refused() -> None:
    with pytest.raises(AssertionError, match="cannot hold one request"):
        make_config(num_blocks=2, block_size=4, max_model_len=9)


# ---------------------------------------------------------------- by property

sizes = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 12),
        "block_size": st.integers(1, 4),
        "max_num_seqs": st.integers(1, 5),
        "budget": st.integers(1, 12),
    }
)


class EngineMachine(RuleBasedStateMachine):
    """Any order of adds, aborts and steps: blocks conserved, budgets kept, order respected."""

    def __init__(self) -> None:
        super().__init__()
        self.config = make_config(num_blocks=8, block_size=3, max_num_seqs=3, budget=7)
        self.engine = EngineModel(self.config, CountedTokens())
        self.asked: dict[RequestId, EngineRequest] = {}
        self.emitted: dict[RequestId, int] = {}
        self.open: Step | None = None
        self.now = 0

    @rule(prompt=st.integers(1, 23), max_tokens=st.integers(1, 30), priority=st.integers(0, 2))
    def add(self, prompt: int, max_tokens: int, priority: int) -> None:
        self.now += 1
        name = f"r{self.now}"
        request = make_request(name, prompt, max_tokens, priority=priority, arrival=self.now)
        self.engine.add(request)
        self.asked[request.request] = request
        self.emitted[request.request] = 0

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.asked)))
        assert self.engine.abort(request)
        del self.asked[request]

    @precondition(lambda self: self.open is None)
    @rule()
    def schedule(self) -> None:
        waiting = {r for r in self.asked if not self.engine.block_table(r)}
        step = self.engine.schedule(Nanos(self.now))
        assert (step is None) == (not self.asked)
        if step is None:
            return
        self.open = step
        assert sum(c.num_tokens for c in step.chunks) <= self.config.max_num_batched_tokens
        assert self.engine.load().num_running <= self.config.max_num_seqs
        self.check_order(step, waiting)

    def check_order(self, step: Step, waiting: set[RequestId]) -> None:
        def urgency(request: RequestId) -> tuple[int, int]:
            return (self.asked[request].priority, self.asked[request].arrival)

        left = waiting - set(step.admitted)
        if step.admitted and left:
            assert max(map(urgency, step.admitted)) < min(map(urgency, left))
        running = {r for r in self.asked if self.engine.block_table(r)}
        if step.preempted:
            assert not step.admitted
            assert min(map(urgency, step.preempted)) > max(map(urgency, running))

    @precondition(lambda self: self.open is not None)
    @rule()
    def complete(self) -> None:
        assert self.open is not None
        for output in self.engine.complete(self.open):
            request = self.asked[output.request]
            self.emitted[output.request] += 1
            total = len(request.prompt) + self.emitted[output.request]
            at_end = (
                self.emitted[output.request] == request.max_tokens
                or total == self.config.max_model_len
            )
            assert (output.finish is not None) == at_end
            if output.finish:
                del self.asked[output.request]
        self.open = None

    @invariant()
    def blocks_are_conserved(self) -> None:
        tables = [self.engine.block_table(request) for request in self.asked]
        held = [block for table in tables for block in table]
        load = self.engine.load()
        assert len(held) == len(set(held)) == load.used
        assert all(0 <= block < self.config.num_blocks for block in held)

    @invariant()
    def the_load_adds_up(self) -> None:
        load = self.engine.load()
        assert load.num_running + load.num_waiting == len(self.asked) == self.engine.num_requests
        assert sum(c.num_running for c in load.classes.values()) == load.num_running
        assert sum(c.num_waiting for c in load.classes.values()) == load.num_waiting
        assert sum(c.waiting_demand for c in load.classes.values()) == load.waiting_demand
        assert 0 <= load.num_preempted <= load.num_waiting


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=of_a_hundred(60), stateful_step_count=40, deadline=None
)


@settings(deadline=None, max_examples=of_a_hundred(80))
@given(
    size=sizes,
    asks=st.lists(
        st.tuples(st.integers(1, 48), st.integers(1, 60), st.integers(0, 2)), max_size=12
    ),
)
def test_every_request_ends_with_all_its_tokens(
    size: dict[str, int], asks: list[tuple[int, int, int]]
) -> None:
    engine = make_engine(**size)
    window = engine.config.max_model_len
    expected: dict[str, int] = {}
    for index, (wish, max_tokens, priority) in enumerate(asks):
        prompt = min(wish, window - 1)
        engine.add(make_request(f"r{index}", prompt, max_tokens, priority=priority, arrival=index))
        expected[f"r{index}"] = min(max_tokens, window - prompt)

    counts = dict.fromkeys(expected, 0)
    for step, outputs in steps(engine):
        assert sum(c.num_tokens for c in step.chunks) <= size["budget"]
        for chunk in step.chunks:
            table = engine.block_table(chunk.request)
            assert not table or len(table) >= blocks_for(chunk.end, size["block_size"])
        for output in outputs:
            counts[output.request] += 1

    assert counts == expected
    assert engine.load().free == size["num_blocks"]


@settings(deadline=None, max_examples=of_a_hundred(30))
@given(size=sizes, asks=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=8))
def test_the_same_events_give_the_same_trace(
    size: dict[str, int], asks: list[tuple[int, int]]
) -> None:
    def trace() -> list[tuple[Step, list[TokenOutput]]]:
        engine = make_engine(**size)
        for index, (wish, max_tokens) in enumerate(asks):
            prompt = min(wish, engine.config.max_model_len - 1)
            engine.add(make_request(f"r{index}", prompt, max_tokens, priority=index % 2))
        return list(steps(engine))

    assert trace() == trace()
