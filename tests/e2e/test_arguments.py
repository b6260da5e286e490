"""The argument names that cluster.yaml is checked against are the pinned vLLM's."""

import json
import subprocess

import pytest

from tests.e2e.rig import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def test_the_shipped_names_are_the_pinned_vllms(node_python, node_environment):
    done = subprocess.run(
        [node_python, "-m", "llx.agent.vllm.argument_names"],
        env=node_environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == json.loads((ROOT / "llx/vllm_args.json").read_text())
