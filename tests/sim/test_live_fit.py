"""Step times and links fitted to what a running cluster tells: found again, or refused by name."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.core.engine_state import StepTime
from llx.errors import CheckError
from llx.sim.calibration import StepSample
from llx.sim.coverage import cover
from llx.sim.link_fit import MoveSample, fit_links
from llx.sim.live_fit import fit_live
from tests.example_counts import of_a_hundred


def served(draw: random.Random, waves: int = 60) -> list[StepSample]:
    """Waves of requests as an engine computes them: their prompts, some beside decodes, then
    decodes in ever smaller batches. `duration_ns` is not known yet.
    """
    found = []
    for _ in range(waves):
        contexts: list[int] = []
        for _ in range(draw.choice([1, 2, 4, 8, 16])):
            prompt = round(16 * 2 ** draw.uniform(0, 7))
            found.append(step(contexts, prompt))
            contexts = [each + 1 for each in contexts] + [prompt]
        while contexts:
            for _ in range(draw.randint(2, 6)):
                contexts = [each + 1 for each in contexts]
                found.append(step(contexts, 0))
            contexts.pop(draw.randrange(len(contexts)))
    return found


def step(contexts: list[int], prompt: int) -> StepSample:
    context = sum(contexts)
    return StepSample(prompt, len(contexts), context + prompt, prompt**2, context, 1)


def duration(model: StepTime, each: StepSample) -> int:
    return model.of(
        each.num_prefill_tokens,
        each.num_decodes,
        each.num_context_tokens,
        each.num_square_tokens,
        each.num_decode_context_tokens,
    )


def noisy(truth: StepTime, draw: random.Random, steps: list[StepSample]) -> list[StepSample]:
    """A tenth of noise, and one step in fifty that something else on the machine held up."""
    return [
        replace(
            each,
            duration_ns=duration(truth, each)
            * draw.uniform(0.9, 1.1)
            * (draw.uniform(5, 30) if draw.random() < 0.02 else 1),
        )
        for each in steps
    ]


@settings(max_examples=of_a_hundred(6), deadline=None)
@given(
    st.builds(
        StepTime,
        base_ns=st.integers(2_000_000, 20_000_000),
        prefill_token_ns=st.integers(10_000, 200_000),
        decode_ns=st.integers(200_000, 1_000_000),
        context_ktoken_ns=st.integers(200_000, 2_000_000),
    ),
    st.integers(0, 9),
)
def test_parameters_are_found_again_through_noise_and_stalls(truth: StepTime, seed: int) -> None:
    draw = random.Random(seed)
    fit = fit_live(noisy(truth, draw, served(draw)), 16)
    for each in served(random.Random(seed + 100), 10):
        assert duration(fit.step_time, each) == pytest.approx(duration(truth, each), rel=0.05)
    assert fit.step_time.base_ns == pytest.approx(truth.base_ns, rel=0.1)
    assert fit.step_time.prefill_token_ns == pytest.approx(truth.prefill_token_ns, rel=0.1)
    assert fit.step_time.decode_ns == pytest.approx(truth.decode_ns, rel=0.15)
    assert 0.03 < fit.error < 0.08, "the noise is what nobody can predict"
    assert 0 < fit.num_stalls < 0.04 * fit.num_steps


def test_the_schedulers_own_terms_are_fitted_for_themselves() -> None:
    truth = StepTime(8_000_000, 50_000, 500_000, 640_000)
    draw = random.Random(1)
    fit = fit_live(noisy(truth, draw, served(draw)), 32)
    found = fit.prediction
    assert found.base == pytest.approx(8_000_000, rel=0.05)
    assert found.per_request == pytest.approx(500_000, rel=0.1)
    assert found.per_block == pytest.approx(640 * 32, rel=0.1)
    assert fit.prediction_error < 0.08


def test_a_term_stays_only_if_it_predicts_better() -> None:
    draw = random.Random(2)
    straight = StepTime(8_000_000, 50_000, 500_000, 640_000)
    plain = fit_live(noisy(straight, draw, served(draw)), 16).step_time
    assert (plain.prefill_square_ns, plain.token_ns, plain.mixed_decode_ns) == (0, 0, 0)
    curved = replace(straight, prefill_token_ns=5_000, prefill_square_ns=100)
    assert fit_live(noisy(curved, draw, served(draw)), 16).step_time.prefill_square_ns > 50


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda step: step.num_prefill_tokens == 0, "0 steps computed prompts, it takes 20"),
        (lambda step: step.num_prefill_tokens > 0, "0 steps only decoded, it takes 50"),
        (
            lambda step: step.num_decodes in (0, 2) or step.num_prefill_tokens,
            "unlike numbers of requests at a time: it was 2 to 2",
        ),
        (
            lambda step: step.num_prefill_tokens in range(1, 33) or step.num_prefill_tokens == 0,
            "prompts of unlike lengths: all steps had 1",
        ),
        (
            lambda step: (
                not step.num_decodes
                or step.num_prefill_tokens
                or 100 < step.num_context_tokens / step.num_decodes < 200
            ),
            "short and long requests: all decoded at ",
        ),
    ],
)
def test_what_was_not_covered_is_refused_and_named(keep, said: str) -> None:
    steps = [each for each in served(random.Random(4)) if keep(each)]
    with pytest.raises(CheckError) as caught:
        fit_live([replace(each, duration_ns=1e6) for each in steps], 16)
    assert said in str(caught.value)
    assert caught.value.remedy == "llx calibrate --load"


def test_contexts_near_each_other_tell_nothing_however_unlike_in_proportion() -> None:
    draw = random.Random(6)
    steps = [step([draw.randint(10, 200)] * draw.choice([1, 4, 8]), 0) for _ in range(200)]
    steps += [step([], draw.randint(10, 500)) for _ in range(60)]
    (missing,) = cover(steps).missing
    assert missing.startswith("short and long requests: all decoded at 1")
    assert cover([*steps, *(step([500], 0) for _ in range(6))]).missing == ()


def test_one_odd_step_covers_nothing() -> None:
    alike = [step([100], 0)] * 100 + [step([], 50)] * 30
    odd = [*alike, step([4000] * 20, 0), step([], 2000)]
    assert cover(odd).missing == cover(alike).missing != ()


def moves(draw: random.Random, transport: str, sizes: list[int]) -> list[MoveSample]:
    """2 ms a copy and 1 GB/s, give or take a tenth."""
    return [
        MoveSample(transport, copies, size, (0.002 * copies + size / 1e9) * draw.uniform(0.9, 1.1))
        for size in sizes
        for copies in (2, 3)
    ]


def test_links_are_found_again_for_each_transport() -> None:
    draw = random.Random(5)
    sizes = [1 << bits for bits in range(18, 28)]
    fits, missing = fit_links([*moves(draw, "shm", sizes), *moves(draw, "tcp", [1 << 20] * 2)])
    (shm,) = fits
    assert (shm.transport, shm.num_moves) == ("shm", 20)
    assert shm.bytes_per_s == pytest.approx(1e9, rel=0.1)
    assert shm.overhead_s == pytest.approx(0.002, rel=0.1)
    assert missing == ["tcp: 4 moves, it takes 8"]
    assert fit_links(moves(draw, "tcp", [1 << 20] * 5))[1] == [
        "tcp: moves of unlike sizes, all were about 524288 B"
    ]
    assert fit_links([]) == ([], ["no move was seen"])
