"""The paper's experiments (Llumnix, OSDI'24, section 6) as runs of the simulator.

    python examples/paper/runs.py latency --seeds 10-29 --policies paper,llx --out results.jsonl

Each run is appended to the file as one line, and none is done twice: who is interrupted goes on by
the same command. `tables.py` reads the file.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llx.core.model import Blocks, Nanos
from llx.core.scheduler.config import SECOND, Scaling
from llx.core.scheduler.freeness import Freeness
from llx.sim.cluster import Cluster
from llx.sim.config import ClusterConfig
from llx.sim.presets import A10_LLAMA_7B, paper_cluster
from llx.sim.record import ClassResult, class_result
from llx.sim.workload import HIGH, NORMAL, generated

LOWEST = {
    "sharegpt-like": 7.0,
    "burstgpt-like": 7.5,
    "s-s": 32.0,
    "m-m": 7.4,
    "l-l": 2.6,
    "s-l": 4.1,
    "l-s": 10.0,
}
"""Requests a second: the lowest rate of each workload in the paper's figure 11 …"""
HIGHEST = {
    "sharegpt-like": 8.0,
    "burstgpt-like": 8.5,
    "s-s": 36.0,
    "m-m": 7.8,
    "l-l": 3.0,
    "s-l": 4.3,
    "l-s": 18.0,
}
"""… and the highest."""
_THRESHOLD_10 = ("m-m", "s-l")
"""Where the paper's artifact moves requests below 10 blocks a request; else below 3."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `policy`: a preset of the simulator, or `paper`, the one that the paper used there.

    `high_share` of the requests are of the high class. With `is_blind` nobody knows which: what
    becomes of them without priorities. `headroom` and `headroom_share` are that class's; `band`:
    whether there are 1 to 16 instances, by freeness and `rule`, instead of 16; one takes `start_s`
    to start.
    """

    experiment: str
    workload: str
    rate: float
    policy: str
    seed: int
    num_requests: int
    cv: float = 1.0
    high_share: float = 0.0
    headroom: int = 0
    is_blind: bool = False
    band: tuple[float, float] | None = None
    rule: str = "band"
    start_s: float = 10.0
    headroom_share: float = 1.0

    def key(self) -> str:
        """Names it."""
        return json.dumps(dataclasses.asdict(self))


def latency(policies: Sequence[str], seeds: Sequence[int], num_requests: int) -> Iterator[Run]:
    """Figure 11: every workload at its lowest rate."""
    yield from _at(LOWEST, policies, seeds, num_requests)


def overload(policies: Sequence[str], seeds: Sequence[int], num_requests: int) -> Iterator[Run]:
    """Figure 11: every workload at its highest rate, at which queues grow."""
    yield from _at(HIGHEST, policies, seeds, num_requests)


def _at(
    rates: Mapping[str, float], policies: Sequence[str], seeds: Sequence[int], num_requests: int
) -> Iterator[Run]:
    for seed in seeds:
        for workload, rate in rates.items():
            for policy in policies:
                yield Run("latency", workload, rate, policy, seed, num_requests)


def priorities(policies: Sequence[str], seeds: Sequence[int], num_requests: int) -> Iterator[Run]:
    """Figure 13: bursts, and one request in ten is urgent; with priorities and without."""
    for seed in seeds:
        for cv in (2.0, 4.0, 6.0, 8.0):
            for policy in policies:
                for headroom, share in ((0, 1.0), *HEADROOM[policy]):
                    yield Run(
                        "priorities", "s-s", 26.0, policy, seed, num_requests, cv, 0.1,
                        headroom, is_blind=headroom == 0, headroom_share=share,
                    )  # fmt: skip


HEADROOM = {"paper": ((692, 1.0),), "llx": ((740, 0.25), (740, 0.32))}
"""Blocks for the high class, and the share of instances that keep them at most: 4 and 5 of 16. The
paper's artifact leaves other classes 100 of 792."""


