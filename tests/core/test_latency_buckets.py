"""Latencies counted in buckets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.latency_buckets import bucket_of, quantile_s


@given(st.floats(2e-5, 1000))
def test_a_latency_is_found_again_within_five_per_cent(seconds):
    assert quantile_s({bucket_of(seconds): 3}, 0.5) == pytest.approx(seconds, rel=0.05)


def test_quantiles_and_what_is_beyond_all_buckets():
    counts = {bucket_of(0.010): 98, bucket_of(0.5): 2}
    assert quantile_s(counts, 0.5) == pytest.approx(0.010, rel=0.05)
    assert quantile_s(counts, 0.99) == pytest.approx(0.5, rel=0.05)
    assert quantile_s({}, 0.5) is None
    assert quantile_s({3: 0}, 0.5) is None
    assert bucket_of(0.0) == bucket_of(-1.0) == 0
    assert bucket_of(1e9) == bucket_of(1e6)
    assert math.isfinite(quantile_s({bucket_of(1e9): 1}, 0.5))
