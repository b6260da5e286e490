"""Goodput when far more is asked than can be served: 1, 2 and 3 times a cluster's peak.

    .venv/bin/python -m tests.bench.overload
    .venv/bin/python -m tests.bench.overload --bounds none,wait --rounds 3
    .venv/bin/python -m tests.bench.overload --engine vllm --bounds none,wait

Two instances of `engine: sim`, or of vLLM on the CPU, real gateway and head. A good request ends
well, has its first token within `TTFT_MS` and then one each `TPOT_MS`; goodput is good requests a
second. Where clients say how long they wait, one is good that ends in that time. First the peak:
the best of rates around what the engines can do by their step time, which a burst tells of vLLM.
Then that rate once, twice and three times, in turns that are shuffled anew in each round, for each
way to bound what waits:

    none      nothing is bounded, as without settings
    wait      the class has `max_wait_s`, a little below the time to the first token
    timeout   each client says how long it waits (`X-LLX-Timeout`), and no more is set

Exit code 8 if with a bound goodput at three times the peak is certainly below 90% of the peak's
(95% interval of the ratio over rounds; the peak of a round is its best run, whichever that is). One
JSON line on standard output. On simulated engines this says what llx does with too much, and
nothing of vLLM.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts
from llx.bench.record import Outcome, Record
from llx.bench.scenario import Arrivals, Between, Lengths, Slo, Workload
from llx.bench.schedule import make_schedule
from llx.bench.summary import is_good
from llx.client import Cluster
from tests.bench.intervals import interval_of_median, percentile
from tests.bench.migration import made_model
from tests.bench.overhead import llx_up, tiny_model
from tests.bench.scheduler_kills import CLUSTER

INSTANCES: Final = 2
BATCH: Final = 8
TTFT_MS: Final = 1500.0
TPOT_MS: Final = 100.0
OUTPUTS: Final = (15, 45)
TIMEOUT_S: Final = 4.0
"""Enough for a request that waits no longer than `TTFT_MS` and is served at the usual pace."""
MAX_WAIT_S: Final = 1.2
SIM: Final[dict[str, Any]] = {
    "step_base_ms": 40.0, "step_ms_per_decode": 1.0, "step_ms_per_prefill_token": 0.05,
    "step_ms_per_context_ktoken": 0.0, "num_blocks": 400, "block_size": 16,
    "max_num_seqs": BATCH, "max_num_batched_tokens": 2048,
}  # fmt: skip
SIM_STEP_S: Final = 0.048
VLLM: Final[dict[str, Any]] = {
    "max_model_len": 512, "block_size": 32, "num_gpu_blocks_override": 200, "max_num_seqs": BATCH,
    "max_num_batched_tokens": 512, "enforce_eager": True,
}  # fmt: skip
SHARES: Final = (0.7, 0.8, 0.9, 1.0, 1.1)
TIMES: Final = (1, 2, 3)
WAYS: Final = ("none", "wait", "timeout")
PACED: Final = Slo(ttft_ms=TTFT_MS, tpot_ms=TPOT_MS)
IN_TIME: Final = Slo(e2el_ms=TIMEOUT_S * 1e3)
LEAST: Final = 0.9


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of load. Rates a second, latencies in milliseconds.

    `paced`: requests with tokens soon and steadily; `in_time`: those that ended within `TIMEOUT_S`.
    """

    way: str
    rate: float
    paced: float
    in_time: float
    completed: float
    ttft_p50: float
    ttft_p99: float
    errors: dict[str, int]


def bound(folder: Path, way: str) -> None:
    """Have the cluster bound what waits in that way."""
    with Cluster.for_cluster(folder / CLUSTER) as control:
        settings = yaml.safe_load(control.settings())
        for each in settings["priority_classes"]:
            each["max_wait_s"] = MAX_WAIT_S if way == "wait" else 600
        control.put_settings(yaml.safe_dump(settings))


def drive(port: int, way: str, rate: float, seconds: float, seed: int) -> Run:
    """Poisson arrivals for so long, then until the last answer."""
    workload = Workload(
        requests=round(rate * seconds),
        arrivals=Arrivals(rate=rate),
        lengths=Lengths(
            prompt=Between(least=16, most=128), output=Between(least=OUTPUTS[0], most=OUTPUTS[1])
        ),
    )
    records: list[Record] = []
    target = Target(
        f"http://127.0.0.1:{port}", "m", timeout_s=TIMEOUT_S if way == "timeout" else None
    )
    name = f"overload-{seed}"
    generator = Generator(
        target, make_schedule(workload, seed), Prompts(name, 128), name, records.append
    )
    asyncio.run(generator.run())
    ok = [each for each in records if each.outcome is Outcome.OK]
    ttfts = [each.ttft_s * 1e3 for each in ok if each.ttft_s is not None]
    span = max(each.planned_at for each in records) - min(each.planned_at for each in records)
    return Run(
        way=way,
        rate=rate,
        paced=sum(is_good(each, PACED) for each in records) / span,
        in_time=sum(is_good(each, IN_TIME) for each in records) / span,
        completed=len(ok) / span,
        ttft_p50=statistics.median(ttfts) if ttfts else float("nan"),
        ttft_p99=percentile(ttfts, 0.99) if ttfts else float("nan"),
        errors=dict(Counter(each.error[:60] for each in records if each.error).most_common(4)),
    )


