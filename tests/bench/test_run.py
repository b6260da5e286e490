"""`llx bench` from the command line, against a server of set pace and a head that pretends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from llx.api import InstanceState, MoveOutcome
from llx.bench.run_directory import read_results
from llx.bench.scenario import load_scenario
from llx.bench.schedule import make_schedule
from llx.scheduling_settings import with_changed_rules
from llx.settings import load_cluster
from llx.sim.presets import POLICIES
from tests.bench.live_policies import COMPARED
from tests.cli.conftest import head, llx  # noqa: F401 - fixtures
from tests.cli.servers import FakeHead, cluster_status, migration_status

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples/bench/cluster-kv-bound.yaml"
EXAMPLES = sorted({*(ROOT / "examples/bench").glob("*.yaml")} - {CLUSTER})
SMALL = {
    "name": "small",
    "workload": {
        "requests": 12,
        "arrivals": {"rate": 100},
        "lengths": {"prompt": 16, "output": {"least": 2, "most": 6}},
        "classes": {"high": 0.5},
    },
    "variants": [{"name": "a"}, {"name": "b", "rate": 200}],
    "repetitions": 2,
    "warmup": 2,
    "slo": {"ttft_ms": 10000},
}


@pytest.fixture
def scenario(tmp_path):
    def write(**more):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **more}))
        return str(path)

    return write


@pytest.mark.slow
def test_every_variant_and_repetition(llx, scenario, sse_server, tmp_path):  # noqa: F811
    done = llx("bench", "run", scenario(), "--url", sse_server, "--out", "out", "-o", "json")
    assert done.exit_code == 0, done.stderr
    results = read_results(tmp_path / "out")
    assert results.variants == ["a", "b"]
    assert [each.repetition for each in results.of("a")] == [0, 1]
    for run in results.runs:
        records = run.records()
        assert [each.number for each in records] == list(range(12))
        assert run.figure("completed") == 12
        assert run.figure("total_output_tokens") == sum(each.max_outputs for each in records)
        assert run.figure("llx_miscounted") == 0
        assert run.summary["model_id"] == "mock"
        assert set(run.summary["llx_classes"]) == {"", "high"}
        assert run.sights() == run.moves() == []
    (one,), (other,) = ([e for e in results.of(v) if e.repetition == 1] for v in ("a", "b"))
    assert one.summary["llx_seed"] == other.summary["llx_seed"] == 2
    assert [e.max_outputs for e in one.records()] == [e.max_outputs for e in other.records()]
    rows = json.loads(done.stdout)
    assert [(e["variant"], e["priority_class"]) for e in rows] == [
        ("a", ""), ("a", "high"), ("b", ""), ("b", "high"),
    ]  # fmt: skip
    assert results.about["machine"]["cpus"] >= 1


def test_names_are_those_of_vllm(llx, scenario, sse_server, tmp_path):  # noqa: F811
    llx("bench", "run", scenario(repetitions=1), "--url", sse_server, "--out", "out")
    summary = json.loads((tmp_path / "out/runs/a-0/summary.json").read_text())
    for each in (
        "date", "backend", "label", "model_id", "num_prompts", "request_rate", "burstiness",
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
        "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
        "max_concurrent_requests", "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p99_ttft_ms",
        "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms", "mean_e2el_ms", "p99_e2el_ms",
    ):  # fmt: skip
        assert summary[each] is not None, each


@pytest.mark.slow
def test_compare_and_its_exit_codes(llx, scenario, sse_server):  # noqa: F811
    llx("bench", "run", scenario(repetitions=3), "--url", sse_server, "--out", "out")
    done = llx("bench", "compare", "out:a", "out:b", "--bound", "mean_ttft=100")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split()[:3] == ["FIGURE", "BASE", "OTHER"]
    done = llx("bench", "compare", "out:a", "out:b", "--bound", "mean_ttft=0.01")
    assert done.exit_code == 8
    assert "mean_ttft" in done.stderr
    assert llx("bench", "compare", "out", "out").exit_code == 2
    assert llx("bench", "compare", "out:c", "out:b").exit_code == 4
    assert llx("bench", "compare", "nowhere", "out:b").exit_code == 4


def test_what_is_there_is_not_written_over(llx, scenario, sse_server, tmp_path):  # noqa: F811
    (tmp_path / "out").mkdir()
    done = llx("bench", "run", scenario(), "--url", sse_server, "--out", "out")
    assert done.exit_code == 5


def test_nothing_comes_through(llx, scenario):  # noqa: F811
    done = llx("bench", "run", scenario(model="m"), "--url", "http://127.0.0.1:1", "--out", "out")
    assert done.exit_code == 1
    assert "warm-up: no request came through" in done.stderr


def test_faults_need_a_cluster(llx, scenario, sse_server):  # noqa: F811
    path = scenario(faults=[{"at_s": 0, "do": "drain", "instance": "tiny-0"}])
    done = llx("bench", "run", path, "--url", sse_server)
    assert done.exit_code == 2
    assert "faults need a cluster" in done.stderr


@pytest.mark.slow
def test_a_cluster_is_watched_and_put_back(llx, scenario, sse_server, tmp_path):  # noqa: F811
    path = scenario(
        model="mock", repetitions=1, variants=[{"name": "a"}], warmup=0,
        workload=SMALL["workload"] | {"arrivals": {"rate": 6}},
        faults=[
            {"at_s": 0, "do": "cordon", "instance": "tiny-0"},
            {"at_s": 0.02, "do": "restart", "instance": "nobody"},
        ],
    )  # fmt: skip
    status = cluster_status(sse_server)
    changes = {"state": InstanceState.READY, "model": "mock"}
    ready = [each.model_copy(update=changes) for each in status.instances]
    other = ready[0].model_copy(update={"name": "other-0", "model": "other"})
    with FakeHead(status.model_copy(update={"instances": [*ready, other]})).running() as fake:
        fake.register(llx.environment.cluster_dir("local"))
        fake.moves = [migration_status(1, outcome=MoveOutcome.MOVED, downtime_ms=9.0)]
        done = llx("bench", "run", path, "--out", "out")
        assert done.exit_code == 0, done.stderr
        (run,) = read_results(tmp_path / "out").runs
        assert {each.name for each in run.sights()[0].instances} == {e.name for e in ready}
        assert [(each.do, bool(each.error)) for each in run.faults()] == [
            ("cordon", False), ("restart", True),
        ]  # fmt: skip
        assert run.moves() == [], "it is older than the run"
        posts = [each for each in fake.asked if each.startswith("POST")]
        assert "tiny-0/cordon" in posts[0]
        assert any("tiny-0/uncordon" in each for each in posts[1:])


def num_done(url):
    """Streams that the server has ended."""
    return httpx.get(f"{url}/v1/models", trust_env=False, timeout=20).json()["done"]


def interrupted(words, tmp_path, is_time, **variables):
    """What `llx bench run` says that gets SIGINT once it is under way and `is_time`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llx", "bench", "run", *words, "--out", "out"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if "repetition" in line:
            break
    end = time.monotonic() + 60
    while not is_time():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    return out, err


