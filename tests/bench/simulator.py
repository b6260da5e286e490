"""How fast the simulator is, stepped and leaping, against a heap in the same run.

``python -m tests.bench.simulator [REQUESTS]``
"""

import heapq
import sys
import time
from dataclasses import replace

from llx.sim.cluster import Cluster
from llx.sim.presets import paper_cluster
from llx.sim.workload import generated


def heap_rate(count=200_000):
    """Pushes and pops a second."""
    heap, begin = [], time.process_time()
    for index in range(count):
        heapq.heappush(heap, (index * 7919 % 1000, index))
        if len(heap) > 64:
            heapq.heappop(heap)
    return count / (time.process_time() - begin)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    requests = generated("m-m", 7.4, count, 0)
    print(f"heap: {heap_rate():,.0f} pushes and pops/s")
    for leaps in (False, True):
        config = replace(paper_cluster("llx"), leaps=leaps)
        begin = time.process_time()
        result = Cluster(config, iter(requests)).run(0)
        took = time.process_time() - begin
        how = "leaping" if leaps else "stepped"
        rates = f"{count / took:,.0f} requests/s, {result.num_events / took:,.0f} events/s"
        print(f"{how}: {rates}, {result.trace_hash[:12]}")


if __name__ == "__main__":
    main()
