"""Short talks with Ray, each in a process of its own, for the keeper.

Ray ends the process of a driver that has lost the head for a minute, so the keeper itself never is
one. ``python -m llx.cluster.ray.talks VERB SPEC``:

    ensure  the scheduler's actor is there and serves; a dead one is made anew, a mute one killed
    known   exit code 0: the global control store counts this host's node among the living;
            3: it answers and does not; 1: nobody knows
"""

import sys
import time
from pathlib import Path
from typing import Any

from llx.cluster.ray.launch import RayNode, connect, make_scheduler
from llx.cluster.ray.paths import RayPaths
from llx.host_ports import HostPorts
from llx.log import configure_logging, get_log
from llx.specs import HostSpec, load_spec

log = get_log("llx.cluster.ray")

KNOWN = 0
UNKNOWN = 1
FORGOTTEN = 3

_ANSWER_S = 15
_START_S = 120
"""The same of one that has not served yet: it has imports to do, on a host that may be busy."""
_NEW_S = 5.0
_MUTE_AFTER_S = 60.0
"""A scheduler whose loop has not turned for so long hangs, though its thread is there."""


def main(argv: list[str]) -> int:
    """Do as the verb says; returns the exit code."""
    configure_logging()
    verb, spec_path = argv
    spec = load_spec(Path(spec_path), HostSpec)
    match verb:
        case "ensure":
            return _ensure(spec)
        case "known":
            return _known(spec)
        case _:
            raise SystemExit(f"no such verb: {verb}")


def _ensure(spec: HostSpec) -> int:
    import ray

    connect(spec)
    answer_s = _ANSWER_S if _has_served(RayPaths(spec)) else _START_S
    if _is_serving(make_scheduler(spec), answer_s) and not _is_mute(RayPaths(spec).alive):
        return 0
    log.warning("scheduler.mute")
    ray.kill(make_scheduler(spec), no_restart=True)
    return 0 if _is_serving(make_scheduler(spec), _START_S) else 1


def _has_served(paths: RayPaths) -> bool:
    """Whether a scheduler has served since Ray's node came up."""
    return _age_s(paths.alive) < _age_s(paths.node) and paths.alive.exists()


def _is_mute(alive: Path) -> bool:
    """Whether the scheduler has not touched its file for long; one that is new has a moment."""
    if _age_s(alive) < _MUTE_AFTER_S:
        return False
    time.sleep(_NEW_S)
    return _age_s(alive) >= _MUTE_AFTER_S


def _age_s(path: Path) -> float:
    """How long a file has not been touched; 0 if there is none yet."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _is_serving(scheduler: Any, answer_s: float) -> bool:
    """Whether its thread runs; one that is being started or restarted is waited for."""
    import ray

    try:
        is_serving: bool = ray.get(scheduler.is_serving.remote(), timeout=answer_s)
    except ray.exceptions.RayError as error:
        log.warning("scheduler.no_answer", error=type(error).__name__)
        return False
    return is_serving


def _known(spec: HostSpec) -> int:
    from ray._raylet import GcsClient

    own = load_spec(RayPaths(spec).node, RayNode).node_id
    address = f"{spec.head_address}:{HostPorts(spec.first_port).gcs}"
    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=_ANSWER_S)
    except Exception:
        log.exception("gcs.no_answer")
        return UNKNOWN
    for node_id, info in nodes.items():
        if node_id.hex() == own:
            return KNOWN if info.state == info.ALIVE else FORGOTTEN
    return FORGOTTEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
