"""Starting processes of the node environment from a test or a benchmark."""

import os
from pathlib import Path

from llx.agent.devices import Allocation, DeviceKind, child_environment

ROOT = Path(__file__).parents[1]


def node_environment() -> dict[str, str]:
    """What the node agent gives an instance on one core, plus this repository's llx."""
    one_core = Allocation(DeviceKind.CPU, ["cpu:0"])
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return child_environment(os.environ | own, one_core)
