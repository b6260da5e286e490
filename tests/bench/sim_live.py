"""How near the simulator is to a live cluster that it was calibrated on: the same trace in both.

    .venv/bin/python -m tests.bench.sim_live                      2 instances of vLLM on the CPU
    .venv/bin/python -m tests.bench.sim_live --instances 1 --load 0.4 --rounds 3

One after the other on one cluster: `llx calibrate --load`, whose profile is all that the simulator
gets, then for each round a Poisson trace of its own, live as `llx bench` holds it and in virtual
time under the same policy. Ratios are simulated / live; intervals are 95% of a bootstrap over
stretches of ten requests, as neighbours wait for each other. Exit code 8 if mean or median TTFT is
certainly off by more than the bound. One JSON line on standard output.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts
from llx.bench.record import Record
from llx.bench.scenario import Trace, Workload
from llx.bench.schedule import make_schedule
from llx.client import ControlClient
from llx.sim.cluster import Cluster
from llx.sim.flags import Flags, planned
from llx.sim.profile import Profile, load_profile
from llx.sim.run import installed_policies, prepare
from tests.bench.intervals import percentile
from tests.bench.overhead import NODE, llx_environment, llx_up
from tests.node import ROOT, node_environment

MODEL = "wide"
ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
    "num_gpu_blocks_override": 1024,
    "enforce_eager": True,
    "dtype": "bfloat16",
}
PROMPT = (16, 512)
OUTPUT = (8, 96)
BATCH = 8
STRETCH = 10
SCENARIO = "{report_every_ms: 20, classes: {normal: {priority: 0}}}\n"
"""Live, instances report as often; one class."""


@dataclass(frozen=True)
class Pair:
    """A request in both: seconds to the first token, and for each after it."""

    live_ttft: float
    sim_ttft: float
    live_tpot: float
    sim_tpot: float


def rate_of(profile: Profile, load: float, instances: int) -> float:
    """Requests a second that keep instances so busy, if they run a batch of `BATCH`."""
    step = profile.engine.step.value()
    prompt, output = (
        statistics.mean(log_uniform(random.Random(0), each, 2000)) for each in (PROMPT, OUTPUT)
    )
    context = round(BATCH * (prompt + output / 2))
    decode_ns = step.of(0, BATCH, context) / BATCH
    prefill_ns = step.of(round(prompt), 0, round(prompt)) - step.base_ns
    return load * instances * 1e9 / (prefill_ns + output * decode_ns)


def log_uniform(draw: random.Random, span: tuple[int, int], count: int) -> list[int]:
    least, most = span
    return [round(least * (most / least) ** draw.random()) for _ in range(count)]


def write_trace(path: Path, seed: int, rate: float, duration_s: float) -> int:
    """Poisson arrivals; the number of requests."""
    draw = random.Random(seed)
    count = max(2 * STRETCH, round(rate * duration_s))
    prompts, outputs = (log_uniform(draw, each, count) for each in (PROMPT, OUTPUT))
    at, lines = 0.0, []
    for prompt, output in zip(prompts, outputs, strict=True):
        line = {"timestamp": round(at, 6), "input_length": prompt, "output_length": output}
        lines.append(json.dumps(line))
        at += draw.expovariate(rate)
    path.write_text("\n".join(lines) + "\n")
    return count


def live(trace: Path, count: int, port: int, seed: int) -> list[Record]:
    """What `llx bench` would measure, in the order of arrival."""
    schedule = make_schedule(
        Workload(requests=count, trace=Trace(file=trace, format="timed")), seed
    )
    records: list[Record] = []
    target = Target(f"http://127.0.0.1:{port}", MODEL)
    name = f"sim-live-{seed}"
    asyncio.run(Generator(target, schedule, Prompts(name, 4096), name, records.append).run())
    failed = [each.error for each in records if each.ttft_s is None]
    assert not failed, f"{len(failed)} requests failed: {failed[0]}"
    return sorted(records, key=lambda each: each.number)


def simulated(
    folder: Path, trace: Path, profile: Path, instances: int
) -> list[tuple[float, float]]:
    """(TTFT, TPOT) of the same requests, in the order of arrival."""
    scenario = folder / "scenario.yaml"
    scenario.write_text(SCENARIO)
    flags = Flags(
        trace=trace, trace_format="timed", profile=profile, instances=instances, policies=("llx",)
    )
    plan, policies = planned(scenario, flags), installed_policies()
    supply = prepare(plan, policies)
    assert supply.num_left_out == 0, "every request fits"
    cluster = Cluster(plan.variants[0].cluster, iter(supply.requests(0, None)), policies=policies)
    cluster.run(0)
    return [
        (
            (each.first_at - each.request.arrival) / 1e9,
            (each.ended_at - each.first_at) / 1e9 / max(1, each.request.num_outputs - 1),
        )
        for each in cluster.records
    ]


def pair_up(records: list[Record], simulation: list[tuple[float, float]]) -> list[Pair]:
    assert len(records) == len(simulation)
    return [
        Pair(each.ttft_s, ttft, (each.last_at - each.first_at) / max(1, each.num_outputs - 1), tpot)
        for each, (ttft, tpot) in zip(records, simulation, strict=True)
    ]


Figure = Callable[[list[float]], float]
FIGURES: dict[str, Figure] = {
    "mean": statistics.fmean,
    "p50": statistics.median,
    "p99": lambda values: percentile(values, 0.99),
}


def ratios(pairs: list[Pair], what: str) -> dict[str, object]:
    """Of each figure, both values, their ratio and its interval."""
    found: dict[str, object] = {}
    stretches = [pairs[i : i + STRETCH] for i in range(0, len(pairs), STRETCH)]
    draw = random.Random(1)
    for name, figure in FIGURES.items():

        def both(some: list[Pair], figure: Figure = figure) -> tuple[float, float]:
            return tuple(
                figure([getattr(e, f"{end}_{what}") for e in some]) for end in ("live", "sim")
            )  # type: ignore[return-value]

        again = []
        for _ in range(1000):
            picked = [e for one in draw.choices(stretches, k=len(stretches)) for e in one]
            of_live, of_sim = both(picked)
            again.append(of_sim / of_live)
        again.sort()
        of_live, of_sim = both(pairs)
        found[name] = {
            "live_ms": round(of_live * 1e3, 2),
            "sim_ms": round(of_sim * 1e3, 2),
            "ratio": round(of_sim / of_live, 4),
            "ci95": [round(again[25], 4), round(again[974], 4)],
        }
    return found


def calibrate(folder: Path, duration_s: float) -> Path:
    profile = folder / "profile.yaml"
    words = ["calibrate", "--load", "-y", "--duration", f"{duration_s:g}s", "--out", str(profile)]
    command = [sys.executable, "-m", "llx", *words]
    subprocess.run(command, env=llx_environment(folder), check=True, stdout=sys.stderr)
    return profile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=2, choices=(1, 2))
    parser.add_argument("--load", type=float, default=0.4, help="share of what instances can do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=40.0)
    parser.add_argument("--calibrate-s", type=float, default=60.0)
    parser.add_argument("--bound", type=float, default=0.15)
    given = parser.parse_args()
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory(prefix="llx-sim-live-") as name:
        folder = Path(name)
        model, script = folder / "model", str(ROOT / "tests/bench/wide_model.py")
        make = [str(NODE / "bin/python"), script, str(model)]
        subprocess.run(make, env=node_environment(), check=True, stdout=sys.stderr)
        entry = {
            "name": MODEL,
            "model": str(model),
            "instances": {"min": given.instances, "max": given.instances},
            "engine_args": ENGINE_ARGS,
        }
        with llx_up(folder, entry) as port:
            path = calibrate(folder, given.calibrate_s)
            profile = load_profile(path)
            rate = rate_of(profile, given.load, given.instances)
            for round_ in range(given.rounds):
                trace = folder / f"trace-{round_}.jsonl"
                count = write_trace(trace, round_, rate, given.round_s)
                records = live(trace, count, port, round_)
                pairs += pair_up(records, simulated(folder, trace, path, given.instances))
            with ControlClient.for_cluster(folder / "state/llx/clusters/bench") as control:
                moves = sum(each.outcome is not None for each in control.migrations())
    ttft = ratios(pairs, "ttft")
    print(
        json.dumps(
            {
                "instances": given.instances,
                "requests": len(pairs),
                "rate": round(rate, 3),
                "moves": moves,
                "fit": profile.fit.model_dump(mode="json"),
                "step": profile.engine.step.model_dump(exclude_defaults=True),
                "gateway_ms": profile.link.gateway_ms,
                "ttft": ttft,
                "tpot": ratios(pairs, "tpot"),
            }
        )
    )
    off = [
        name
        for name in ("mean", "p50")
        if ttft[name]["ci95"][0] > 1 + given.bound or ttft[name]["ci95"][1] < 1 - given.bound
    ]
    if off:
        print(f"TTFT is off by more than {given.bound:.0%}: {', '.join(off)}", file=sys.stderr)
    return 8 if off else 0


if __name__ == "__main__":
    sys.exit(main())
