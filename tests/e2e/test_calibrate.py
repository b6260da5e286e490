"""`llx calibrate` on a cluster whose truth is known: the simulated engine's own step time."""

import pytest

from llx.client import ControlClient
from llx.sim.profile import load_profile
from tests.e2e.conftest import SIM

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def test_a_load_finds_the_engines_own_step_time_and_policies_go_by_it(cluster, tmp_path):
    path = tmp_path / "profile.yaml"
    words = ["--load", "-y", "--duration", "20s", "--apply", "--out", str(path)]
    done = cluster.llx("calibrate", "simulated", *words)
    assert done.returncode == 0, done.stderr
    profile = load_profile(path)
    step = profile.engine.step.value()
    for found_ns, truth_ms, share in (
        (step.base_ns, SIM["step_base_ms"], 0.05),
        (step.prefill_token_ns, SIM["step_ms_per_prefill_token"], 0.08),
        (step.decode_ns, SIM["step_ms_per_decode"], 0.08),
        (step.context_ktoken_ns, SIM["step_ms_per_context_ktoken"], 0.15),
    ):
        assert found_ns == pytest.approx(truth_ms * 1e6, rel=share), profile
    assert profile.engine.max_num_seqs == SIM["max_num_seqs"]
    assert profile.fit.error_p50 < 0.05
    assert profile.link.gateway_ms is not None
    with ControlClient.for_cluster(cluster.directory) as control:
        rules = {each.model: each for each in control.policies().policies}
        assert rules["simulated"].scheduling["step_time"] == profile.step_time.model_dump()
        assert rules["oracle"].changed == {}
    shown = cluster.llx("policy", "show", "--model", "simulated").stdout
    assert [line.split()[-1] for line in shown.splitlines() if "step_time" in line] == ["yes"] * 4
    assert cluster.llx("policy", "revert", "--model", "simulated").returncode == 0
    assert "calibrate" not in cluster.llx("req", "ls").stdout
