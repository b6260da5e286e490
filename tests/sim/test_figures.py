import math
import random
import statistics

import pytest

from llx.core.model import ClassName, Nanos, Tokens
from llx.core.scheduler.commands import Refusal
from llx.sim.figures import interval, rows_of
from llx.sim.plan import Goal
from llx.sim.record import Record, Result, Spread, class_result
from llx.sim.samples import ALL, Run, Samples, percentile, samples_by_class
from llx.sim.workload import SimRequest

pytestmark = pytest.mark.sim

A, B = ClassName("a"), ClassName("b")
MS = 1_000_000


def record(name, first, last, *, outputs=11, refusal=None):
    request = SimRequest(Nanos(1000 * MS), Tokens(5), Tokens(outputs), name)
    out = Record(request, first_at=Nanos((1000 + first) * MS), ended_at=Nanos((1000 + last) * MS))
    out.refusal = refusal
    return out


RECORDS = [
    record(A, 100, 1100),
    record(A, 300, 800),
    record(B, 900, 1900),
    record(B, 50, 50, outputs=1),
    record(B, 0, 0, refusal=Refusal.QUEUE_FULL),
]


def run(policy, seed, moves, records=RECORDS, goals=None, rate=1.0):
    overall = class_result(records)
    result = Result(seed, overall, num_moves=moves, duration_s=2.0, downtime=Spread(0, 0, 0))
    return Run(policy, rate, seed, result, samples_by_class(records, goals or {}))


def test_samples():
    all_of_them = samples_by_class(RECORDS, {})[ALL]
    assert (all_of_them.num_requests, all_of_them.num_refused) == (5, 1)
    assert all_of_them.request == [0.05, 0.8, 1.1, 1.9]
    assert all_of_them.prefill == [0.05, 0.1, 0.3, 0.9]
    assert all_of_them.decode == [0.05, 0.1, 0.1]
    assert all_of_them.num_good is None


def test_classes_are_told_apart_where_there_are_several():
    assert [row.priority_class for row in rows_of([run("x", 0, 1)])] == ["all", "a", "b"]
    assert [row.priority_class for row in rows_of([run("x", 0, 1, RECORDS[:2])])] == ["all"]


@pytest.mark.parametrize(
    ("goals", "good"),
    [
        ({}, None),
        ({A: Goal(0.2)}, 3),
        ({A: Goal(tpot_s=0.06)}, 3),
        ({A: Goal(0.1, 0.1), B: Goal(0.8, 0.01)}, 2),
    ],
)
def test_goodput_is_what_keeps_every_promise_of_its_class(goals, good):
    assert Samples.of(RECORDS, goals).num_good == good


def test_percentiles_are_the_nearest_rank():
    values = [float(each) for each in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert percentile([], 0.5) == 0
    assert percentile([3.0], 0.99) == 3


def test_rows():
    goals = {A: Goal(0.2)}
    runs = [run(policy, seed, 4 + seed, goals=goals) for policy in ("x", "y") for seed in (0, 1)]
    rows = rows_of(runs)
    assert [(row.policy, row.priority_class) for row in rows] == [
        (policy, name) for policy in ("x", "y") for name in ("all", "a", "b")
    ]
    assert rows[0].requests == 10
    assert rows[0].figures["moves"].mean == 4.5
    assert rows[0].figures["goodput_per_s"].mean == 1.5
    assert rows[0].figures["good_share"].mean == 0.6
    assert "moves" not in rows[1].figures


def test_ratios_are_seed_by_seed_to_the_first_policy_of_the_rate():
    runs = [
        run(policy, seed, moves, rate=rate)
        for rate, policy, seed, moves in [
            (1.0, "x", 0, 2), (1.0, "x", 1, 8), (1.0, "y", 0, 1), (1.0, "y", 1, 4),
            (2.0, "x", 0, 3), (2.0, "x", 1, 3), (2.0, "y", 0, 6), (2.0, "y", 1, 6),
        ]
    ]  # fmt: skip
    moves = [row.figures["moves"] for row in rows_of(runs) if row.priority_class == ALL]
    assert [each.ratio and each.ratio.mean for each in moves] == [None, 0.5, None, 2.0]
    assert moves[1].ratio.low == moves[1].ratio.high == 0.5
    assert moves[0].low < 2 < 8 < moves[0].high


def test_nothing_is_divided_by_nothing():
    rows = rows_of([run("x", 0, 0), run("y", 0, 3)])
    assert rows[3].figures["moves"].ratio is None


def test_one_seed_has_no_interval():
    assert interval([3.0]).high is None


@pytest.mark.parametrize("count", [2, 5, 60])
def test_nineteen_of_twenty_intervals_hold_the_truth(count):
    draw = random.Random(count)
    held = 0
    for _ in range(2000):
        seen = interval([draw.gauss(10, 2) for _ in range(count)])
        held += seen.low <= 10 <= seen.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_an_interval_by_hand():
    seen = interval([1.0, 2.0, 3.0])
    half = 4.303 * statistics.stdev([1, 2, 3]) / math.sqrt(3)
    assert (seen.low, seen.high) == pytest.approx((2 - half, 2 + half))
