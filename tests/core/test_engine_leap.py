"""Steps taken at once against the same steps one by one; and prefills that go first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.engine_model import EngineModel
from llx.core.engine_state import EngineConfig, EngineRequest, StepTime
from llx.core.model import Blocks, Nanos, RequestId, Tokens

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


def run(size, requests, *, leaps):
    """When each request gets its last token, how often any was preempted, and the steps taken."""
    model = EngineModel(size, Counting())
    for index, (prompt, outputs) in enumerate(requests):
        model.add(EngineRequest(RequestId(f"r{index}"), (0,) * prompt, outputs, Nanos(index)))
    now, ends, num_preempted, num_calls = 0, {}, 0, 0
    while model.num_requests:
        step = model.schedule(Nanos(now))
        assert step is not None
        num_preempted += len(step.preempted)
        count = model.leap_limit(step) - 1 if leaps else 0
        num_calls += 1
        if count:
            context = sum(chunk.end for chunk in step.chunks)
            now += size.step_time.of_decodes(len(step.chunks), context, count)
            model.leap(step, count)
            step = model.schedule(Nanos(now))
            assert not step.admitted
            assert not step.preempted
        now += step.duration_ns
        for output in model.complete(step):
            if output.finish:
                ends[output.request] = now
    assert model.load().free == size.num_blocks
    return ends, num_preempted, num_calls


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=1, max_size=12),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_leap_is_its_steps(requests, is_prefill_first, watermark):
    size = config(is_prefill_first, watermark=watermark)
    stepped, leapt = (run(size, requests, leaps=leaps) for leaps in (False, True))
    assert stepped[:2] == leapt[:2]
    assert leapt[2] <= stepped[2]


def test_a_leap_goes_to_the_end_where_nothing_is_in_its_way():
    _, _, num_calls = run(config(), [(4, 40)], leaps=True)
    assert num_calls == 2


@given(st.integers(1, 20), st.integers(0, 5000), st.integers(0, 300))
def test_the_closed_form_is_the_sum(num_decodes, context, num_steps):
    each = (
        STEP_TIME.of(0, num_decodes, context + num_decodes * index) for index in range(num_steps)
    )
    assert STEP_TIME.of_decodes(num_decodes, context, num_steps) == sum(each)


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