def scaling(policies: Sequence[str], seeds: Sequence[int], num_requests: int) -> Iterator[Run]:
    """Figures 14 and 15: as many instances as a band of freeness asks for, for several bands.

    And what they do not show: an engine that takes a minute to start.
    """
    for seed in seeds:
        for start_s in (10.0, 60.0):
            for cv in (1.0, 4.0):
                for policy in policies:
                    for rule in ("band", "demand") if policy == "llx" else ("band",):
                        for band in BANDS:
                            yield Run(
                                "scaling", "l-l", 2.0, policy, seed, num_requests, cv,
                                band=band, rule=rule, start_s=start_s,
                            )  # fmt: skip


BANDS = ((5.0, 30.0), (10.0, 60.0), (30.0, 180.0), (60.0, 360.0))
"""The paper's is the second. The others make a curve of instances and latency for each policy."""

EXPERIMENTS = {
    "latency": latency,
    "overload": overload,
    "priorities": priorities,
    "scaling": scaling,
}


def configured(run: Run) -> ClusterConfig:
    """The cluster of a run."""
    policy = run.policy
    if policy == "paper":
        policy = "llumnix-10" if run.workload in _THRESHOLD_10 else "llumnix"
    config = paper_cluster(policy, 16, run.headroom)
    if run.experiment != "latency":
        config = replace(config, engine=replace(A10_LLAMA_7B, num_blocks=Blocks(792)))
    urgent, *others = config.pool.classes
    urgent = replace(urgent, headroom_share=run.headroom_share)
    config = replace(config, pool=replace(config.pool, classes=(urgent, *others)))
    if run.band is not None:
        low, high = (Freeness(each) for each in run.band)
        pause = Nanos(10 * SECOND)
        rules = Scaling(run.rule, 1, 16, low, high, sustain=pause, cooldown=pause)
        start = Nanos(round(run.start_s * SECOND))
        pool = replace(config.pool, scaling=rules)
        config = replace(config, num_instances=8, pool=pool, start_takes=start)
    return config


def carry_out(run: Run) -> dict[str, Any]:
    """Simulate it; returns the run and its figures, as they go into the file."""
    requests = generated(
        run.workload, run.rate, run.num_requests, run.seed, cv=run.cv, high_share=run.high_share
    )
    seen = requests
    if run.is_blind:
        seen = [replace(each, priority_class=NORMAL) for each in requests]
    cluster = Cluster(configured(run), iter(seen))
    result = cluster.run(run.seed)
    classes = {"all": result.overall}
    for name in (HIGH, NORMAL) if run.high_share else ():
        records = [
            record
            for asked, record in zip(requests, cluster.records, strict=True)
            if asked.priority_class == name
        ]
        classes[str(name)] = class_result(records)
    return {
        "run": dataclasses.asdict(run),
        "classes": {name: figures(each) for name, each in classes.items()},
        "moves": result.num_moves,
        "preemptions": result.num_preemptions,
        "instances": round(result.mean_instances, 4),
        "fragmented": round(result.fragmented, 5),
        "trace_hash": result.trace_hash,
    }


def figures(result: ClassResult) -> dict[str, float]:
    """Seconds, to a tenth of a millisecond."""
    found = {"loss_mean": result.loss.mean}
    for name in ("request", "prefill", "decode"):
        spread = getattr(result, name)
        found[f"{name}_mean"], found[f"{name}_p99"] = spread.mean, spread.p99
    return {name: round(value, 5) for name, value in found.items()}


def main() -> None:
    """Carry out what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--policies", default="infaas,paper,llx")
    parser.add_argument("--seeds", default="0-2", help="first-last")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    first, last = map(int, asked.seeds.split("-"))
    plan = EXPERIMENTS[asked.experiment]
    runs = list(plan(asked.policies.split(","), range(first, last + 1), asked.requests))
    done = {_key(line) for line in read(asked.out)}
    missing = [run for run in runs if run.key() not in done]
    print(f"{len(runs)} runs, {len(missing)} to do")
    with asked.out.open("a") as out, ProcessPoolExecutor(asked.jobs) as pool:
        for number, future in enumerate(
            as_completed([pool.submit(carry_out, run) for run in missing]), 1
        ):
            out.write(json.dumps(future.result()) + "\n")
            out.flush()
            print(f"{number} of {len(missing)}", end="\r", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if there is none."""
    return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []


def _key(line: dict[str, Any]) -> str:
    run = line["run"]
    band = run["band"] and tuple(run["band"])
    return Run(**run | {"band": band}).key()


if __name__ == "__main__":
    main()
