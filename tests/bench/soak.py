"""What grows while a cluster serves for long: memory, files, threads and stores, on `engine: sim`.

    .venv/bin/python -m tests.bench.soak --minutes 60 --out soak.jsonl
    .venv/bin/python -m tests.bench.soak --read soak.jsonl

Four simulated instances. First many small requests fill what the head remembers of requests, and a
burst of them, more than are ever open at once later, takes the gateway's memory to its height; and
some are moved, so that instances know each other. After a rest the load is at 70% of what the
instances can do for `--minutes`, while rules move requests, and every second some are moved by
order besides. Every `SAMPLE_S` each process of the cluster (head, gateway, instances, their shims)
is looked at through /proc, and the cluster's files are measured. Memory is judged by its slope
from half-time on, or from when the head's stores (`STORES`) are full, if that is later; with fewer
than `LEAST` samples after that a run has failed. Slopes are least squares, their 95% intervals a
bootstrap over stretches of `STRETCH` samples, as neighbours are alike. Open files and threads go
with the requests that are open: they are judged by the rest before the load and the one after it.

Exit code 8 if a process certainly grows by more than the bounds below, has ended, a stream failed,
or something is left running when the load is over. Tasks within a process cannot be seen from
outside. One JSON line on standard output; `--out` keeps the samples, a line each, as they come.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llx.api import MigrateRequest
from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts
from llx.bench.record import Outcome, Record
from llx.bench.scenario import Arrivals, Between, Lengths, Workload
from llx.bench.schedule import make_schedule
from llx.client import Cluster
from llx.cluster.moves.move_log import MAX_OVER
from llx.cluster.scheduling.decisions import MOST_REQUESTS
from llx.errors import LlxError
from tests.bench.overhead import llx_up, tiny_model

SAMPLE_S: Final = 5.0
STRETCH: Final = 6
LEAST: Final = 48
MOVE_EVERY_S: Final = 1.0
FIRST_MOVES_S: Final = 30.0
SETTLE_S: Final = 15.0
INSTANCES: Final = 4
OUTPUTS: Final = (20, 100)
SIM: Final[dict[str, Any]] = {
    "step_base_ms": 40.0, "step_ms_per_decode": 1.0, "step_ms_per_prefill_token": 0.05,
    "step_ms_per_context_ktoken": 0.0, "num_blocks": 160, "block_size": 16, "max_num_seqs": 8,
    "max_num_batched_tokens": 2048,
}  # fmt: skip
CAPACITY: Final = INSTANCES * 8 / (statistics.mean(OUTPUTS) * 0.048)
"""Requests a second, when every step has eight."""
RULES: Final = {
    "dispatch": "round_robin", "rescheduling": {"low": 12, "high": 20, "rest_s": 1},
}  # fmt: skip
FILLING: Final = Workload(
    requests=MOST_REQUESTS,
    arrivals=Arrivals(rate=20.0),
    lengths=Lengths(prompt=Between(least=16, most=64), output=Between(least=1, most=4)),
)
BURST: Final = Workload(
    requests=300,
    arrivals=Arrivals(rate=1000.0),
    lengths=Lengths(prompt=Between(least=16, most=64), output=Between(least=1, most=4)),
)
STORES: Final = {"requests": 2 * MOST_REQUESTS, "moves": MAX_OVER}
"""After so many the head remembers no more, and only such as come now: of the small requests at the
beginning less is known. (What gateways have seen of moves is kept of four times as many.)"""
MOVED: Final = re.compile(
    r'^llx:migrations_total\{[^}]*outcome="moved"[^}]*\} (\S+)$', re.MULTILINE
)
GROWTH_MIB: Final = 6.0
"""So much an hour and no more, of one process."""
MORE: Final = 4
"""Open files, or threads, of a process at rest."""
FIGURES: Final = ("rss_mib", "files", "threads")
CLUSTER: Final = "state/llx/clusters/bench"

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slope:
    """How a figure of a process grows, an hour, and where it stood first and last."""

    first: float
    last: float
    per_hour: float
    low: float
    high: float


# ---------------------------------------------------------------------- looking


def processes(cluster: Path) -> Iterator[tuple[str, int]]:
    """The cluster's processes by name: shims, what they run, and the head under its keeper."""
    for path in sorted(cluster.glob("procs/*/shim.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        name, child = path.parent.name, record["child_pid"]
        yield f"{name} shim", record["shim_pid"]
        if name == "head":
            yield "head keeper", child
            for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split():
                yield "head", int(pid)
        else:
            yield name, child


def look(pid: int) -> dict[str, float]:
    """A process as /proc has it."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "pid": pid,
        "rss_mib": round(int(lines["VmRSS"].split()[0]) / 1024, 2),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(lines["Threads"]),
    }


def sample(cluster: Path, at_s: float, num_requests: int) -> Sample:
    """All processes, what the head has seen so far, and the bytes of what the cluster writes."""
    seen = {"requests": num_requests, "moves": num_moved(cluster)}
    found: Sample = {"at_s": round(at_s, 1), "processes": {}, "seen": seen}
    for name, pid in processes(cluster):
        with contextlib.suppress(OSError):
            found["processes"][name] = look(pid)
    files = [each for each in cluster.rglob("*") if each.is_file()]
    found["bytes"] = {
        "events": sum(e.stat().st_size for e in files if e.name.startswith("events.jsonl")),
        "recordings": sum(e.stat().st_size for e in files if e.parent.name == "recordings"),
        "logs": sum(e.stat().st_size for e in files if e.name.startswith("log")),
    }
    return found


def num_moved(cluster: Path) -> int:
    """Moves that the head has seen end well; 0 if it does not say."""
    with contextlib.suppress(LlxError), Cluster.for_cluster(cluster) as control:
        return round(sum(float(each) for each in MOVED.findall(control.metrics())))
    return 0


# ---------------------------------------------------------------------- the load


@dataclass(slots=True)
class Load:
    """Requests on a thread of its own, and moves by order beside them."""

    port: int
    cluster: Path
    seconds: float
    rate: float
    records: list[Record] = field(default_factory=list)
    ordered: int = 0
    not_ordered: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Load and moves beside the block, which ends when they do."""
        threads = [threading.Thread(target=each) for each in (self.run, self.order_moves)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            for each in threads:
                each.join()

    def fill(self) -> None:
        """What comes before the load, to the last answer."""
        asyncio.run(self._send(FILLING, "filling"))
        asyncio.run(self._send(BURST, "burst"))

    def run(self) -> None:
        """The load, to the last answer."""
        try:
            asyncio.run(self._run())
        finally:
            self.is_over.set()

    async def _run(self) -> None:
        workload = Workload(
            requests=round(self.rate * self.seconds),
            arrivals=Arrivals(rate=self.rate),
            lengths=Lengths(
                prompt=Between(least=16, most=256),
                output=Between(least=OUTPUTS[0], most=OUTPUTS[1]),
            ),
        )
        await self._send(workload, "soak")

    async def _send(self, workload: Workload, name: str) -> None:
        target = Target(f"http://127.0.0.1:{self.port}", "m")
        schedule = make_schedule(workload, seed=1)
        await Generator(target, schedule, Prompts(name, 256), name, self.records.append).run()

    def order_moves(self) -> None:
        """Some requests from one instance to another, again and again, until the load is over."""
        names = [f"m-{number}" for number in range(INSTANCES)]
        draw = random.Random(1)
        while not self.is_over.wait(MOVE_EVERY_S):
            source, target = draw.sample(names, 2)
            try:
                with Cluster.for_cluster(self.cluster) as control:
                    report = control.migrate(MigrateRequest(source=source, target=target, count=2))
                self.ordered += len(report.migrations)
            except LlxError:
                self.not_ordered += 1

    @property
    def failures(self) -> list[str]:
        return [each.error for each in self.records if each.outcome is not Outcome.OK]


# ---------------------------------------------------------------------- slopes


def judged_part(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The second half, less what of it came before the stores were full."""
    half = samples[len(samples) // 2 :]
    return [each for each in half if all(each["seen"][key] >= STORES[key] for key in STORES)]


def slopes(part: Sequence[Sample]) -> dict[str, dict[str, Slope]]:
    """Of each process that lived through that part of a run, and of the files (MiB)."""
    found: dict[str, dict[str, Slope]] = {}
    for name in part[0]["processes"]:
        looks = [each["processes"].get(name) for each in part]
        if None not in looks:
            found[name] = {key: _slope(part, [each[key] for each in looks]) for key in FIGURES}
    found["files"] = {
        key: _slope(part, [each["bytes"][key] / 2**20 for each in part]) for key in part[0]["bytes"]
    }
    return found


def _slope(samples: Sequence[Sample], values: Sequence[float]) -> Slope:
    points = [(each["at_s"] / 3600, value) for each, value in zip(samples, values, strict=True)]
    stretches = [points[at : at + STRETCH] for at in range(0, len(points), STRETCH)]
    draw = random.Random(20260101)
    found = sorted(
        _fit([point for each in draw.choices(stretches, k=len(stretches)) for point in each])
        for _ in range(1000)
    )
    low, high = found[25], found[974]
    rounded = (round(each, 3) for each in (_fit(points), low, high))
    return Slope(values[0], values[-1], *rounded)


def _fit(points: Sequence[tuple[float, float]]) -> float:
    mean_x, mean_y = (math.fsum(each) / len(points) for each in zip(*points, strict=True))
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    return math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def judged(samples: Sequence[Sample]) -> dict[str, Any]:
    """Slopes, from when on they are, and what is wrong; the first and last sample are at rest."""
    part = judged_part(samples)
    if len(part) < LEAST:
        few = f"{len(part)} samples since the stores were full, of {LEAST}: it was too short"
        return {"slopes": {}, "judged_from_s": None, "wrong": [few]}
    found = slopes(part)
    memory = {name: each["rss_mib"] for name, each in found.items() if name != "files"}
    wrong = [
        f"{name}: rss_mib grows by {each.low:g} to {each.high:g} an hour"
        for name, each in memory.items()
        if each.low > GROWTH_MIB
    ]
    before, after = samples[0]["processes"], samples[-1]["processes"]
    wrong += [
        f"{name}: {key} at rest: {before[name][key]}, then {after[name][key]}"
        for name in before.keys() & after.keys()
        for key in ("files", "threads")
        if after[name][key] > before[name][key] + MORE
    ]
    pids = [{n: p["pid"] for n, p in each["processes"].items()} for each in samples]
    wrong += [f"{name}: another process, or none" for name in pids[0] if pids[0] != pids[-1]
              and pids[0][name] != pids[-1].get(name)]  # fmt: skip
    return {"slopes": found, "judged_from_s": part[0]["at_s"], "wrong": wrong}


def print_table(found: dict[str, dict[str, Slope]]) -> None:
    """Markdown, to standard error."""
    print("| | figure | then | at the end | an hour | 95% interval |", file=sys.stderr)
    print("|---|---|---|---|---|---|", file=sys.stderr)
    for name, figures in found.items():
        for key, each in figures.items():
            cells = f"{each.first:.4g} | {each.last:.4g} | {each.per_hour:.3g}"
            between = f"{each.low:.3g} to {each.high:.3g}"
            print(f"| {name} | {key} | {cells} | {between} |", file=sys.stderr)


# ---------------------------------------------------------------------- the run


def soak(folder: Path, seconds: float, keep: Callable[[Sample], None]) -> dict[str, Any]:
    """Serve for so long; every sample goes to `keep`."""
    model = {
        "name": "m", "model": str(tiny_model(folder)), "engine": "sim", "sim": SIM,
        "instances": {"min": INSTANCES}, "scheduling": RULES,
    }  # fmt: skip
    cluster = folder / CLUSTER
    with llx_up(folder, model) as port:
        records: list[Record] = []
        first = Load(port, cluster, FIRST_MOVES_S, 0.7 * CAPACITY, records)
        first.fill()
        with first.under_way():
            pass
        time.sleep(SETTLE_S)
        began = time.monotonic()
        keep(sample(cluster, 0.0, len(records)))
        load = Load(port, cluster, seconds, 0.7 * CAPACITY, records)
        with load.under_way():
            while not load.is_over.wait(SAMPLE_S):
                keep(sample(cluster, time.monotonic() - began, len(records)))
        time.sleep(SETTLE_S)
        with Cluster.for_cluster(cluster) as control:
            status = control.status()
            over = control.events(kinds=["migration.over"], match='"outcome": "moved"', limit=1)
        keep(sample(cluster, time.monotonic() - began, len(load.records)))
    loads = [each.load for each in status.instances]
    left = [
        f"{each.name}: {each.load.blocks_used} blocks, {each.load.running} running"
        for each in status.instances
        if each.load is not None and (each.load.blocks_used or each.load.running)
    ]
    return {
        "requests": len(load.records), "failures": load.failures[:5],
        "num_failed": len(load.failures), "moves_ordered": load.ordered,
        "moved": over.num_found, "left": left if all(loads) else ["an instance is silent"],
        "preemptions": sum(each.preemptions or 0 for each in status.instances),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="at 70%%, after the filling")
    parser.add_argument("--out", type=Path, help="a file for the samples")
    parser.add_argument("--read", type=Path, help="only judge the samples of a file")
    words = parser.parse_args()
    samples: list[Sample] = []
    told: dict[str, Any] = {}
    if words.read is not None:
        samples = [json.loads(line) for line in words.read.read_text("utf-8").splitlines()]
    else:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llx-soak-")))
            file = stack.enter_context(words.out.open("w", 1)) if words.out else None

            def keep(each: Sample) -> None:
                samples.append(each)
                if file is not None:
                    file.write(json.dumps(each) + "\n")

            told = soak(folder, words.minutes * 60, keep)
    found = judged(samples)
    print_table(found["slopes"])
    wrong = [*found["wrong"], *told.get("left", ()), *told.get("failures", ())]
    told |= {"judged_from_s": found["judged_from_s"], "wrong": wrong}
    print(json.dumps({"bench": "soak", "minutes": words.minutes, **told}))
    return 8 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
