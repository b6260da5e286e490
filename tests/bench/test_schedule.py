import gzip
import itertools

import pytest
from pydantic import ValidationError

from llx.bench.scenario import Arrivals, Ramp, Workload, load_scenario
from llx.bench.schedule import arrival_times, make_schedule
from llx.errors import ConfigError

FIXED = {"arrivals": {"rate": 10}, "lengths": {"prompt": 20, "output": 5}}


def workload(**more):
    return Workload.model_validate({"requests": 40, **FIXED, **more})


def test_a_seed_makes_the_schedule():
    made = workload(
        lengths={"prompt": {"least": 3, "most": 30}, "output": 4}, classes={"high": 0.5}
    )
    assert make_schedule(made, 1) == make_schedule(made, 1)
    assert make_schedule(made, 1) != make_schedule(made, 2)
    lengths = {each.num_prompt for each in make_schedule(made, 1)}
    assert min(lengths) >= 3
    assert max(lengths) <= 30
    assert len(lengths) > 5
    assert {each.priority_class for each in make_schedule(made, 1)} == {"high", ""}


def test_kinds_of_requests():
    long = {"share": 1, "prompt": 900, "output": {"least": 10, "most": 20}}
    short = {"share": 3, "prompt": {"least": 16, "most": 64}, "output": 300}
    made = make_schedule(workload(requests=400, lengths={"kinds": [long, short]}), 1)
    pairs = [(each.num_prompt, each.num_outputs) for each in made]
    num_long = sum(prompt == 900 and 10 <= outputs <= 20 for prompt, outputs in pairs)
    num_short = sum(16 <= prompt <= 64 and outputs == 300 for prompt, outputs in pairs)
    assert num_long + num_short == 400
    assert 70 < num_long < 130
    assert made != make_schedule(workload(requests=400, lengths={"kinds": [long, short]}), 2)


def test_a_rate_stretches_the_same_schedule():
    slow, fast = make_schedule(workload(), 1), make_schedule(workload(), 1, rate=20)
    for one, other in zip(slow, fast, strict=True):
        assert one.at_s == pytest.approx(2 * other.at_s)
        assert one.segments == other.segments


def test_a_metronome():
    times = arrival_times(Arrivals(rate=4, cv=0), 1, 3)
    assert times == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(("low", "full"), [(2.0, 10.0), (10.0, 2.0), (5.0, 5.0)])
def test_a_ramp(low, full):
    arrivals = Arrivals(rate=full, cv=0, ramp=Ramp(from_rate=low, over_s=10))
    times = arrival_times(arrivals, 1, 200)
    in_ramp = (low + full) / 2 * 10
    assert sum(each <= 10 for each in times) == pytest.approx(in_ramp, abs=1)
    assert times == sorted(times)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] == pytest.approx(1 / low, rel=0.3)
    assert gaps[-1] == pytest.approx(1 / full)


def test_phases_follow_each_other_again_and_again():
    phases = [{"share": 0.5, "for_s": 10}, {"share": 1, "for_s": 5}]
    arrivals = Arrivals.model_validate({"rate": 4, "cv": 0, "phases": phases})
    times = arrival_times(arrivals, 1, 100)
    assert times == sorted(times)
    for start in (0, 15):
        in_low = sum(start < each <= start + 10 for each in times)
        in_full = sum(start + 10 < each <= start + 15 for each in times)
        assert (in_low, in_full) == (20, 20)
    assert times[0] == 0.5
    assert times[20] == pytest.approx(10.25)
    assert len([each for each in times if each <= 30]) == 80
    faster = arrivals.model_copy(update={"rate": 8})
    assert sum(each <= 15 for each in arrival_times(faster, 1, 100)) == 80
    with pytest.raises(ValidationError, match="either ramp or phases"):
        Arrivals(rate=4, ramp=Ramp(from_rate=1, over_s=1), phases=arrivals.phases)


