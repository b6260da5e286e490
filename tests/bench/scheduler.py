"""What a decision of the scheduler core costs, against a heap's push and pop in the same run.

    .venv/bin/python -m tests.bench.scheduler [--rounds N]

`dispatch` is a request's arrival up to the command that sends it, at 64, 1,024 and 4,096 instances
with different loads, for the default policy; `held` is one that finds no room and becomes its
queue's head, `held anew` the same after reports of 65 instances. `report` is the intake of a load
report that changes the instance's freeness, with three classes. `round` is a tick at 1,024
instances, many of which have too much and many room to spare, that orders as many moves as one
may; `queued round` is one with a head waiting in each of three classes. Rounds and
`held anew` last long enough to be interrupted, and are timed by the thread's own clock. `probe` is
heapq's push and pop on a heap of as many entries. Ways take turns in every round. Bounds are judged
by the upper end of the 95% interval of the median over rounds; exit code 8 if one does not hold.
One JSON line on standard output.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from llx.core.model import (
    Blocks,
    ClassLoad,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
)
from llx.core.scheduler.config import PoolConfig, PriorityClass
from llx.core.scheduler.events import (
    InstanceJoined,
    LoadReported,
    PoolConfigured,
    RequestArrived,
    RequestWithdrawn,
    Ticked,
)
from llx.core.scheduler.scheduler import Scheduler
from tests.bench.intervals import interval_of_median

POOL = PoolName("m")
TOTAL = 800
REPEATS = 200
BOUNDS_US = {
    "dispatch 64": 20.0,
    "dispatch 1024": 50.0,
    "dispatch 4096": 150.0,
    "report 64": 10.0,
    "report 1024": 10.0,
    "report 4096": 10.0,
    "round 1024": 1000.0,
}
CLASSES = (
    PriorityClass(ClassName("high"), 0, Blocks(100)),
    PriorityClass(ClassName("normal"), 10),
    PriorityClass(ClassName("batch"), 20),
)


def name(number: int) -> InstanceId:
    return InstanceId(f"m-{number}")


def load(used: int, rng: random.Random) -> InstanceLoad:
    running = {0: rng.randrange(2), 10: rng.randrange(1, 20), 20: rng.randrange(5)}
    return InstanceLoad(
        total=Blocks(TOTAL), free=Blocks(TOTAL - used), block_size=Tokens(16),
        num_running=sum(running.values()),
        classes={each: ClassLoad(count) for each, count in running.items()},
    )  # fmt: skip


class Bench:
    """A scheduler with so many instances, whose memory is in use from `least` to `most` blocks."""

    def __init__(self, num_instances: int, least: int, most: int) -> None:
        self.rng = random.Random(num_instances)
        self.num_instances = num_instances
        self.least, self.most = least, most
        self.scheduler = Scheduler()
        self.now = 0
        self.num_requests = 0
        self.handle(PoolConfigured(PoolConfig(POOL, CLASSES)))
        for number in range(num_instances):
            self.handle(InstanceJoined(POOL, name(number)))
            self.handle(self.report(number))

    def handle(self, event):
        self.now += 1000
        return self.scheduler.handle(event, Nanos(self.now))

    def report(self, number: int) -> LoadReported:
        return LoadReported(name(number), load(self.rng.randrange(self.least, self.most), self.rng))

    def arrival(self, label: str, num_tokens: int) -> RequestArrived:
        self.num_requests += 1
        request = RequestId(f"r{self.num_requests}")
        return RequestArrived(POOL, request, ClassName(label), Tokens(num_tokens))

    def dispatch(self) -> float:
        """Microseconds of one arrival that is sent at once; the request is withdrawn after it."""
        event = self.arrival("normal", self.rng.randrange(100, 1000))
        took = timed(lambda: self.handle(event))
        self.handle(RequestWithdrawn(POOL, event.request))
        return took

    def held(self, clock: Callable[[], int] = time.perf_counter_ns) -> float:
        event = self.arrival("normal", TOTAL * 16 - 32)
        took = timed(lambda: self.handle(event), clock)
        self.handle(RequestWithdrawn(POOL, event.request))
        return took

    def held_anew(self) -> float:
        """The same after so many reports that the freest have to be found anew."""
        for number in self.rng.sample(range(self.num_instances), min(65, self.num_instances)):
            self.handle(self.report(number))
        return self.held(time.thread_time_ns)

    def intake(self) -> float:
        event = self.report(self.rng.randrange(self.num_instances))
        return timed(lambda: self.handle(event))


def rescheduling_round(num_queued: int) -> float:
    """A tick of a pool that has ordered nothing yet."""
    bench = Bench(1024, 0, TOTAL)
    for label in ["high", "normal", "batch"][:num_queued]:
        bench.handle(bench.arrival(label, TOTAL * 16 - 32))
    gc.collect()
    return timed(lambda: bench.handle(Ticked()), time.thread_time_ns)


def probe(heap: list[tuple[float, int]], rng: random.Random) -> float:
    entry = (rng.random(), rng.randrange(1 << 30))
    return timed(lambda: (heappush(heap, entry), heappop(heap)))


def timed(work: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> float:
    begin = clock()
    work()
    return (clock() - begin) / 1000


def median_of(work: Callable[[], float]) -> float:
    return statistics.median(work() for _ in range(REPEATS))


def ways(sizes: list[int]) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    for size in sizes:
        bench, rng = Bench(size, 0, TOTAL), random.Random(size)
        heap = [(rng.random(), each) for each in range(size)]
        heapify(heap)
        found[f"dispatch {size}"] = lambda bench=bench: median_of(bench.dispatch)
        found[f"held {size}"] = lambda bench=bench: median_of(bench.held)
        found[f"held anew {size}"] = lambda bench=bench: median_of(bench.held_anew)
        found[f"report {size}"] = lambda bench=bench: median_of(bench.intake)
        found[f"probe {size}"] = lambda heap=heap, rng=rng: median_of(lambda: probe(heap, rng))
    found["round 1024"] = lambda: rescheduling_round(0)
    found["queued round 1024"] = lambda: rescheduling_round(3)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    them, order = ways([64, 1024, 4096]), random.Random(0)
    samples: dict[str, list[float]] = {each: [] for each in them}
    gc.freeze()
    for _ in range(rounds):
        turns = list(them)
        order.shuffle(turns)
        for each in turns:
            samples[each].append(them[each]())
    result, holds = {}, True
    for each, values in samples.items():
        low, high = interval_of_median(values)
        size = each.rsplit(" ", 1)[1]
        ratios = [a / b for a, b in zip(values, samples[f"probe {size}"], strict=True)]
        bound = BOUNDS_US.get(each)
        holds = holds and (bound is None or high <= bound)
        result[each] = {
            "us": round(statistics.median(values), 2),
            "interval_us": [round(low, 2), round(high, 2)],
            "probes": round(statistics.median(ratios), 1),
            "bound_us": bound,
        }
    print(json.dumps(result))
    return 0 if holds else 8


if __name__ == "__main__":
    sys.exit(main())
