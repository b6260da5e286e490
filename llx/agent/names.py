"""What things on a host are called that several processes look for. Imports next to nothing.

What asks again and again whether something is so yet (`llx.cluster.ray.node`) takes its names from
here: to import the rest of the agent would cost more than to look.
"""

from pathlib import Path

HOST_SPEC = "LLX_HOST_SPEC"
"""Environment variable of Ray's processes: path of the host's `HostSpec`."""

HEAD = "head"
AGENT = "agent"
RAY = "ray"
"""Directories of head, node agent and Ray's keeper, beside those of instances and gateways."""


def status_path(procs_dir: Path, name: str) -> Path:
    """Where the process of that name writes its status."""
    return procs_dir / name / "status.json"
