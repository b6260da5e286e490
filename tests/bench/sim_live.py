"""How near the simulator is to a live cluster that it was calibrated on: the same trace in both.

    .venv/bin/python -m tests.bench.sim_live                      2 instances of vLLM on the CPU
    .venv/bin/python -m tests.bench.sim_live --instances 1 --load 0.4 --rounds 3

In turns, so that a machine that drifts drifts for both: the load of `llx calibrate --load`, then a
Poisson trace live, as `llx bench` holds it. In the end one profile is fitted to all the steps of
the loads (not of the traces), and every trace run again in virtual time, by it and the same policy.

Ratios are simulated / live; intervals are 95% of a bootstrap over stretches of ten requests, as
neighbours wait for each other. `trace_steps` holds the model against the steps of the traces
themselves: where those take longer than predicted, it is not the simulator that is wrong. Exit code
8 if mean or median TTFT is certainly off by more than the bound. One JSON line on standard output.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llx.bench.calibrate import fit
from llx.bench.calibration_load import CalibrationLoad
from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts
from llx.bench.record import Record
from llx.bench.scenario import Trace, Workload
from llx.bench.schedule import make_schedule
from llx.bench.step_watch import StepWatch
from llx.client import Cluster as Head
from llx.scheduling_settings import installed_policies
from llx.sim.cluster import Cluster
from llx.sim.flags import Flags, planned
from llx.sim.profile import Profile
from llx.sim.run import prepare
from tests.bench.intervals import percentile
from tests.bench.migration import made_model
from tests.bench.overhead import llx_up

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


def check_steps(watch: StepWatch, profile: Profile) -> dict[str, float]:
    """Steps as they were against what the model says of them."""
    step = profile.engine.step.value()
    measured, predicted = [], []
    for each in watch.samples():
        measured.append(each.duration_ns)
        predicted.append(
            step.of(
                each.num_prefill_tokens,
                each.num_decodes,
                each.num_context_tokens,
                each.num_square_tokens,
                each.num_decode_context_tokens,
            )
        )
    single = sorted(a / b for a, b in zip(predicted, measured, strict=True))
    return {
        "steps": len(measured),
        "sum_ratio": round(sum(predicted) / sum(measured), 4),
        "p50_ratio": round(statistics.median(single), 4),
    }


@dataclass
class Turns:
    """The rounds on a live cluster, and what they brought."""

    port: int
    control: Head
    folder: Path
    given: argparse.Namespace
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.loads = StepWatch(self.control, MODEL)
        self.traces = StepWatch(self.control, MODEL)
        self.rounds: list[tuple[Path, list[Record]]] = []

    def run(self) -> None:
        for number in range(self.given.rounds):
            self._load()
            if not self.rate:
                self.rate = rate_of(fit(self.loads).profile, self.given.load, self.given.instances)
            self._trace(number)

    def _load(self) -> None:
        self.loads.skip()
        target = Target(f"http://127.0.0.1:{self.port}", MODEL)
        seconds = self.given.calibrate_s / self.given.rounds
        load = CalibrationLoad(target, self.control, self.loads, seconds, "", "bench")
        asyncio.run(load.run(lambda _gone, _steps: None))

    def _trace(self, number: int) -> None:
        trace = self.folder / f"trace-{number}.jsonl"
        count = write_trace(trace, number, self.rate, self.given.round_s)
        self.traces.skip()
        self.rounds.append((trace, live(trace, count, self.port, number)))
        self.traces.look()


def report(turns: Turns, given: argparse.Namespace) -> dict[str, object]:
    calibrated = fit(turns.loads)
    profile, path = calibrated.profile, turns.folder / "profile.yaml"
    path.write_text(profile.text())
    pairs = [
        pair
        for trace, records in turns.rounds
        for pair in pair_up(records, simulated(turns.folder, trace, path, given.instances))
    ]
    return {
        "instances": given.instances,
        "requests": len(pairs),
        "rate": round(turns.rate, 3),
        "fit": profile.fit.model_dump(mode="json"),
        "step": profile.engine.step.model_dump(exclude_defaults=True),
        "link": profile.link.model_dump(exclude_none=True),
        "trace_steps": check_steps(turns.traces, profile),
        "ttft": ratios(pairs, "ttft"),
        "tpot": ratios(pairs, "tpot"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=2, choices=(1, 2))
    parser.add_argument("--load", type=float, default=0.4, help="share of what instances can do")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--round-s", type=float, default=30.0)
    parser.add_argument("--calibrate-s", type=float, default=80.0, help="of all rounds together")
    parser.add_argument("--bound", type=float, default=0.15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-sim-live-") as name:
        folder = Path(name)
        model = made_model("wide", folder / "model")
        entry = {
            "name": MODEL,
            "model": str(model),
            "instances": {"min": given.instances, "max": given.instances},
            "engine_args": ENGINE_ARGS,
        }
        with (
            llx_up(folder, entry) as port,
            Head.for_cluster(folder / "state/llx/clusters/bench") as control,
        ):
            turns = Turns(port, control, folder, given)
            turns.run()
            found = report(turns, given)
    print(json.dumps(found))
    off = [
        name
        for name, each in found["ttft"].items()
        if name in ("mean", "p50")
        and (each["ci95"][0] > 1 + given.bound or each["ci95"][1] < 1 - given.bound)
    ]
    if off:
        print(f"TTFT is off by more than {given.bound:.0%}: {', '.join(off)}", file=sys.stderr)
    return 8 if off else 0


if __name__ == "__main__":
    sys.exit(main())
