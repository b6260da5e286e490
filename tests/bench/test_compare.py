import random
from array import array
from dataclasses import replace

import pytest

from llx.bench.compare import Verdict, compare, parse_bound
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Run, write_run
from llx.bench.summary import percentile
from llx.errors import ConfigError


@pytest.fixture
def runs(tmp_path):
    """Makes runs whose TTFT is 100 ms on average, times a factor."""

    def make(
        name, factor, repetitions=4, seed=1, throughput=10.0, completed=60, preemptions=(), **more
    ):
        (tmp_path / "runs").mkdir(exist_ok=True)
        counts = [*preemptions, *[None] * repetitions]
        return [
            one(name, factor, n, seed + n, throughput, completed, counts[n], more)
            for n in range(repetitions)
        ]

    def one(name, factor, repetition, seed, throughput, completed, preemptions, more) -> Run:
        draw, noise = random.Random(seed), random.Random(f"{name} {seed}")
        lines = []
        for number in range(60):
            ttft = draw.uniform(0.05, 0.15) * factor * noise.uniform(0.95, 1.05)
            kind = "high" if number % 4 == 0 else ""
            ttft *= 0.5 if kind and name == "favouring" else 1.0
            record = Record(
                number, 0.1 * number, 8, 3, kind, first_at=0.1 * number + ttft, num_outputs=3,
                last_at=0.1 * number + ttft + 0.02, gaps_us=array("I", [10_000, 10_000]),
                outcome=Outcome.OK,
            )  # fmt: skip
            lines.append(record.as_line(0.0))
        mine = {key: values[repetition] for key, values in more.items()}
        summary = {
            "llx_variant": name, "llx_repetition": repetition, "llx_seed": seed,
            "llx_is_whole": True, "completed": completed, "llx_preemptions": preemptions,
            "llx_classes": {"high": {"completed": 15, "request_throughput": 2.5, **mine}},
            "request_throughput": throughput * noise.uniform(0.99, 1.01),
            **mine,
        }  # fmt: skip
        return write_run(tmp_path, summary, lines, [], [])

    return make


def figures(ratios):
    return {each.name: each for each in ratios}


def test_a_ratio_and_its_interval(runs):
    found = figures(compare(runs("a", 1.0), runs("b", 1.2), {}))
    ttft = found["mean_ttft"]
    assert ttft.base == pytest.approx(100, rel=0.1)
    assert ttft.low < ttft.ratio < ttft.high
    assert 1.15 < ttft.low < 1.2 < ttft.high < 1.25
    assert found["median_tpot"].ratio == pytest.approx(1)
    assert "request_goodput" not in found


def test_the_same_seed_gives_the_same_interval(runs):
    a, b = runs("a", 1.0), runs("b", 1.2)
    assert compare(a, b, {}) == compare(a, b, {})


@pytest.mark.parametrize(
    ("factor", "bound", "verdict"),
    [(1.2, 1.1, Verdict.BROKEN), (1.2, 1.3, Verdict.HOLDS), (1.2, 1.2, Verdict.UNCLEAR)],
)
def test_a_bound_of_a_latency(runs, factor, bound, verdict):
    found = compare(runs("a", 1.0), runs("b", factor), {"mean_ttft": bound})
    assert figures(found)["mean_ttft"].verdict is verdict
    assert figures(found)["p99_ttft"].verdict is Verdict.NONE


@pytest.mark.parametrize(
    ("throughput", "verdict"), [(8.0, Verdict.BROKEN), (9.9, Verdict.HOLDS), (9.0, Verdict.UNCLEAR)]
)
def test_of_a_rate_more_is_better(runs, throughput, verdict):
    found = compare(
        runs("a", 1.0), runs("b", 1.0, throughput=throughput), {"request_throughput": 0.9}
    )
    assert figures(found)["request_throughput"].verdict is verdict


def test_other_seeds_cannot_be_compared(runs):
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(runs("a", 1.0), runs("b", 1.0, seed=50), {})


def test_bounds_are_read():
    assert parse_bound("p99_ttft=1.05") == ("p99_ttft", 1.05)
    assert parse_bound("p99_ttft_ms=2") == ("p99_ttft", 2.0)


@pytest.mark.parametrize("text", ["p99_ttft", "x=1", "p99_ttft=0", "p99_ttft=much", ""])
def test_what_is_no_bound(text):
    with pytest.raises(ConfigError, match="is no bound"):
        parse_bound(text)


def test_few_repetitions_break_no_bound(runs):
    found = compare(
        runs("a", 1.0, repetitions=2), runs("b", 9.0, repetitions=2), {"mean_ttft": 1.1}
    )
    assert figures(found)["mean_ttft"].verdict is Verdict.UNCLEAR
    assert figures(found)["mean_ttft"].low > 8


