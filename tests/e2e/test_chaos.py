"""`llx chaos` on simulated engines: the example passes, a gateway broken on purpose does not."""

import json
import os
from pathlib import Path

import pytest
import yaml

from llx.bench.run_directory import read_results
from tests.e2e.rig import ROOT, cluster_up

pytestmark = [pytest.mark.e2e, pytest.mark.node, pytest.mark.chaos]

BROKEN_GATEWAY = Path(__file__).with_name("broken_gateway")
CHECK_FAILED = 8


@pytest.fixture
def cluster(tmp_path, oracle):
    settings = {
        "models": [
            {
                "name": "m",
                "model": str(oracle),
                "engine": "sim",
                "instances": 2,
                "engine_args": {"max_model_len": 2048},
                "sim": {"step_base_ms": 5.0},
            }
        ],
        "runtime": {"platform": "cpu"},
    }
    with cluster_up(tmp_path, settings) as cluster:
        yield cluster


@pytest.fixture
def broken_gateway(request, monkeypatch):
    """The gateways of clusters that are brought up while it is in use are broken."""
    paths = [str(BROKEN_GATEWAY), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("BROKEN_GATEWAY", request.param)


def test_the_example_passes(cluster):
    done = cluster.llx("chaos", "run", str(ROOT / "examples/chaos.yaml"), "-y", "-o", "json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["problems"]) == (0, []), done.stderr
    assert verdict["faults_by"] == {
        "freeze instance": 1, "kill instance": 1, "restart instance": 1, "slow instance": 1
    }  # fmt: skip
    assert verdict["hit"] >= len(verdict["faults_by"])
    [killed] = [each for each in verdict["by_kind"] if each["fault"] == "kill instance"]
    assert killed["beside"] >= 8, "that many begin before it"
    assert killed["hit"] >= 1
    assert verdict["complete"] == verdict["streams"] > verdict["hit"]


def test_a_benchmark_strikes_and_leaves_the_cluster_whole(cluster):
    """`llx bench run` with faults: no request fails by any of them."""
    scenario = {
        "name": "struck",
        "workload": {
            "requests": 40,
            "arrivals": {"rate": 8},
            "lengths": {"prompt": 16, "output": {"least": 100, "most": 200}},
        },
        "variants": [
            {"name": "calm", "faults": []},
            {"name": "killed", "faults": [{"at_s": 2, "do": "kill", "instance": "m-0"}]},
            {"name": "rolled-out", "faults": [{"at_s": 1, "do": "rollout"}]},
        ],
    }
    folder = cluster.llx.home / "bench"
    folder.mkdir()
    (folder / "struck.yaml").write_text(yaml.safe_dump(scenario))
    before = _pids(cluster)
    out = folder / "out"
    done = cluster.llx("bench", "run", str(folder / "struck.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    results = read_results(out)
    for run in results.runs:
        assert (run.figure("completed"), run.figure("failed")) == (40, 0)
        assert all(e.num_outputs == e.usage_outputs == e.max_outputs for e in run.records())
    [calm], [killed], [rolled] = (results.of(name) for name in ("calm", "killed", "rolled-out"))
    assert [each.do for run in (calm, killed, rolled) for each in run.faults()] == [
        "kill", "rollout"
    ]  # fmt: skip
    assert not any(each.error for run in results.runs for each in run.faults())
    after = _pids(cluster)
    assert len(after) == len(before), "as many as before, all of them ready"
    assert not set(before.values()) & set(after.values()), "all of them others"


def _pids(cluster):
    status = json.loads(cluster.llx("status", "-o", "json").stdout)
    return {each["name"]: each["pid"] for each in status["instances"] if each["state"] == "ready"}


@pytest.mark.parametrize("broken_gateway", ["forgets"], indirect=True)
def test_a_gateway_that_forgets_a_token_is_mended_by_its_check(broken_gateway, cluster):
    done = cluster.llx("chaos", "kill", "instance", "-y", "-o", "json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["problems"]) == (0, []), done.stderr
    assert verdict["hit"] >= 1


@pytest.mark.parametrize("broken_gateway", ["forgets, checks nothing"], indirect=True)
def test_a_gateway_that_lets_a_token_through_twice_is_caught(broken_gateway, cluster):
    done = cluster.llx("chaos", "kill", "instance", "-y", "-o", "json")
    verdict = json.loads(done.stdout)
    assert done.returncode == CHECK_FAILED, done.stderr
    assert verdict["doubled"] >= 1
    assert any("doubled" in each for each in verdict["problems"])
    assert verdict["failed"] == verdict["silent"] == 0


@pytest.mark.parametrize("broken_gateway", ["leaves zombies"], indirect=True)
def test_a_zombie_is_silenced_by_the_epochs(broken_gateway, cluster):
    """Without them it is caught, in `tests/hosts/test_up.py`."""
    done = cluster.llx("chaos", "kill", "instance", "-y", "-o", "json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["problems"]) == (0, []), done.stderr
