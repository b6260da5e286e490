"""The mirror of vLLM's wire against the real one, in the node environment's Python."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SCRIPT = Path(__file__).with_name("check_codec.py")
REPOSITORY = SCRIPT.parents[2]


def test_the_mirror_is_true() -> None:
    prefix = os.environ.get("LLX_NODE_PREFIX")
    if not prefix:
        pytest.skip("needs the node environment: set LLX_NODE_PREFIX")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
    }
    done = subprocess.run(
        [f"{prefix}/bin/python", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