def test_who_loses_requests_is_not_judged_by_the_rest(runs):
    lossy = runs("b", 0.5, completed=50)
    found = figures(compare(runs("a", 1.0), lossy, {"p99_ttft": 1.0, "request_throughput": 0.9}))
    assert found["p99_ttft"].verdict is Verdict.UNCLEAR
    assert found["request_throughput"].verdict is Verdict.HOLDS


def test_preemptions_are_compared_by_their_means(runs):
    base = runs("a", 1.0, preemptions=[8, 0, 4, 8])
    other = runs("b", 1.0, preemptions=[1, 0, 2, 2])
    found = figures(compare(base, other, {"preemptions": 0.9}))["preemptions"]
    assert (found.base, found.other, found.ratio) == (5, 1.25, 0.25)
    assert found.verdict is Verdict.HOLDS
    assert parse_bound("preemptions=1") == ("preemptions", 1.0)


def test_no_preemptions_at_all_are_no_better_and_no_worse(runs):
    none, some = runs("a", 1.0, preemptions=[0] * 4), runs("b", 1.0, preemptions=[0, 0, 1, 0])
    found = figures(compare(none, none, {}))["preemptions"]
    assert (found.ratio, found.low, found.high) == (1, 1, 1)
    found = figures(compare(none, some, {}))["preemptions"]
    assert (found.low, found.high) == (1, float("inf"))
    assert "preemptions" not in figures(compare(runs("c", 1.0), some, {}))


def test_gaps_between_tokens_are_compared_by_medians_of_runs(runs):
    base = runs("a", 1.0, p99_itl_ms=[10, 20, 30, 12])
    other = runs("b", 1.0, p99_itl_ms=[20, 40, 60, 24])
    found = figures(compare(base, other, {"p99_itl": 1.9}))["p99_itl"]
    assert (found.base, found.other, found.ratio) == (16, 32, 2)
    assert found.verdict is Verdict.BROKEN, "less is better"
    assert figures(compare(base, other, {}, "high"))["p99_itl"].ratio == 2
    lossy = runs("c", 1.0, completed=50, p99_itl_ms=[1] * 4)
    assert figures(compare(base, lossy, {"p99_itl": 1}))["p99_itl"].verdict is Verdict.UNCLEAR
    assert parse_bound("p99_itl_ms=2") == ("p99_itl", 2.0)


def test_failures_are_compared_by_their_means(runs):
    base, other = runs("a", 1.0, failed=[0, 0, 4, 0]), runs("b", 1.0, failed=[2, 0, 6, 0])
    found = figures(compare(base, other, {}))["failed"]
    assert (found.base, found.other, found.ratio) == (1, 2, 2)
    assert figures(compare(base, other, {}, "high"))["failed"].ratio == 2


def test_one_class_alone(runs):
    base, other = runs("a", 1.0, preemptions=[1] * 4), runs("favouring", 1.0)
    high = figures(compare(base, other, {}, "high"))
    assert high["median_ttft"].ratio == pytest.approx(0.5, rel=0.1)
    assert figures(compare(base, other, {}, ""))["median_ttft"].ratio == pytest.approx(1, rel=0.1)
    assert high["request_throughput"].base == 2.5
    assert "preemptions" not in high, "instances count them without regard to classes"
    with pytest.raises(ConfigError, match="of class 'low'"):
        compare(base, other, {}, "low")


def test_a_tail_is_that_of_all_requests_together(runs):
    ones, twos = runs("a", 1.0, 6), runs("b", 1.2, 6)
    ttfts = [
        sorted(e.ttft_s * 1000 for run in side for e in run.records()) for side in (ones, twos)
    ]
    found = figures(compare(ones, twos, {}))["p99_ttft"]
    assert found.base == pytest.approx(percentile(ttfts[0], 99))
    assert found.other == pytest.approx(percentile(ttfts[1], 99))


def test_enough_repetitions_are_resampled_whole(runs):
    """Six repetitions with the same latencies say the same, whichever are drawn."""
    [one], [two] = runs("a", 1.0, 1), runs("b", 1.2, 1)

    def repeated(run, count):
        return [replace(run, summary={**run.summary, "llx_seed": n}) for n in range(count)]

    many = figures(compare(repeated(one, 6), repeated(two, 6), {}))["p99_ttft"]
    assert many.low == pytest.approx(many.high)
    few = figures(compare(repeated(one, 4), repeated(two, 4), {}))["p99_ttft"]
    assert few.low < few.high
