import itertools

import pytest

from llx.core.model import Nanos
from llx.errors import ConfigError
from llx.sim.supply import Mix, Source, Trace, supply_of
from llx.sim.workload import HIGH, NORMAL, generated

pytestmark = pytest.mark.sim

SECOND = 10**9


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = (
        f'{{"timestamp": {at * (at + 1) // 2}, "input_length": {at}, "output_length": 7}}\n'
        for at in range(1, 21)
    )
    path.write_text("".join(lines))
    return Trace(path)


def test_a_mix_is_the_papers_workload():
    source = Source(Mix("s-l"), NORMAL, count=50, shares=((HIGH, 0.3),))
    assert supply_of(source, 10**6).requests(4, 5.0) == generated("s-l", 5.0, 50, 4, high_share=0.3)


def test_a_trace_has_its_own_times(trace):
    requests = supply_of(Source(trace, NORMAL), 100).requests(0, None)
    assert [each.num_prompt for each in requests] == list(range(1, 21))
    assert [each.arrival for each in requests][:4] == [0, 2 * SECOND, 5 * SECOND, 9 * SECOND]


def test_a_trace_is_scaled(trace):
    quick = Trace(trace.path, scale_rate=4.0)
    requests = supply_of(Source(quick, NORMAL, count=3), 100).requests(0, None)
    assert [each.arrival for each in requests] == [0, SECOND // 2, 5 * SECOND // 4]


def test_seeds_take_stretches_of_a_trace(trace):
    supply = supply_of(Source(trace, NORMAL, count=5), 100)
    runs = [supply.requests(seed, None) for seed in range(6)]
    firsts = [each[0].num_prompt for each in runs]
    assert firsts[0] == 1
    assert len(set(firsts)) > 2
    for run in runs:
        assert run[0].arrival == 0
        gaps = [b.arrival - a.arrival for a, b in itertools.pairwise(run)]
        assert gaps == [each.num_prompt * SECOND for each in run[1:]]
    assert runs[3] == supply.requests(3, None)


def test_a_rate_draws_arrivals_for_the_lengths_of_a_trace(trace):
    supply = supply_of(Source(trace, NORMAL), 100)
    one, other = supply.requests(1, 2.0), supply.requests(2, 2.0)
    assert [each.num_prompt for each in one] == [each.num_prompt for each in other]
    assert [each.arrival for each in one] != [each.arrival for each in other]


def test_what_is_too_long_is_left_out_and_counted(trace):
    supply = supply_of(Source(trace, NORMAL), 17)
    assert (supply.num_left_out, supply.count) == (10, 10)
    with pytest.raises(ConfigError, match="no request"):
        supply_of(Source(trace, NORMAL), 7)


def test_shares_are_of_all_requests(trace):
    source = Source(Mix("s-s"), NORMAL, count=2000, shares=(("a", 0.5), ("b", 0.3)))
    requests = supply_of(source, 10**6).requests(0, 1.0)
    counts = {name: sum(each.priority_class == name for each in requests) for name in "ab"}
    assert counts["a"] == pytest.approx(1000, abs=80)
    assert counts["b"] == pytest.approx(600, abs=80)


def test_seeds_that_make_no_difference_are_known(trace):
    assert not supply_of(Source(trace, NORMAL), 100).has_seeds(None)
    assert supply_of(Source(trace, NORMAL), 100).has_seeds(1.0)
    assert supply_of(Source(trace, NORMAL, count=5), 100).has_seeds(None)
    assert supply_of(Source(trace, NORMAL, shares=((HIGH, 0.1),)), 100).has_seeds(None)


def test_lengths_without_times_need_a_rate(tmp_path):
    path = tmp_path / "counts"
    path.write_text('{"input_toks": 3, "output_toks": 4}\n')
    supply = supply_of(Source(Trace(path), NORMAL), 100)
    assert [each.arrival > 0 for each in supply.requests(0, 1.0)] == [True]
    with pytest.raises(ConfigError, match="no times") as caught:
        supply.requests(0, None)
    assert "rate" in caught.value.remedy


def test_a_rate_is_scaled_by_something(trace):
    with pytest.raises(ConfigError, match="positive"):
        supply_of(Source(Trace(trace.path, scale_rate=0.0), NORMAL), Nanos(100))