def pace_s(port: int) -> float:
    """A step's time while both engines are full."""
    burst = Workload(
        requests=INSTANCES * BATCH,
        arrivals=Arrivals(rate=1000),
        lengths=Lengths(prompt=16, output=100),
    )
    tpots: list[float] = []
    for seed in range(3):
        records: list[Record] = []
        name = f"pace-{seed}"
        target = Target(f"http://127.0.0.1:{port}", "m")
        schedule = make_schedule(burst, seed)
        generator = Generator(target, schedule, Prompts(name, 16), name, records.append)
        asyncio.run(generator.run())
        tpots += [each.tpot_s for each in records if each.tpot_s is not None]
    return statistics.median(tpots)


def goodput(run: Run, way: str) -> float:
    """By what counts where requests are bounded in that way."""
    return run.in_time if way == "timeout" else run.paced


def peak(folder: Path, port: int, seconds: float, step_s: float) -> tuple[float, list[Run]]:
    """The rate with the most goodput, and what was tried."""
    bound(folder, "none")
    capacity = INSTANCES * BATCH / (statistics.mean(OUTPUTS) * step_s)
    tried = []
    for number, share in enumerate(SHARES):
        tried.append(drive(port, "none", share * capacity, seconds, 100 + number))
        print(tried[-1], file=sys.stderr)
        time.sleep(1)
    return max(tried, key=lambda each: each.paced).rate, tried


def rounds(folder: Path, port: int, rate: float, args: argparse.Namespace) -> list[list[Run]]:
    """Each way at each rate, in each round."""
    draw, found = random.Random(1), []
    for number in range(args.rounds):
        turns = [(way, times) for way in args.bounds for times in TIMES]
        draw.shuffle(turns)
        runs = []
        for way, times in turns:
            bound(folder, way)
            runs.append(drive(port, way, times * rate, args.seconds, number))
            print(times, runs[-1], file=sys.stderr)
            time.sleep(1)
        found.append(runs)
    return found


def judged(rate: float, found: list[list[Run]], ways: list[str]) -> tuple[dict[str, Any], bool]:
    """Of each way and rate the goodput over the best of the same round, at whatever rate."""
    table: dict[str, Any] = {}
    holds = True
    for way in ways:
        for times in TIMES:
            runs = [
                (each, max(goodput(other, way) for other in runs))
                for runs in found
                for each in runs
                if each.way == way and each.rate == times * rate
            ]
            ratios = [goodput(each, way) / best for each, best in runs]
            low, high = interval_of_median(ratios)
            table[f"{way} x{times}"] = {
                "goodput": round(statistics.median(goodput(each, way) for each, _ in runs), 2),
                "of_peak": round(statistics.median(ratios), 3),
                "interval": [round(low, 3), round(high, 3)],
                "completed": round(statistics.median(each.completed for each, _ in runs), 2),
                "ttft_p50_ms": round(statistics.median(each.ttft_p50 for each, _ in runs)),
                "ttft_p99_ms": round(statistics.median(each.ttft_p99 for each, _ in runs)),
            }
            holds = holds and (way == "none" or times == 1 or high >= LEAST)
    return table, holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bounds", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--engine", choices=["sim", "vllm"], default="sim")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--peak", type=float, help="requests a second, instead of looking for it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-overload-") as name:
        folder = Path(name)
        model: dict[str, Any] = {"name": "m", "instances": {"min": INSTANCES}}
        if args.engine == "sim":
            model |= {"model": str(tiny_model(folder)), "engine": "sim", "sim": SIM}
        else:
            model |= {"model": str(made_model("deep", folder / "deep")), "engine_args": VLLM}
        with llx_up(folder, model) as port:
            step_s = SIM_STEP_S if args.engine == "sim" else pace_s(port)
            print(f"a step takes {step_s * 1e3:.1f} ms", file=sys.stderr)
            found_peak = None if args.peak else peak(folder, port, args.seconds, step_s)
            rate, tried = found_peak or (args.peak, [])
            found = rounds(folder, port, rate, args)
    table, holds = judged(rate, found, args.bounds)
    told = {
        "bench": "overload", "engine": args.engine, "step_ms": round(step_s * 1e3, 1),
        "peak_rate": round(rate, 2), "rounds": args.rounds, "table": table,
        "peak": [asdict(each) for each in tried], "holds": holds,
    }  # fmt: skip
    print(json.dumps(told))
    return 0 if holds else 8


if __name__ == "__main__":
    sys.exit(main())
