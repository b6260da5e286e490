"""The waves of `llx calibrate --load`: within what an instance takes, and unlike each other."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llx.bench.calibration_load import Limits, Pace, Wave, waves


def first(limits: Limits, pace: Pace, count: int = 60, instances: int = 2) -> list[Wave]:
    return list(itertools.islice(waves(limits, instances, lambda: pace), count))


@given(
    st.integers(64, 8192),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(256, 20_000),
)
def test_no_wave_is_more_than_an_instance_takes(
    longest: int, at_once: int, times: int, tokens: int
) -> None:
    limits = Limits(longest, longest * times, at_once)
    for wave in first(limits, Pace(tokens, 0.01)):
        assert len(wave.requests) <= 2 * at_once
        for prompt, outputs in wave.requests:
            assert prompt >= 1
            assert prompt + outputs <= longest
        assert sum(prompt for prompt, _ in wave.requests) <= 2 * max(tokens, 8 * at_once)


def test_lengths_and_batches_are_unlike_as_a_fit_needs_them() -> None:
    found = first(Limits(2048, 32_000, 32), Pace(4000, 0.01))
    assert {len(each.requests) // 2 for each in found} == {1, 2, 4, 8, 16, 32}
    lengths = sorted(prompt for each in found for prompt, _ in each.requests)
    assert lengths[len(lengths) // 10] * 8 < lengths[-len(lengths) // 50]
    assert {each.gap_s > 0 for each in found} == {True, False}
