"""`llx bench run --simulator`: a scenario in virtual time leaves what a live run leaves."""

import json
from pathlib import Path

import pytest
import yaml

from llx.bench.run_directory import read_results
from llx.bench.scenario import load_scenario
from llx.bench.simulated import SimulatedBench, run_simulated
from llx.core.model import PoolName
from llx.core.scheduler.config import PoolConfig, PriorityClass
from llx.errors import ConfigError
from llx.scheduling_settings import (
    SchedulingSettings,
    installed_policies,
    settings_of,
    with_changed_rules,
    with_rules,
)
from llx.sim.flags import Flags, planned
from llx.sim.presets import POLICIES
from llx.sim.workload import NORMAL
from tests.cli.conftest import head, llx  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples/sim/kv-bound.yaml"
SMALL = {
    "name": "small",
    "workload": {
        "requests": 60,
        "arrivals": {"rate": 4},
        "lengths": {
            "kinds": [
                {"share": 0.8, "prompt": 20, "output": {"least": 100, "most": 300}},
                {"share": 0.2, "prompt": {"least": 1400, "most": 1700}, "output": 8},
            ]
        },
        "classes": {"urgent": 0.2},
    },
    "variants": [{"name": "still", "policy": {"rescheduling.steps": []}}, {"name": "moves"}],
    "repetitions": 2,
    "slo": {"ttft_ms": 1000},
}


@pytest.fixture
def scenario(tmp_path):
    def write(**more):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **more}))
        return path

    return write


def bench(path, out):
    cluster = planned(CLUSTER, Flags()).variants[0].cluster
    return SimulatedBench(load_scenario(path), cluster, installed_policies(), out, "m")


def test_a_run_leaves_what_a_live_one_does(scenario, tmp_path):
    told = []
    run_simulated(bench(scenario(), tmp_path / "out"), lambda now: told.append(now.done))
    results = read_results(tmp_path / "out")
    assert results.variants == ["still", "moves"]
    assert max(told) == 60
    for run in results.runs:
        records = run.records()
        assert [each.number for each in records] == list(range(60))
        assert all(each.num_outputs == each.max_outputs for each in records)
        assert all(each.planned_at <= each.first_at <= each.last_at for each in records)
        assert run.summary["backend"] == "simulator"
        assert run.summary["completed"] == 60
        assert run.figure("p99_itl_ms") is None
        assert run.figure("max_output_tokens_per_s") is None
        assert {"urgent", ""} == set(run.summary["llx_classes"])
        sights = run.sights()
        assert len(sights[-1].instances) == 4
        assert max(each.blocks_used for sight in sights for each in sight.instances) > 40
        assert sights[-1].at_s >= records[-1].first_at


def test_rules_of_a_variant_hold_for_its_runs(scenario, tmp_path):
    run_simulated(bench(scenario(), tmp_path / "out"))
    results = read_results(tmp_path / "out")
    assert all(not run.moves() for run in results.of("still"))
    ended = [move for run in results.of("moves") for move in run.moves()]
    assert {each.outcome for each in ended} <= {"moved", "kept", "gone", "none"}
    assert all(each.ended_s is not None for each in ended)
    moved = [move for run in results.of("moves") for move in run.moves() if move.outcome == "moved"]
    assert moved
    for each in moved:
        assert each.source != each.target
        assert each.ended_s > each.begun_s
    assert any(each.downtime_ms for each in moved)
    for one, two in zip(results.of("still"), results.of("moves"), strict=True):
        lengths = [[(e.num_prompt, e.planned_at) for e in run.records()] for run in (one, two)]
        assert lengths[0] == lengths[1], "the same requests"


def test_instances_are_as_many_as_a_variant_says(scenario, tmp_path):
    workload = {
        "requests": 60,
        "arrivals": {
            "rate": 1.5, "cv": 0,
            "phases": [{"share": 0.1, "for_s": 50}, {"share": 1, "for_s": 50}],
        },
        "lengths": {"prompt": 192, "output": 320},
    }  # fmt: skip
    rules = {"scaling.high": 25, "scaling.sustain_s": 5, "scaling.cooldown_s": 5}
    variants = [
        {"name": "three", "instances": 3},
        {"name": "range", "instances": {"min": 1, "max": 4}, "policy": rules},
        {"name": "file"},
    ]
    path = scenario(workload=workload, variants=variants, repetitions=1)
    run_simulated(bench(path, tmp_path / "out"))
    three, range_, file = (
        run
        for name in ("three", "range", "file")
        for run in read_results(tmp_path / "out").of(name)
    )
    assert (three.figure("llx_instances"), file.figure("llx_instances")) == pytest.approx((3, 4))
    assert 1 < range_.figure("llx_instances") < 4
    counts = [len(each.instances) for each in range_.sights() if each.at_s]
    assert (counts[0], max(counts)) == (1, 4)
    assert {one.state for each in range_.sights() for one in each.instances} >= {
        "ready",
        "starting",
    }
    assert all(run.summary["completed"] == 60 for run in (three, range_, file))


