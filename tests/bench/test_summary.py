from array import array

import pytest

from llx.bench.record import Outcome, Record
from llx.bench.scenario import Slo
from llx.bench.summary import busiest_second, by_class, most_at_once, percentile, summarise


def record(number, planned, first, gaps_ms=(), outcome=Outcome.OK, **more):
    last = first + sum(gaps_ms) / 1000
    return Record(
        number, planned, 10, len(gaps_ms) + 1, sent_at=planned + 0.001, first_at=first,
        last_at=last, num_outputs=len(gaps_ms) + 1, usage_outputs=len(gaps_ms) + 1,
        gaps_us=array("I", [round(each * 1000) for each in gaps_ms]), outcome=outcome, **more,
    )  # fmt: skip


RECORDS = [
    record(0, 0.0, 0.1, [10, 20, 30]),
    record(1, 1.0, 1.3, [40], priority_class="high"),
    record(2, 2.0, 2.1, [], outcome=Outcome.FAILED),
    record(3, 3.0, 3.1, [10], outcome=Outcome.CUT),
]


def test_figures():
    found = summarise(RECORDS, 4.0, Slo(ttft_ms=200))
    assert (found["completed"], found["failed"], found["llx_cut"]) == (2, 1, 1)
    assert found["total_output_tokens"] == 6
    assert found["output_throughput"] == 1.5
    assert found["request_throughput"] == 0.5
    assert found["request_goodput"] == 0.25
    assert found["mean_ttft_ms"] == pytest.approx(200)
    assert found["median_tpot_ms"] == pytest.approx(30)
    assert found["mean_itl_ms"] == pytest.approx(25)
    assert found["p99_itl_ms"] == pytest.approx(39.7, abs=0.01)
    assert found["mean_e2el_ms"] == pytest.approx((160 + 340) / 2)
    assert found["max_llx_lateness_ms"] == pytest.approx(1)


def test_an_answer_of_one_token_has_no_tpot():
    found = summarise([record(0, 0.0, 0.1)], 1.0, Slo(tpot_ms=1))
    assert found["mean_tpot_ms"] is None
    assert found["request_goodput"] == 1


def test_what_was_not_counted_alike_shows():
    odd = record(0, 0.0, 0.1, [10])
    odd.usage_outputs, odd.max_outputs = 3, 9
    found = summarise([odd], 1.0, Slo())
    assert (found["llx_miscounted"], found["llx_short_answers"]) == (1, 1)


def test_classes():
    found = by_class(RECORDS, 4.0, Slo())
    assert {name: each["completed"] for name, each in found.items()} == {"": 1, "high": 1}


def test_nothing_at_all():
    found = summarise([], 0.0, Slo())
    assert found["request_throughput"] == 0
    assert found["p99_ttft_ms"] is None


def test_most_at_once():
    assert most_at_once([record(n, n / 100, 1.0) for n in range(7)]) == 7
    assert most_at_once([record(n, float(n), n + 0.5) for n in range(7)]) == 1


def test_the_busiest_second():
    one, two = record(0, 0.0, 0.5, [100, 600, 100]), record(1, 0.0, 1.9, [50, 500])
    assert busiest_second([one, two]) == 4
    assert busiest_second([]) == 0


def test_percentiles_are_numpy_s():
    assert percentile([1.0, 2.0, 4.0], 50) == 2
    assert percentile([1.0, 2.0], 75) == 1.75
    assert percentile([5.0], 99) == 5
