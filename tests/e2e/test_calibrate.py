"""`llx calibrate` on a cluster whose truth is known: the simulated engine's own step time."""

import time

import pytest

from llx.api import MoveOutcome
from llx.client import Cluster
from llx.sim.profile import load_profile
from tests.e2e.conftest import SIM

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def test_a_load_finds_the_engines_own_step_time_and_policies_go_by_it(cluster, tmp_path):
    path = tmp_path / "profile.yaml"
    words = ["--load", "-y", "--duration", "30s", "--apply", "--out", str(path)]
    done = cluster.llx("calibrate", "simulated", *words)
    assert done.returncode == 0, done.stderr
    profile = load_profile(path)
    step = profile.engine.step.value()
    for found_ns, truth_ms, share in (
        (step.base_ns, SIM["step_base_ms"], 0.06),
        (step.prefill_token_ns, SIM["step_ms_per_prefill_token"], 0.12),
        (step.decode_ns, SIM["step_ms_per_decode"], 0.08),
        (step.context_ktoken_ns, SIM["step_ms_per_context_ktoken"], 0.2),
    ):
        assert found_ns == pytest.approx(truth_ms * 1e6, rel=share), profile
    assert profile.engine.max_num_seqs == SIM["max_num_seqs"]
    assert profile.fit.error_p50 < 0.05
    assert profile.link.gateway_ms is not None
    with Cluster.for_cluster(cluster.directory) as control:
        rules = {each.model: each for each in control.policies().policies}
        assert rules["simulated"].scheduling["step_time"] == profile.step_time.model_dump()
        assert rules["oracle"].changed == {}
    shown = cluster.llx("policy", "show", "--model", "simulated").stdout
    assert [line.split()[-1] for line in shown.splitlines() if "step_time" in line] == ["yes"] * 4
    assert cluster.llx("policy", "revert", "--model", "simulated").returncode == 0
    assert "calibrate" not in cluster.llx("req", "ls").stdout


def test_a_load_on_two_instances_moves_requests_and_leaves_none(cluster, tmp_path):
    with Cluster.for_cluster(cluster.directory) as control:
        before = {each.id for each in control.migrations()}
        words = ["--load", "-y", "--duration", "20s", "--out", str(tmp_path / "p.yaml")]
        done = cluster.llx("calibrate", "oracle", *words)
        # A machine that is busy otherwise may not get through enough of it in that time.
        assert done.returncode in {0, 8}, done.stderr
        assert "load for 20 s on oracle-0, oracle-1" in done.stderr
        moved = [each for each in control.migrations() if each.id not in before]
        assert any(each.outcome is MoveOutcome.MOVED and each.size_bytes for each in moved)
        deadline = time.monotonic() + 20
        while control.requests(model="oracle").requests and time.monotonic() < deadline:
            time.sleep(0.2)  # what was cut at the end is aborted
        assert control.requests(model="oracle").requests == []
