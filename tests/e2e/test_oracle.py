"""The oracle model is what its name says."""

import json
import subprocess

import pytest

from tests.e2e.rig import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def test_every_choice_is_clear_varied_and_depends_on_the_whole_context(
    oracle, node_python, node_environment
):
    script = str(ROOT / "tests/e2e/oracle_model.py")
    done = subprocess.run(
        [node_python, script, "check", str(oracle)],
        env=node_environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    measured = json.loads(done.stdout)
    assert measured["min_margin_nats"] >= 0.005
    assert measured["min_distinct"] >= measured["steps"] / 2
    assert measured["latest_first_change"] <= 3