def test_sessions_repeat_what_was_said():
    made = make_schedule(workload(requests=9, sessions={"turns": 3, "gap_s": 100}), 1)
    assert len(made) == 9
    first, second, third = made[0], made[3], made[6]
    assert (first.num_prompt, second.num_prompt, third.num_prompt) == (20, 45, 70)
    assert second.segments[0] == first.segments[0]
    assert third.segments[:3] == (*second.segments[:1], third.segments[1], second.segments[2])
    assert third.segments[:3] == second.segments
    assert second.at_s == pytest.approx(first.at_s + 100)


def test_prefixes_are_shared_and_a_session_keeps_its_own():
    made = make_schedule(workload(prefixes={"count": 2, "tokens": 8}), 1)
    assert len({each.segments[0] for each in made}) == 2
    assert {each.num_prompt for each in made} == {28}
    half = make_schedule(workload(prefixes={"count": 2, "tokens": 8, "share": 0.5}), 1)
    assert {each.num_prompt for each in half} == {20, 28}
    told = make_schedule(
        workload(prefixes={"count": 40, "tokens": 8}, sessions={"turns": 2, "gap_s": 100}), 1
    )
    assert [each.segments[0] for each in told[:20]] == [each.segments[0] for each in told[20:]]


def test_scale_and_longest():
    made = make_schedule(workload(scale=2, longest=30), 1)
    assert {(each.num_prompt, each.num_outputs) for each in made} == {(30, 10)}
    long = make_schedule(workload(longest=22, sessions={"turns": 2, "gap_s": 1}), 1)
    assert max(each.num_prompt for each in long) == 22


def test_a_trace_beside_its_scenario(tmp_path):
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        for number in range(5):
            file.write(f'{{"timestamp": {number}, "input_length": 9, "output_length": 3}}\n')
    (tmp_path / "s.yaml").write_text(
        "name: t\nworkload:\n  requests: 3\n  trace: {file: t.jsonl.gz, speed: 2}\n"
    )
    made = make_schedule(load_scenario(tmp_path / "s.yaml").workload, 1)
    assert [(e.at_s, e.num_prompt, e.num_outputs) for e in made] == [
        (0, 9, 3), (0.5, 9, 3), (1.0, 9, 3),
    ]  # fmt: skip


def test_an_empty_trace(tmp_path):
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    made = Workload.model_validate({"requests": 3, "trace": {"file": str(tmp_path / "t.csv")}})
    with pytest.raises(ConfigError, match="no requests"):
        make_schedule(made, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a b", "name"),
        ("name: a\nworkload: {requests: 1}", "either arrivals and lengths, or trace"),
        ("name: a\nworklod: {requests: 1}", 'unknown key "worklod"'),
        (
            "name: a\nworkload: {requests: 1, arrivals: {rate: 1}, lengths: {mix: x-x}}",
            "no mix 'x-x'",
        ),
        (
            "name: a\nworkload: {requests: 1, trace: {file: x, format: y}}",
            "no trace format 'y'",
        ),
        (
            (
                "name: a\nworkload: {requests: 1, arrivals: {rate: 1}, lengths: {mix: s-s}}\n"
                "variants: [{name: b}, {name: b}]"
            ),
            "the same name",
        ),
        (
            (
                "name: a\nworkload: {requests: 1, arrivals: {rate: 1}, lengths: "
                "{mix: s-s, kinds: [{share: 1, prompt: 1, output: 1}]}}"
            ),
            "either prompt and output, or kinds, or mix",
        ),
        (
            (
                "name: a\nworkload: {requests: 1, arrivals: {rate: 1}, lengths: {mix: s-s}}\n"
                "variants: [{name: b, served_as: {urgent: normal}}]"
            ),
            "the workload has no class urgent",
        ),
    ],
)
def test_what_makes_no_sense(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_scenario(tmp_path / "s.yaml")
