"""What is left when nothing should be: blocks, requests, moves, processes. Judging is pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from pydantic import BaseModel, ConfigDict

from llx.agent.shim import MARK
from llx.api import ClusterState, ClusterStatus, InstanceState, MigrationStatus
from llx.chaos.inject import Hand
from llx.chaos.victims import units_of

_SHIMS: Final = (
    'for each in "$1"/*/shim.json; do [ -f "$each" ] || continue;'
    ' echo "shim $(basename "$(dirname "$each")") $(tr -d "\\n" <"$each")"; done\n'
)
_PROCESSES: Final = (
    'for each in $(grep -lz "^$2=" /proc/[0-9]*/environ 2>/dev/null); do'
    ' mark=$(tr "\\0" "\\n" <"$each" 2>/dev/null | sed -n "s/^$2=//p" | head -n 1);'
    " state=$(sed -n 's/^State:[[:space:]]*\\(.\\).*/\\1/p' \"${each%environ}status\" 2>/dev/null);"
    ' pid=${each#/proc/}; echo "proc ${pid%/environ} ${state:-X} $mark"; done\n'
)


@dataclass(frozen=True, slots=True)
class HostSight:
    """What runs on a host. `marks`: of each shim's run; `processes`: (pid, state, mark)."""

    marks: Mapping[str, str]
    processes: tuple[tuple[int, str, str], ...] = ()


class Idle(BaseModel):
    """The cluster as it is when nothing is asked of it.

    Attributes:
        blocks: Used, by instance.
        units: Instances and gateways that are ready.
        shims: Directories of processes, by host.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: dict[str, int]
    units: frozenset[str]
    shims: dict[str, frozenset[str]] = {}


def look_at_host(hand: Hand, procs: PurePath, *, with_processes: bool) -> HostSight:
    """What is there. Other users' processes are not seen."""
    script = _SHIMS + (_PROCESSES if with_processes else "")
    done = hand.run(["sh", "-c", script, "llx-chaos", str(procs), MARK], timeout_s=60.0)
    return parse_sight(done.stdout)


def parse_sight(text: str) -> HostSight:
    """What a host has printed."""
    marks: dict[str, str] = {}
    processes = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "shim":
            name, _, record = rest.partition(" ")
            try:
                marks[name] = str(json.loads(record)["mark"])
            except (ValueError, KeyError, TypeError):
                marks[name] = ""  # being written at this moment
        elif kind == "proc" and len(rest.split()) == 3:
            pid, state, mark = rest.split()
            processes.append((int(pid), state, mark))
    return HostSight(marks, tuple(processes))


def idle_of(status: ClusterStatus, sights: Mapping[str, HostSight]) -> Idle:
    """To be compared with later."""
    return Idle(
        blocks={e.name: e.load.blocks_used for e in status.instances if e.load is not None},
        units=frozenset(_ready(status)),
        shims={host: frozenset(sight.marks) for host, sight in sights.items()},
    )


def cluster_leaks(
    before: Idle, status: ClusterStatus, migrations: list[MigrationStatus]
) -> list[str]:
    """What the head says is not as it was: in words, one line each."""
    found = []
    if status.state is not ClusterState.READY:
        found.append(f"processes: the cluster is {status.state}")
    if missing := sorted(before.units - _ready(status)):
        found.append(f"processes: {', '.join(missing)} not ready any more")
    for each in status.instances:
        load, had = each.load, before.blocks.get(each.name, 0)
        if load is None:
            found.append(f"blocks: {each.name} says nothing of its load")
            continue
        if load.running or load.waiting:
            found.append(f"slots: {each.name} has {load.running + load.waiting} requests")
        if load.blocks_used > had:
            found.append(f"blocks: {each.name} uses {load.blocks_used}, {had} before")
    found += [
        f"slots: {each.name} has {each.in_flight} requests"
        for each in status.gateways
        if each.in_flight
    ]
    found += [
        f"moves: {each.id} from {each.source} to {each.target} is open"
        for each in migrations
        if each.outcome is None
    ]
    return found


def host_leaks(host: str, before: frozenset[str], ours: set[str], sight: HostSight) -> list[str]:
    """What is left on a host of runs that are over.

    Args:
        host: Its name, for the words.
        before: Directories of processes that were there.
        ours: Marks of every run of this cluster's processes that was seen.
        sight: The host now.
    """
    current = set(sight.marks.values())
    where = f" on {host}" if host else ""
    found = []
    for pid, state, mark in sight.processes:
        if mark in ours - current:
            found.append(f"processes: {pid}{where} is left of a run that is over")
        elif mark in current and state in "Tt":
            found.append(f"processes: {pid}{where} is stopped still")
    if extra := sorted(set(sight.marks) - before):
        found.append(f"files: {', '.join(extra)}{where}")
    return found


def _ready(status: ClusterStatus) -> set[str]:
    units = units_of(status).items()
    return {name for name, each in units if each.state is InstanceState.READY}
