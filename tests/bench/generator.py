"""How well the load generator holds a schedule: rates, streams at once, its own processor time.

python -m tests.bench.generator --rate 2000 --seconds 10 --tokens 4
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time

from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts, Segment
from llx.bench.record import Outcome
from llx.bench.schedule import Planned
from tests.bench.intervals import percentile


def schedule(rate: float, seconds: float, prompt: int, tokens: int) -> list[Planned]:
    draw = random.Random(1)
    at, found = 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        number = len(found)
        found.append(Planned(number, at, (Segment(str(number), prompt),), tokens))
    return found


async def measure(words: argparse.Namespace, port: int) -> None:
    planned = schedule(words.rate, words.seconds, words.prompt, words.tokens)
    records = []
    target = Target(f"http://127.0.0.1:{port}", "mock")
    generator = Generator(target, planned, Prompts("x", words.prompt), "bench", records.append)
    cpu = time.process_time()
    await generator.run()
    wall = time.perf_counter() - generator.began_at
    cpu = time.process_time() - cpu
    ok = [each for each in records if each.outcome is Outcome.OK]
    late = [each.lateness_s * 1000 for each in ok]
    sending = max(each.sent_at for each in ok) - generator.began_at
    tokens = sum(each.num_outputs for each in ok)
    ttft = [(each.first_at - each.sent_at) * 1000 for each in ok]
    gaps = [gap / 1000 for each in ok for gap in each.gaps_us]
    print(
        f"{len(ok)} of {len(planned)} ok, planned {len(planned) / planned[-1].at_s:.0f}/s, "
        f"sent {len(ok) / sending:.0f}/s; at most {generator.most_in_flight} streams; "
        f"{tokens / wall:.0f} tokens/s; processor {100 * cpu / wall:.0f}%"
    )
    for name, values in (("lateness", late), ("ttft", ttft), ("itl", gaps or [0.0])):
        print(
            f"{name} ms: mean {statistics.fmean(values):.3f} p50 {percentile(values, 0.5):.3f} "
            f"p99 {percentile(values, 0.99):.3f} max {max(values):.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    words = parser.parse_args()
    server = subprocess.Popen(
        [
            sys.executable, "-m", "tests.bench.sse_server",
            "--ttft-ms", str(words.ttft_ms), "--itl-ms", str(words.itl_ms),
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        asyncio.run(measure(words, int(server.stdout.readline())))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
