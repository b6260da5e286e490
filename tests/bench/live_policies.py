"""What moving requests and priority classes bring on four real engines that are short of KV.

    .venv/bin/python -m tests.bench.live_policies --out DIR
    .venv/bin/python -m tests.bench.live_policies --out DIR --engine sim --repetitions 3 uniform

Makes the model, brings up `examples/bench/cluster-kv-bound.yaml`, runs the scenarios beside it
(`llx bench run`), takes the cluster down, and prints what `llx bench compare` says of them as
Markdown. Before, a burst tells how long a token takes here while all four are busy: the scenarios'
rates are for `STEP_MS`, and are made as much smaller or larger as it takes longer or shorter, so
that KV is as short on a slower machine.

With `--engine sim` the same on simulated engines of about that pace, which leave the cores alone: a
rehearsal, no claim about vLLM. Exit code 8 if moves do not shorten the slowest first tokens of
`kv_bound`, or do not lessen its preemptions: if an interval is not below 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llx.bench.compare import Ratio, compare
from llx.bench.run_directory import Results, read_results
from tests.bench.migration import made_model
from tests.bench.overhead import NODE, free_port
from tests.node import ROOT

EXAMPLES = ROOT / "examples/bench"
COMPARED: dict[str, list[tuple[str, str, str | None]]] = {
    "kv_bound": [("still", "moves", None)],
    "uniform": [("still", "moves", None)],
    "priorities": [
        (base, other, of_class)
        for of_class in ("urgent", "normal")
        for base, other in (("none", "queue"), ("none", "headroom"))
    ],
}
"""Scenarios: which variant is compared with which, and of which class."""
FIGURES = ("mean_ttft", "p90_ttft", "p99_ttft", "mean_tpot", "p99_tpot", "mean_e2el", "preemptions")
STEP_MS = 27.0
"""TPOT for which the scenarios' rates are."""
BURST: dict[str, Any] = {
    "name": "pace",
    "workload": {
        "requests": 20,
        "arrivals": {"rate": 100},
        "lengths": {"prompt": 20, "output": 150},
    },
    "warmup": 4,
    "repetitions": 3,
}
"""Five requests an instance: as many as `kv_bound` has room for."""
MUST_SHRINK = {"kv_bound": ("p99_ttft", "preemptions")}
SIM = {
    "step_base_ms": 25.0,
    "step_ms_per_prefill_token": 0.06,
    "step_ms_per_decode": 0.3,
    "step_ms_per_context_ktoken": 0.5,
    "num_blocks": 40,
    "block_size": 32,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
}


def cluster_file(folder: Path, engine: str) -> Path:
    """The example, with its model made here and ports of its own."""
    model = made_model("deep", folder / "deep-model")
    config = yaml.safe_load((EXAMPLES / "cluster-kv-bound.yaml").read_text(encoding="utf-8"))
    config["models"][0]["model"] = str(model)
    config["gateway"]["port"] = free_port()
    if engine == "sim":
        config["models"][0] |= {"engine": "sim", "sim": SIM}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def llx(folder: Path, *words: str) -> None:
    """Run it with state in `folder`."""
    environment = os.environ | {
        "XDG_STATE_HOME": str(folder / "state"),
        "LLX_NODE_PREFIX": str(NODE),
        "PYTHONPATH": str(ROOT),
    }
    argv = [sys.executable, "-m", "llx", *words]
    subprocess.run(argv, env=environment, check=True, stdout=sys.stderr)


@contextmanager
def cluster(folder: Path, engine: str) -> Iterator[None]:
    """Up for the length of the block."""
    path = cluster_file(folder, engine)
    try:
        llx(folder, "up", "-y", str(path))
        yield
    finally:
        llx(folder, "down", "-y", "--deadline", "5s")


def pace_ms(folder: Path) -> float:
    """Time per token while all engines are busy."""
    runs = run_scenario(folder, BURST).runs
    return statistics.median(each.summary["median_tpot_ms"] for each in runs)


def measure(folder: Path, name: str, repetitions: int | None, tpot_ms: float) -> Results:
    """Run a scenario at this machine's pace."""
    scenario = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    scenario["workload"]["arrivals"]["rate"] *= STEP_MS / tpot_ms
    scenario["repetitions"] = repetitions or scenario["repetitions"]
    return run_scenario(folder, scenario)


def run_scenario(folder: Path, scenario: dict[str, Any]) -> Results:
    """Run it on the cluster; all of it is kept below `folder`."""
    name = scenario["name"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(scenario, sort_keys=False), encoding="utf-8")
    llx(folder, "bench", "run", str(path), "--out", str(folder / name), "-o", "wide")
    return read_results(folder / name)


def comparisons(results: Results) -> Iterator[tuple[str, list[Ratio]]]:
    """What is compared, in words, and its figures."""
    for base, other, of_class in COMPARED[results.scenario.name]:
        ratios = compare(results.of(base), results.of(other), {}, of_class)
        title = f"{other} / {base}" + (f", {of_class}" if of_class else "")
        yield title, [each for each in ratios if each.name in FIGURES]


def table(name: str, found: list[tuple[str, list[Ratio]]]) -> str:
    """As Markdown; latencies in milliseconds."""
    lines = [f"| {name} | figure | base | other | ratio | 95% interval |", "|" + "---|" * 6]
    for title, ratios in found:
        for each in ratios:
            cells = (f"{value:.3g}" for value in (each.base, each.other, each.ratio))
            interval = f"{each.low:.2f} to {each.high:.2f}"
            lines.append(f"| {title} | {each.name} | {' | '.join(cells)} | {interval} |")
    return "\n".join(lines)


def shortcomings(name: str, found: list[tuple[str, list[Ratio]]]) -> list[str]:
    """Figures whose interval is not below 1, though that is what the scenario is there to show."""
    wanted = MUST_SHRINK.get(name, ())
    return [
        f"{name}: {each.name} {each.low:.2f} to {each.high:.2f}"
        for _, ratios in found
        for each in ratios
        if each.name in wanted and each.high >= 1
    ]


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", help=f"default: {', '.join(COMPARED)}")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for everything")
    parser.add_argument("--engine", choices=["vllm", "sim"], default="vllm")
    parser.add_argument("--repetitions", type=int, help="instead of the scenarios' own")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(COMPARED):
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    return args


def main() -> int:
    args = arguments()
    folder = args.out.resolve()
    folder.mkdir(parents=True)
    missed: list[str] = []
    with cluster(folder, args.engine):
        tpot_ms = pace_ms(folder)
        print(f"a token takes {tpot_ms:.1f} ms with all engines busy", flush=True)
        for name in args.scenarios or COMPARED:
            results = measure(folder, name, args.repetitions, tpot_ms)
            found = list(comparisons(results))
            print(table(name, found), end="\n\n", flush=True)
            missed += shortcomings(name, found)
    print(json.dumps({"not shown to shrink": missed}))
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
