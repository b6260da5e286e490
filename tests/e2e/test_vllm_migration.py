"""Requests of a real vLLM engine core leave and arrive, at known tokens; see the script."""

import subprocess

import pytest

from tests.e2e.rig import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.node]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_moved_request_says_what_it_would_have_said(mode, oracle, node_python, node_environment):
    script = str(ROOT / "tests/e2e/check_vllm_migration.py")
    done = subprocess.run(
        [node_python, script, str(oracle), mode],
        env=node_environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    scheduler = {"sync": "MigratingScheduler", "async": "MigratingAsyncScheduler"}[mode]
    assert f"scheduler {scheduler} " in done.stdout
