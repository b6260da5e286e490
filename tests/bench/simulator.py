"""How fast the simulator is, stepped and leaping, and how much memory a request takes.

``python -m tests.bench.simulator [--trace AZURE_CSV] [--requests N] [--rounds N] [--large N]
[--beside PYTHON]``

Each run is a process of its own; the variants take turns, and each figure is the median of the
rounds with the least and the most. A heap of the same run says how fast the machine is. With
`--beside` each is run by that Python, too, in which another llx is installed: a compiled one
(docs/simulator.md); the traces must be the same.
"""

import argparse
import heapq
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llx.sim import kernel
from llx.sim.cluster import Cluster
from llx.sim.presets import paper_cluster
from llx.sim.trace_files import read_trace
from llx.sim.workload import generated

RATE = 7.4
"""Of m-m, for 16 instances."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is run: a trace file, or m-m at the same rate for each instance."""

    name: str
    policy: str
    num_requests: int
    num_instances: int = 16
    leaps: bool = True
    trace: str | None = None
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Seen:
    requests_per_s: float
    events_per_request: float
    heap_per_s: float
    peak_bytes: int
    trace_hash: str
    code: str
    """The simulator that was run."""


def heap_rate(count=200_000):
    """Pushes and pops a second."""
    heap, begin = [], time.process_time()
    for index in range(count):
        heapq.heappush(heap, (index * 7919 % 1000, index))
        if len(heap) > 64:
            heapq.heappop(heap)
    return count / (time.process_time() - begin)


def requests_of(case):
    if case.trace is not None:
        return itertools.islice(read_trace(Path(case.trace), "azure"), case.num_requests)
    rate = RATE * case.num_instances / 16
    return iter(generated("m-m", rate, case.num_requests, 0))


def run(case):
    """One run, in processor time; reading or drawing the requests included."""
    config = replace(paper_cluster(case.policy, case.num_instances), leaps=case.leaps)
    heap = heap_rate()
    begin = time.process_time()
    result = Cluster(config, requests_of(case)).run(0)
    took = time.process_time() - begin
    count = result.overall.num_requests
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = result.num_events / count
    return Seen(count / took, each, heap, peak, result.trace_hash, kernel.__file__)


def in_turns(cases, num_rounds):
    """Each case in a fresh process, one after the other, in each round."""
    seen = {case: [] for case in cases}
    for _ in range(num_rounds):
        for case in cases:
            # By its path, lest the tree that this is run from be taken for the llx in question.
            argv = [case.python, "-P", __file__, "--one", json.dumps(asdict(case))]
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
            seen[case].append(Seen(**json.loads(done.stdout)))
    return seen


def tell(case, seen):
    rates = [each.requests_per_s for each in seen]
    assert len({each.trace_hash for each in seen}) == 1, f"{case.name}: runs differ"
    print(
        f"{case.name:32} {statistics.median(rates):7,.0f} requests/s "
        f"({min(rates):,.0f} … {max(rates):,.0f}), {seen[0].events_per_request:.1f} events each, "
        f"{seen[0].trace_hash[:12]}",
        flush=True,
    )


def both(case, python):
    """A case, and with another Python the same run by that."""
    if python is None:
        return [case]
    return [case, replace(case, name=f"{case.name}, beside", python=python)]


def tell_ratio(case, here, beside):
    assert here[0].trace_hash == beside[0].trace_hash, f"{case.name}: another trace"
    ratios = [b.requests_per_s / a.requests_per_s for a, b in zip(here, beside, strict=True)]
    low, high = min(ratios), max(ratios)
    print(f"{case.name:32} beside / here {statistics.median(ratios):.2f} ({low:.2f} … {high:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="the Azure conversation trace, gzipped or not")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=0, help="requests for 1,000 instances")
    parser.add_argument("--beside", metavar="PYTHON", help="one with another llx, in turns")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(asdict(run(Case(**json.loads(asked.one))))))
        return
    cases = [
        Case(f"m-m, {policy}", policy, asked.requests) for policy in ("infaas", "llumnix-10", "llx")
    ]
    cases.append(Case("m-m, llx, stepped", "llx", asked.requests, leaps=False))
    if asked.trace is not None:
        for how, leaps in (("leaping", True), ("stepped", False)):
            name = f"Azure, llx, {how}"
            trace = str(asked.trace.resolve())
            cases.append(Case(name, "llx", asked.requests, leaps=leaps, trace=trace))
    cases = [beside for case in cases for beside in both(case, asked.beside)]
    seen = in_turns(cases, asked.rounds)
    heaps = [each.heap_per_s for runs in seen.values() for each in runs]
    print(f"heap: {statistics.median(heaps):,.0f} pushes and pops/s")
    codes = list(dict.fromkeys(runs[0].code for runs in seen.values()))
    print("of", " and ".join(codes))
    if asked.beside and len(codes) < 2:
        parser.error(f"--beside {asked.beside} runs the same simulator")
    for case, runs in seen.items():
        tell(case, runs)
    for case in cases if asked.beside else ():
        if case.python != asked.beside:
            tell_ratio(case, seen[case], seen[both(case, asked.beside)[1]])
    few, many = (Case(f"m-m, {n}", "llx", n) for n in (asked.requests, 4 * asked.requests))
    peaks = [runs[0].peak_bytes for runs in in_turns([few, many], 1).values()]
    print(f"memory: {(peaks[1] - peaks[0]) / (3 * asked.requests):,.0f} bytes a request")
    if asked.large:
        case = Case("m-m, llx, 1,000 instances", "llx", asked.large, num_instances=1000)
        for each, runs in in_turns(both(case, asked.beside), 1).items():
            tell(each, runs)


if __name__ == "__main__":
    main()