def test_the_same_again_is_the_same(scenario, tmp_path):
    for name in ("one", "two"):
        run_simulated(bench(scenario(), tmp_path / name))
    one, two = (
        [(tmp_path / name / "runs/moves-1" / file).read_bytes() for file in FILES]
        for name in ("one", "two")
    )
    assert one == two


FILES = ("requests.jsonl", "timeline.jsonl", "migrations.jsonl")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"faults": [{"at_s": 1, "do": "drain", "instance": "m-0"}]}, "faults"),
        ({"variants": [{"name": "a", "url": "http://x"}]}, "url"),
        ({"variants": [{"name": "a", "extra_body": {"top_k": 1}}]}, "extra_body"),
        ({"variants": [{"name": "a", "policy": {"rescheduling.hast": 1}}]}, "rescheduling.hast"),
        ({"variants": [{"name": "a", "policy": {"dispatch": "oldest"}}]}, "oldest"),
        ({"variants": [{"name": "a", "policy": {"rescheduling.low": 9}}]}, "rescheduling.low"),
        ({"workload": {**SMALL["workload"], "scale": 2}}, "max_model_len of 2048"),
        ({"workload": {**SMALL["workload"], "classes": {"vip": 0.1}}}, "class vip"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_is_made(
    scenario, tmp_path, more, named
):
    with pytest.raises(ConfigError, match=named):
        run_simulated(bench(scenario(**more), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interruption_keeps_what_was_simulated(scenario, tmp_path):
    def interrupt(progress):
        if progress.turn == 2 and progress.done:
            raise KeyboardInterrupt

    long = {**SMALL["workload"], "requests": 200}
    with pytest.raises(KeyboardInterrupt):
        run_simulated(bench(scenario(workload=long), tmp_path / "out"), interrupt)
    first, second = sorted(read_results(tmp_path / "out").runs, key=lambda e: e.summary["llx_turn"])
    assert (first.summary["llx_is_whole"], first.summary["completed"]) == (True, 200)
    assert second.summary["llx_is_whole"] is False
    assert 0 < second.summary["completed"] < 200


@pytest.mark.slow
def test_from_the_command_line(llx, scenario, tmp_path):  # noqa: F811
    path = scenario(target={"simulator": str(CLUSTER)})
    done = llx("bench", "run", str(path), "--out", "out", "-o", "json")
    assert done.exit_code == 0, done.stderr
    assert {each["variant"] for each in json.loads(done.stdout)} == {"still", "moves"}
    done = llx("bench", "compare", "out:still", "out:moves")
    assert done.exit_code == 0, done.stderr
    done = llx("bench", "report", "out", "--html", "out.html")
    assert done.exit_code == 0, done.stderr
    done = llx("bench", "run", str(path), "--url", "http://x", "--simulator", str(CLUSTER))
    assert done.exit_code == 2
    assert "--simulator" in done.stderr


@pytest.mark.parametrize("name", POLICIES)
def test_a_section_made_of_a_pool_makes_that_pool(name):
    pool = POLICIES[name]
    again = with_rules(pool, settings_of(pool), can_move=True)
    steps = tuple(each for each in pool.rescheduling.steps if each != "drain")
    assert again.rescheduling.steps == steps
    assert with_changed_rules(pool, {}).rescheduling == pool.rescheduling


@pytest.mark.parametrize(
    ("steps", "now"),
    [
        (["balance", "preempt"], ("drain", "balance", "preempt")),
        (["preempt"], ("preempt", "drain")),
        ([], ("drain",)),
    ],
)
def test_instances_are_emptied_whatever_the_steps(steps, now):
    changed = with_changed_rules(POLICIES["llx"], {"rescheduling.steps": steps})
    assert changed.rescheduling.steps == now


def test_every_rule_survives_the_way_there_and_back():
    pool = PoolConfig(PoolName("m"), (PriorityClass(NORMAL, 0),))
    settings = SchedulingSettings.model_validate(
        {
            "dispatch": "freest",
            "binding": "immediate",
            "overtaking": 3,
            "growth_tokens": 2,
            "age_after_s": 7.5,
            "charge_expires_after_s": 1.5,
            "step_time": {
                "base_ms": 1.5,
                "per_prefill_token_us": 2.5,
                "per_request_us": 3.5,
                "per_block_us": 4.5,
            },
            "rescheduling": {
                "steps": ["balance"],
                "low": 1.0,
                "high": 9.0,
                "hysteresis": 0.5,
                "choice": "shortest",
                "rest_s": 1.5,
                "max_out": 3,
                "max_in": 4,
                "max_moves": 5,
                "retry_after_s": 0.25,
                "deadline_s": 6.5,
            },
        }
    )
    back = settings_of(with_rules(pool, settings, can_move=True))
    assert back.model_dump(exclude={"scaling"}) == settings.model_dump(exclude={"scaling"})