@pytest.mark.slow
def test_interrupted_it_keeps_what_was_measured(scenario, sse_server, tmp_path):
    slow = {**SMALL["workload"], "requests": 20_000}
    words = [scenario(workload=slow, warmup=0), "--url", sse_server]
    before = num_done(sse_server)
    # of 50 its client has some, too, by then
    out, _ = interrupted(words, tmp_path, lambda: num_done(sse_server) >= before + 50)
    (run,) = read_results(tmp_path / "out").runs
    assert run.summary["llx_is_whole"] is False
    assert run.figure("completed") > 0
    assert out.startswith("VARIANT")


@pytest.mark.slow
def test_interrupted_it_waits_for_nobody_who_was_hit(llx, scenario, sse_server, tmp_path):  # noqa: F811
    """Of the two minutes and more that an instance may take to be back, none is waited for."""
    path = scenario(
        model="mock", warmup=0, workload=SMALL["workload"] | {"requests": 20_000},
        variants=[{"name": "a"}],
        faults=[
            {"at_s": 0, "do": "restart", "instance": "tiny-0"},
            {"at_s": 3600, "do": "drain", "instance": "tiny-1"},
        ],
    )  # fmt: skip
    status = cluster_status(sse_server)
    starting = [
        each.model_copy(update={"state": InstanceState.STARTING}) for each in status.instances
    ]
    before = num_done(sse_server)
    with FakeHead(status.model_copy(update={"instances": starting})).running() as fake:
        fake.register(llx.environment.cluster_dir("local"))

        def is_time():
            is_hit = any("restart" in each for each in fake.asked)
            return is_hit and num_done(sse_server) >= before + 50

        _, err = interrupted([path], tmp_path, is_time, **llx.variables)
        assert any("tiny-0/uncordon" in each for each in fake.asked)
    assert "not done: a: drain tiny-1: the run was over before\n" in err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["llx_variants"]["a"]["completed"] > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_make_a_schedule(path):
    """Each as it is written."""
    full = load_scenario(path)
    made = make_schedule(full.workload, full.seed)
    assert len(made) == full.workload.requests


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_few_requests_of_each_example_run(path, llx, swift_server, tmp_path):  # noqa: F811
    full = load_scenario(path)
    data = yaml.safe_load(path.read_text())
    data["workload"]["requests"] = 4
    if trace := data["workload"].get("trace"):
        trace |= {"file": str(full.workload.trace.file), "speed": 1000}
    else:
        data["workload"]["arrivals"] = {"rate": 50}
    data |= {"repetitions": 1, "faults": [], "warmup": 1}
    data["variants"] = [{"name": each.name} for each in full.variants]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    done = llx("bench", "run", "s.yaml", "--url", swift_server, "--out", "out")
    assert done.exit_code == 0, done.stderr
    shutil.rmtree(tmp_path / "out")


def test_there_are_examples():
    assert {each.stem for each in EXAMPLES} >= {"steady", "burst", "trace", *COMPARED}


def test_scenarios_fit_the_cluster_that_is_short_of_kv():
    """No request is larger than an instance; classes are there, rules are the scheduler's."""
    settings = load_cluster(CLUSTER)
    (model,) = settings.models
    classes = {each.name for each in settings.priority_classes}
    pool = POLICIES["llx"]
    for name, sides in COMPARED.items():
        scenario = load_scenario(CLUSTER.with_name(f"{name}.yaml"))
        longest = model.engine_args["max_model_len"]
        schedule = make_schedule(scenario.workload, scenario.seed)
        assert all(each.num_prompt + each.num_outputs <= longest for each in schedule)
        for variant in scenario.variants:
            asked = {*scenario.workload.classes} - {*variant.served_as}
            assert asked | {*variant.served_as.values()} <= classes
            with_changed_rules(pool, variant.policy)  # raises if it knows them not
        variants = {each.name for each in scenario.variants}
        assert {name for base, other, _ in sides for name in (base, other)} <= variants
    blocks = model.engine_args["num_gpu_blocks_override"] - 1
    assert blocks * model.engine_args["block_size"] >= longest
