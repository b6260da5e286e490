"""KV blocks of torch tensors, in the node environment's Python."""

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.node]


@pytest.mark.parametrize("script", ["check_blocks.py", "check_gpu_blocks.py"])
def test_blocks_are_gathered_and_scattered_bit_by_bit(
    script, node_python, node_environment
) -> None:
    done = subprocess.run(
        [node_python, "-W", "error", str(Path(__file__).with_name(script))],
        env=node_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
