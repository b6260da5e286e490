"""How near the simulator is to a recorded run of real vLLM, calibrated from kernel profiles alone.

``python -m tests.bench.accuracy LOG DENSE ATTENTION PER_SEQUENCE --layers 32 --seqs 128``

LOG has a line of JSON for each request of one instance: input_toks, output_toks, arrival_time,
queued_ts, first_token_ts, last_token_ts, in seconds.
"""

import argparse
import gzip
import json
import statistics
from pathlib import Path

from llx.core.engine_state import EngineConfig
from llx.core.model import Blocks, Nanos, PoolName, Tokens
from llx.core.scheduler.config import PoolConfig, PriorityClass
from llx.sim.calibration import fit_step_time
from llx.sim.cluster import Cluster
from llx.sim.config import ClusterConfig
from llx.sim.kernel_profiles import kernel_samples
from llx.sim.links import LinkConfig
from llx.sim.workload import NORMAL, SimRequest

BLOCK_SIZE = 16
ENDLESS = 10**9


def read(path: Path) -> list[dict[str, float]]:
    data = path.read_bytes()
    lines = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    found = [json.loads(line) for line in lines.splitlines()]
    return sorted(found, key=lambda each: each["arrival_time"])


def figures(ttft: list[float], tpot: list[float], tokens: float, lasted: float) -> dict[str, float]:
    return {
        "ttft_p50_s": statistics.median(ttft),
        "tpot_p50_ms": 1e3 * statistics.median(tpot),
        "output_tokens_per_s": tokens / lasted,
    }


def measured(log: list[dict[str, float]]) -> dict[str, float]:
    several = [each for each in log if each["output_toks"] > 1]
    return figures(
        [each["first_token_ts"] - each["queued_ts"] for each in log],
        [
            (each["last_token_ts"] - each["first_token_ts"]) / (each["output_toks"] - 1)
            for each in several
        ],
        sum(each["output_toks"] for each in log),
        max(each["last_token_ts"] for each in log) - min(each["queued_ts"] for each in log),
    )


def simulated(log: list[dict[str, float]], engine: EngineConfig) -> dict[str, float]:
    begin = log[0]["arrival_time"]
    requests = [
        SimRequest(
            Nanos(round((each["arrival_time"] - begin) * 1e9)),
            Tokens(int(each["input_toks"])),
            Tokens(int(each["output_toks"])),
        )
        for each in log
    ]
    classes = (PriorityClass(NORMAL, 0, queue_limit=ENDLESS, max_wait=Nanos(10**18)),)
    pool = PoolConfig(PoolName("one"), classes, dispatch="round_robin", is_immediate=True)
    cluster = Cluster(ClusterConfig(1, engine, pool, LinkConfig(), 1), iter(requests))
    cluster.run(0)
    records = cluster.records
    return figures(
        [(each.first_at - each.request.arrival) / 1e9 for each in records],
        [
            (each.ended_at - each.first_at) / 1e9 / (each.request.num_outputs - 1)
            for each in records
            if each.request.num_outputs > 1
        ],
        sum(each.request.num_outputs for each in records),
        max(each.ended_at for each in records) / 1e9,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("log", "dense", "attention", "per_sequence"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--seqs", type=int, default=128)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=20_000)
    given = parser.parse_args()
    fit = fit_step_time(
        kernel_samples(given.dense, given.attention, given.per_sequence, given.layers)
    )
    engine = EngineConfig(
        Blocks(given.blocks), Tokens(BLOCK_SIZE), given.seqs, Tokens(given.budget),
        Tokens(16_384), fit.step_time,
    )  # fmt: skip
    log = read(given.log)
    real, ours = measured(log), simulated(log, engine)
    print(f"{len(log)} requests; steps within {fit.error:.1%} of the kernels")
    for name, value in real.items():
        error = ours[name] / value - 1
        print(f"{name:20} real {value:9.3f}   simulated {ours[name]:9.3f}   {error:+.1%}")


if __name__ == "__main__":
    main()
