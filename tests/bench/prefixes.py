"""What prefix hits cost, part by part: at an instance, at a gateway, at the scheduler.

    .venv/bin/python -m tests.bench.prefixes [--rounds N]

By the node's Python it measures vLLM's parts, too. A prompt has 2,000 tokens in blocks of 16.
`place` is its way through the scheduler: the message is decoded and its 124 blocks are looked up
among 4 and 64 instances of 20,000 blocks, each of which has some of them. `hear` is a report of 16
new blocks and 16 that are gone, decoded and taken in. `report` is the same at the instance: noted,
gathered, encoded; `whole` tells of 20,000. With vLLM: `names` is a gateway computing the blocks'
names, `stored` and `stored one by one` are vLLM storing the prompt's blocks in place of others, as
a prefill and as a decode do, with nobody listening and with somebody. Ways take turns in every
round. One JSON line on standard output: microseconds, median over rounds with its 95% interval; and
bytes of memory for each block of each instance.
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

from llx.agent.prefix_log import PrefixLog
from llx.agent.prefix_reports import PrefixReports
from llx.cluster.scheduling.prefix_book import PrefixBook
from llx.core.model import ClassName, InstanceId, Nanos, PoolName, RequestId
from llx.core.prefix_blocks import BlockName, packed, unpacked
from llx.wire import Decoder, FromInstance, Place, Prefixes, ToScheduler, encode
from tests.bench.intervals import interval_of_median

POOL, A = PoolName("m"), InstanceId("i-0")
PROMPT, BLOCK, EACH = 2000, 16, 20_000
Way = Callable[[], object]


def names(count: int, draw: random.Random) -> list[BlockName]:
    return [BlockName(draw.getrandbits(64)) for _ in range(count)]


def scheduler(num_instances: int, draw: random.Random) -> tuple[dict[str, Way], float]:
    """The scheduler's ways, and bytes for each block."""
    prompt = names((PROMPT - 1) // BLOCK, draw)
    own = [
        packed([*prompt[: draw.randrange(124)], *names(EACH, draw)]) for _ in range(num_instances)
    ]
    tracemalloc.start()
    book = PrefixBook()
    book.keep([POOL])
    for number, blocks in enumerate(own):
        book.hear(POOL, InstanceId(f"i-{number}"), Prefixes(1, 1, 0, True, blocks))
    size = tracemalloc.get_traced_memory()[0] / (num_instances * EACH)
    tracemalloc.stop()
    place = encode(
        Place(POOL, RequestId("r"), 1, ClassName("x"), PROMPT, Nanos(0), "", packed(prompt), BLOCK)
    )
    asks: Decoder[ToScheduler] = Decoder(ToScheduler)
    tells: Decoder[FromInstance] = Decoder(FromInstance)
    last = [packed(names(16, draw))]

    def reports() -> Iterator[bytes]:
        while True:
            added = packed(names(16, draw))
            yield encode(Prefixes(1, 1, 1, False, added, last[0]))
            last[0] = added

    coming = [frame for frame, _ in zip(reports(), range(5000), strict=False)]

    def hear() -> None:
        book.hear(POOL, A, tells.decode(coming.pop()))

    ways: dict[str, Way] = {
        f"place {num_instances}": lambda: book.hits(asks.decode(place)),
        f"hear {num_instances}": hear,
    }
    return ways, size


def instance(draw: random.Random) -> tuple[dict[str, Way], float]:
    """The instance's ways, and bytes for each block."""
    blocks = names(EACH, draw)
    told = packed(blocks)
    tracemalloc.start()
    log = PrefixLog()
    log.begin(unpacked(told))
    size = tracemalloc.get_traced_memory()[0] / EACH
    tracemalloc.stop()
    reports = PrefixReports(log, lambda _: None)
    reports.ask(0, 1)
    reports.next(0, 1)
    last, news = blocks[:16], [names(16, draw) for _ in range(5000)]

    def report() -> bytes:
        nonlocal last
        log.remove(last)
        last = news.pop()
        log.add(last)
        told = reports.next(0, 1)
        assert told is not None
        return encode(told)

    def whole() -> bytes:
        other = PrefixReports(log, lambda _: None)
        other.ask(1, 1)
        told = other.next(1, 1)
        assert told is not None
        return encode(told)

    return {"report": report, "whole": whole}, size


def _figures(took: list[float]) -> tuple[float, ...]:
    return statistics.median(took), *interval_of_median(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    draw = random.Random(1)
    few, size = scheduler(4, draw)
    many, size_of_many = scheduler(64, draw)
    here, size_here = instance(draw)
    ways = few | many | here
    if importlib.util.find_spec("vllm") is not None:
        from tests.bench.prefixes_vllm import vllm_ways

        ways |= vllm_ways(PROMPT, BLOCK)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            took[name].append((time.perf_counter() - start) * 1e6)
    report = {
        "us": {name: [round(each, 1) for each in _figures(took[name])] for name in ways},
        "bytes": {
            "index 4": round(size), "index 64": round(size_of_many), "instance": round(size_here),
        },
    }  # fmt: skip
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
