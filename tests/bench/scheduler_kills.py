"""What clients notice when the scheduler is killed under load, ten times: simulated engines.

    .venv/bin/python -m tests.bench.scheduler_kills [--kills 10]

Two instances run fewer requests than there are clients, so that the central queue is never empty.
The head's process is killed (SIGKILL) again and again. Each time: until the control API answers
again, until the scheduler has a queue again, and the longest time in which no stream began while it
was gone, beside the longest one before.

Exit code 8 if a stream failed or had more or fewer tokens than asked for, if the queue's requests
are not all of those that wait, or if control is back after more than 2 s in the median. One JSON
line on standard output. This says what the head does, and nothing of vLLM.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from llx.client import Cluster
from llx.errors import LlxError
from tests.bench.overhead import llx_up, tiny_model
from tests.bench.sse_load import Client

RUNNING: Final = 4
"""Requests that an instance runs at a time."""
CLIENTS: Final = 24
QUEUED: Final = CLIENTS - 2 * RUNNING
CLUSTER: Final = "state/llx/clusters/bench"
TOKENS: Final = 50
SIM: Final = {"step_base_ms": 10.0, "num_blocks": 256, "block_size": 16, "max_num_seqs": RUNNING}
_LIMIT_S: Final = 60.0


@dataclass(slots=True)
class Load:
    """Clients that ask, one request after the other, until they are told to stop."""

    port: int
    began: list[float] = field(default_factory=list)
    """When streams had their first token."""
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    def run(self) -> None:
        """To its end; on a thread of its own."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(number) for number in range(CLIENTS)))

    async def _ask(self, number: int) -> None:
        async with Client("127.0.0.1", self.port) as client:
            for turn in itertools.count():
                if self.is_over:
                    return
                at = time.perf_counter()
                try:
                    sample = await client.complete("m", [number + 10, turn % 200 + 10], TOKENS)
                except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
                    self.failures.append(repr(error))
                    return
                self.began.append(at + sample.ttft_s)

    def longest_gap_s(self, begin: float, end: float) -> float:
        """In which nobody had a first token."""
        within = sorted(each for each in self.began if begin <= each <= end)
        return max(b - a for a, b in itertools.pairwise([begin, *within, end]))


@dataclass(frozen=True, slots=True)
class Kill:
    """One of them. Times in seconds; `queued`: requests in the queue of the one that came."""

    control_s: float
    queue_s: float
    queued: int
    gap_s: float
    gap_before_s: float


def head_pid(folder: Path) -> int:
    """Of the head's process, which its keeper has started."""
    shim = folder / CLUSTER / "procs/head/shim.json"
    keeper = json.loads(shim.read_text(encoding="utf-8"))["child_pid"]
    return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])


def until(folder: Path, check: Callable[[Cluster], bool]) -> float:
    """When that was so of whichever head there is; each may listen elsewhere."""
    deadline = time.perf_counter() + _LIMIT_S
    while time.perf_counter() < deadline:
        try:
            with Cluster.for_cluster(folder / CLUSTER, timeout_s=2.0) as control:
                if check(control):
                    return time.perf_counter()
        except LlxError:
            pass
        time.sleep(0.02)
    raise TimeoutError("the head does not come back")


def waiting(control: Cluster) -> int:
    """Requests in central queues."""
    return sum(each.waiting for each in control.queues().queues)


def one(folder: Path, load: Load) -> Kill:
    """Kill it, and look on until all is as before."""
    before = time.perf_counter()
    time.sleep(3.0)
    at = time.perf_counter()
    os.kill(head_pid(folder), signal.SIGKILL)
    back = until(folder, lambda control: bool(control.status().instances))
    queue = until(folder, lambda control: waiting(control) >= QUEUED - 2)
    time.sleep(2.0)
    with Cluster.for_cluster(folder / CLUSTER) as control:
        queued = waiting(control)
    end = time.perf_counter()
    gaps = load.longest_gap_s(at, end), load.longest_gap_s(before, at)
    return Kill(back - at, queue - at, queued, *gaps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    words = parser.parse_args()
    kills = []
    with tempfile.TemporaryDirectory(prefix="llx-kills-") as name:
        folder = Path(name)
        model = {
            "name": "m", "model": str(tiny_model(folder)), "engine": "sim", "sim": SIM,
            "instances": {"min": 2},
        }  # fmt: skip
        with llx_up(folder, model) as port:
            load = Load(port)
            asking = threading.Thread(target=load.run)
            asking.start()
            try:
                time.sleep(2.0)
                for _ in range(words.kills):
                    kills.append(one(folder, load))
                    print(kills[-1], file=sys.stderr)
            finally:
                load.is_over = True
                asking.join(_LIMIT_S)
    median = {
        name: round(statistics.median(each[name] for each in map(asdict, kills)), 3)
        for name in asdict(kills[0])
    }
    is_whole = all(abs(each.queued - QUEUED) <= 4 for each in kills)
    holds = not load.failures and is_whole and median["control_s"] <= 2.0
    found = {
        "kills": len(kills), "streams": len(load.began), "failed": load.failures,
        "median": median, "control_s": sorted(round(each.control_s, 2) for each in kills),
        "queued": [each.queued for each in kills], "holds": holds,
    }  # fmt: skip
    print(json.dumps(found))
    return 0 if holds else 8


if __name__ == "__main__":
    sys.exit(main())
