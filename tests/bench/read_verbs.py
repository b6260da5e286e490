"""What verbs that only read take, beyond the start of a process.

    .venv/bin/python -m tests.bench.read_verbs --rounds 7
    .venv/bin/python -m tests.bench.read_verbs --rounds 7 --hosts NODE_PYTHON [--alone]

Asked is the cluster that is up here, or with `--hosts`, as root, one of three namespace hosts with
simulated engines, through SSH as from anywhere. Each verb runs as operators run it, in turns with
`llx --version`, which is the start of a process. Of each the median is said, less that of the
start, of the wall clock and of the process' CPU time; beside it what the head used meanwhile.
`top --once` is asked for JSON, as its table waits a second for rates. A verb that fails counts as
one that took for ever. With `--bound` the exit code is 8 if one takes longer.
Through SSH a verb uses the connection that the one before has left; with `--alone` each is also run
with one of its own, in turns with that, and told as ``VERB (alone)``.
`tests.bench.thousand --verbs` does the same to a cluster of a thousand. One JSON line on standard
output.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.node import ROOT

START: Final = "--version"
ALONE: Final = " (alone)"
VERBS: Final = (
    "status", "inst ls", "req ls", "req ls --limit 20 -o json", "queue", "events",
    "top --once -o json", "mig ls", "policy show",
)  # fmt: skip


class Round(NamedTuple):
    """One run of a verb: seconds of the wall clock, of its CPU and of the head's; bytes printed."""

    wall_s: float
    cpu_s: float
    head_cpu_s: float
    size: int


def measured(
    rounds: int,
    operator: Mapping[str, str] = os.environ,
    head: int | None = None,
    *,
    is_alone_too: bool = False,
) -> dict[str, dict[str, float]]:
    """Each verb beyond the start of a process: medians, the longest, and what it printed.

    `operator`: whose environment; `head`: its process id, if its CPU time is to be told.
    """
    environment = {**operator, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    alone = [f"{each}{ALONE}" for each in VERBS] if is_alone_too else []
    took: dict[str, list[Round]] = {each: [] for each in (START, *VERBS, *alone)}
    for _ in range(rounds):
        for verb, found in took.items():
            persist = {"LLX_SSH_PERSIST": "0"} if verb.endswith(ALONE) else {}
            found.append(_run(verb.removesuffix(ALONE), environment | persist, head))
    start = _medians(took.pop(START))
    return {verb: _beyond(found, start) for verb, found in took.items()}


def _run(verb: str, environment: dict[str, str], head: int | None) -> Round:
    began, used = time.perf_counter(), _children_cpu_s()
    head_used = 0.0 if head is None else cpu_s(head)
    done = subprocess.run(
        [sys.executable, "-m", "llx", *verb.split()], env=environment, stdout=subprocess.PIPE,
        check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - began if done.returncode == 0 else math.inf
    head_s = 0.0 if head is None else cpu_s(head) - head_used
    return Round(wall_s, _children_cpu_s() - used, head_s, len(done.stdout))


def _beyond(found: list[Round], start: Round) -> dict[str, float]:
    middle = _medians(found)
    return {
        "beyond_start_s": round(middle.wall_s - start.wall_s, 3),
        "longest_s": round(max(each.wall_s for each in found) - start.wall_s, 3),
        "cpu_beyond_start_s": round(middle.cpu_s - start.cpu_s, 3),
        "head_cpu_s": round(middle.head_cpu_s, 3),
        "bytes": middle.size,
        "failed": sum(math.isinf(each.wall_s) for each in found),
    }


def _medians(found: list[Round]) -> Round:
    return Round(
        statistics.median(each.wall_s for each in found),
        statistics.median(each.cpu_s for each in found),
        statistics.median(each.head_cpu_s for each in found),
        found[-1].size,
    )


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_s(pid: int) -> float:
    """Time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def slow(found: dict[str, dict[str, float]], bound_s: float) -> list[str]:
    """The verbs that take longer."""
    return [verb for verb, each in found.items() if each["beyond_start_s"] > bound_s]


@contextlib.contextmanager
def three_hosts(python: Path) -> Iterator[dict[str, str]]:
    """A cluster on namespace hosts; the environment of its operator."""
    from tests.bench.hosts_up import sim_cluster

    with sim_cluster(python, 3, {}, instances={"min": 3}) as operator:
        yield operator.environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bound", type=float, help="seconds beyond the start")
    parser.add_argument("--head", type=int, metavar="PID", help="tell its CPU time, too")
    parser.add_argument("--hosts", type=Path, metavar="PYTHON", help="a node environment's")
    parser.add_argument("--alone", action="store_true", help="with a connection of its own, too")
    args = parser.parse_args()
    hosts = three_hosts(args.hosts.absolute()) if args.hosts else contextlib.nullcontext(os.environ)
    with hosts as operator:
        found: dict[str, Any] = measured(args.rounds, operator, args.head, is_alone_too=args.alone)
    missed = slow(found, args.bound) if args.bound else []
    print(json.dumps({"bench": "read_verbs", "verbs": found, "slow": missed}))
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
