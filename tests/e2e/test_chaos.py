"""`llx chaos` on simulated engines: the example passes, a gateway broken on purpose does not."""

import json
import os
from pathlib import Path

import pytest

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
    assert verdict["complete"] == verdict["streams"] > verdict["hit"]


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
