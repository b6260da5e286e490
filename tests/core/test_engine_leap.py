"""Steps taken at once against the same steps one by one; and prefills that go first."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.engine_leap import LikeSteps, sum_of_quotients
from llx.core.engine_model import EngineModel
from llx.core.engine_state import EngineConfig, EngineRequest, StepTime
from llx.core.model import Blocks, MigrationId, Nanos, RequestId, Tokens

pytestmark = pytest.mark.core


class Counting:
    def compute(self, tokens, start, end, blocks):
        pass

    def sample(self, request, num_tokens, blocks, banned):
        return 0


STEP_TIME = StepTime(
    base_ns=999, prefill_token_ns=10, decode_ns=100, context_ktoken_ns=777,
    prefill_base_ns=33, prefill_square_ns=2, weights_ns=50, token_ns=7,
)  # fmt: skip


def config(is_prefill_first=False, num_blocks=12, watermark=0, max_num_seqs=4):
    return EngineConfig(
        Blocks(num_blocks), Tokens(4), max_num_seqs, Tokens(48 if is_prefill_first else 7),
        Tokens(48), STEP_TIME, is_prefill_first, Blocks(watermark),
    )  # fmt: skip


class Run:
    """An engine that is acted on at given times, its rows of like steps taken at once or not."""

    def __init__(self, size, *, leaps):
        self.model = EngineModel(size, Counting())
        self.leaps = leaps
        self.now = self.num_calls = self.num_preempted = 0
        self.step = self.row = None
        self.ends_at = None
        self.outputs = {}
        """When each request's first token since it came into the batch came, and its last one."""

    def until(self, time):
        """Go on to `time`: what ends then has ended."""
        while self.step is not None and self.ends_at <= time:
            self._end()
        self.now = time

    def act(self, action):
        if self.row is not None:
            self._settle(self.now)
            self.ends_at, self.row = self.row.ends_at, None
        action(self.model)
        self.model.moves.tell()
        self._begin()

    def load(self):
        """Load and queue's head: as the row has it, if there is one, and as the engine has it."""
        if self.row is None:
            return self.model.load(), self.model.queue_head()
        self.row.advance(self.now)
        load = self.model.load_in(self.row)
        self.model.settle(self.row)
        assert load == self.model.load()
        return load, self.model.queue_head()

    def requests(self):
        return {each.asked.request: each for each in self.model.requests()}

    def _settle(self, time):
        self.row.advance(time)
        self.model.settle(self.row)

    def _begin(self):
        if self.step is not None:
            return
        self.step = self.model.schedule(Nanos(self.now))
        self.num_calls += 1
        if self.step is None:
            return
        self.num_preempted += len(self.step.preempted)
        self.row = self.model.like_steps(self.step) if self.leaps else None
        done = self.step.started_at + self.step.duration_ns
        assert self.row is None or self.row.ends_at == done
        self.ends_at = done if self.row is None else self.row.last_ends_at()

    def _end(self):
        self.now = self.ends_at
        if self.row is not None:
            self._settle(self.now)
            assert (self.row.num_left, self.row.ends_at) == (1, self.now)
            self.row = None
        for each in self.model.complete(self.step):
            if each.finish is not None:
                self.outputs[each.request] = self.now
        self.step = None
        self.model.moves.tell()
        self._begin()


@st.composite
def stories(draw):
    """Additions, aborts, reservations and cuts, with times between them."""
    out = []
    for index in range(draw(st.integers(1, 14))):
        what = draw(st.sampled_from(["add", "add", "add", "abort", "reserve", "cut", "look"]))
        whom = draw(st.integers(0, max(0, index - 1)))
        lengths = draw(st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(0, 1)))
        wait = draw(st.sampled_from([0, 500, 3_000, 20_000]))
        out.append((what, RequestId(f"r{index if what == 'add' else whom}"), lengths, wait))
    return out


def act(run, index, what, request, lengths):
    prompt, outputs, priority = lengths
    asked = EngineRequest(request, (0,) * prompt, outputs, Nanos(index), priority)
    move = MigrationId(str(index))
    if what == "add":
        run.act(lambda model: model.add(asked))
    elif what == "abort":
        run.act(lambda model: model.abort(request))
    elif what == "reserve":
        # Comes with the KV of its prompt, and with a block to spare.
        coming = replace(asked, request=RequestId(f"moved {index}"), max_tokens=outputs + 1)
        run.act(lambda model: model.moves.reserve(move, coming, prompt + 5))
        run.act(lambda model: model.moves.commit(move, (0,), prompt))
    elif what == "cut":
        run.act(lambda model: leave(model.moves, request))


def leave(moves, request):
    """Cut a request out of the batch, at once or when the open step ends, and free it then."""
    if not isinstance(moves.begin(request), str):
        moves.cut(request, lambda cut: moves.release(request))


@given(stories(), st.booleans(), st.integers(0, 3))
def test_a_row_of_like_steps_is_its_steps(story, is_prefill_first, watermark):
    size = config(is_prefill_first, watermark=watermark)
    one, other = runs = [Run(size, leaps=leaps) for leaps in (False, True)]
    for index, (what, request, lengths, wait) in enumerate(story):
        for run in runs:
            act(run, index, what, request, lengths)
        for run in runs:
            run.until(run.now + wait)
        assert one.load() == other.load()
        assert one.requests() == other.requests()
    for run in runs:
        run.until(10**9)
        assert run.model.load().free == size.num_blocks
    assert (one.outputs, one.num_preempted) == (other.outputs, other.num_preempted)
    assert other.num_calls <= one.num_calls


def test_a_row_goes_to_the_end_where_nothing_is_in_its_way():
    run = Run(config(), leaps=True)
    run.act(lambda model: model.add(EngineRequest(RequestId("r"), (0,) * 4, 40, Nanos(0))))
    run.until(10**9)
    assert run.num_calls == 3  # the prefill, the row, and nothing


@given(st.integers(1, 20), st.integers(1, 200), st.integers(2, 40), st.integers(0, 60))
def test_a_row_ends_when_its_steps_do(num_decodes, context, num_steps, num_over):
    each = [
        STEP_TIME.of(0, num_decodes, context + num_decodes * index) for index in range(num_steps)
    ]
    row = LikeSteps(Nanos(5), STEP_TIME, num_decodes, context, num_steps, 10**6, {1: 1}, 16)
    ends = 5 + sum(each)
    for index in range(min(num_over, num_steps - 1)):
        assert row.last_ends_at() == ends
        row.advance(row.ends_at)
        assert row.ends_at == 5 + sum(each[: index + 2])
    row.advance(10**9)
    assert (row.num_left, row.ends_at, row.last_ends_at()) == (1, ends, ends)


@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 5000), st.integers(0, 5000))
def test_the_closed_form_is_the_sum(count, divisor, step, first):
    expected = sum((step * index + first) // divisor for index in range(count))
    assert sum_of_quotients(count, divisor, step, first) == expected


def test_prefills_go_first_and_alone():
    model = EngineModel(config(is_prefill_first=True), Counting())
    model.add(EngineRequest(RequestId("a"), (0,) * 8, 5, Nanos(0)))
    first = model.schedule(Nanos(0))
    model.complete(first)
    model.add(EngineRequest(RequestId("b"), (0,) * 8, 5, Nanos(1)))
    second = model.schedule(Nanos(first.duration_ns))
    assert [each.request for each in second.chunks] == ["b"]
    model.complete(second)
    third = model.schedule(Nanos(0))
    assert [each.request for each in third.chunks] == ["a", "b"]
    assert all(each.is_decode for each in third.chunks)
    assert second.duration_ns == 33 + max(50, 7 * 8) + 10 * 8 + 2 * 64 + 777 * 8 // 1000


def test_admission_leaves_the_watermark_unless_nothing_runs():
    model = EngineModel(config(num_blocks=12, watermark=3, is_prefill_first=True), Counting())
    for name in "abc":
        model.add(EngineRequest(RequestId(name), (0,) * 20, 2, Nanos(ord(name))))
    assert model.schedule(Nanos(0)).admitted == ("a",)  # five more would leave two
    model = EngineModel(config(num_blocks=12, watermark=3), Counting())
    model.add(EngineRequest(RequestId("large"), (0,) * 44, 2, Nanos(0)))
    assert model.schedule(Nanos(0)).admitted == ("large",)
