"""The standard set of benchmarks, on four real engines that are short of KV.

    .venv/bin/python -m tests.bench.live_policies --out DIR kv_bound uniform priorities
    .venv/bin/python -m tests.bench.live_policies --out DIR --engine sim --repetitions 3 drain

Makes the model, brings up `examples/bench/cluster-kv-bound.yaml`, runs the scenarios beside it
(`llx bench run`), takes the cluster down, and prints what `llx bench compare` says of them as
Markdown. Before, a burst tells how long a token takes here while all four are busy: the scenarios'
rates are for `STEP_MS`, and are made as much smaller or larger as it takes longer or shorter, so
that KV is as short on a slower machine. A host cannot be cut off on one machine: such variants are
left out. `--page FILE` also puts each table between that page's marks of the scenario's name.

With `--engine held` vLLM's steps last as long as `examples/sim/kv-bound.yaml` says for the work
that is in them, and wait for that without a core (`tests.bench.held_steps`): engines that do not
share the processor, as on GPUs. The model is as little as can be there, so that what is computed
fits into that time (`llama_model.py`), and a block of KV has 128 KiB. With `--engine sim` the same
on simulated engines of about that pace: a rehearsal, no claim about vLLM.

Exit code 1 if a scenario could not be run, or a fault of it not be done (the others are, and its
table is not put on the page); 8 if moves do not shorten the slowest first tokens of `kv_bound`, or
do not lessen its preemptions: if an interval is not below 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llx.bench.compare import Ratio, compare
from llx.bench.run_directory import Results, read_results
from llx.sim.scenario import load_scenario
from tests.bench.held_steps import expect_held, held, told_overrun
from tests.bench.migration import made_model
from tests.bench.overhead import NODE, free_port
from tests.node import ROOT

EXAMPLES = ROOT / "examples/bench"
SIMULATED = ROOT / "examples/sim/kv-bound.yaml"
NUM_ENGINES = 4
MODEL = "deep"
HELD = "held-steps"
"""The directory of `held_steps`, where engines are `held`."""
COMPARED: dict[str, list[tuple[str, str, str | None]]] = {
    "kv_bound": [("still", "moves", None)],
    "uniform": [("still", "moves", None)],
    "priorities": [
        (base, other, of_class)
        for of_class in ("urgent", "normal")
        for base, other in (("none", "queue"), ("none", "headroom"))
    ],
    "scaling": [("fixed", "scaled", None)],
    "paper": [(base, "llx", None) for base in ("round-robin", "infaas", "llumnix")],
    "churn": [("sticky-still", "sticky-moves", None), ("by-load", "sticky-moves", None)],
    "drain": [("calm", other, None) for other in ("drained", "restarted")],
    "rollout": [("calm", "rolled-out", None)],
    "losses": [("calm", other, None) for other in ("killed", "frozen", "slow")],
}
"""Scenarios: which variant is compared with which, and of which class."""
FIGURES = (
    "mean_ttft", "p90_ttft", "p99_ttft", "mean_tpot", "p99_tpot", "p99_itl", "mean_e2el",
    "request_goodput", "preemptions", "instances", "failed",
)  # fmt: skip
DOUBT = "?: too few repetitions, or (of a latency) the other side has lost requests."
STEP_MS = 27.0
"""TPOT for which the scenarios' rates are."""
BURST: dict[str, Any] = {
    "name": "pace",
    "workload": {
        "requests": 28,
        "arrivals": {"rate": 100},
        "lengths": {"prompt": 20, "output": 150},
    },
    "warmup": 4,
    "repetitions": 3,
}
"""Seven requests an instance: as many as `kv_bound` has room for."""
MUST_SHRINK = {"kv_bound": ("p99_ttft", "preemptions")}
SIM = {
    "step_base_ms": 25.0,
    "step_ms_per_prefill_token": 0.06,
    "step_ms_per_decode": 0.3,
    "step_ms_per_context_ktoken": 0.5,
    "num_blocks": 80,
    "block_size": 32,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
}


def cluster_file(folder: Path, engine: str) -> Path:
    """The example, with its model made here and ports of its own."""
    is_held = engine == "held"
    model = made_model("light" if is_held else MODEL, folder / "model")
    config = yaml.safe_load((EXAMPLES / "cluster-kv-bound.yaml").read_text(encoding="utf-8"))
    if is_held:
        config["models"][0]["engine_args"]["dtype"] = "float32"
    config["models"][0]["model"] = str(model)
    config["gateway"]["port"] = free_port()
    if engine == "sim":
        config["models"][0] |= {"engine": "sim", "sim": SIM}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def llx(folder: Path, *words: str, **environment: str) -> None:
    """Run it with state in `folder`."""
    own = {
        "XDG_STATE_HOME": str(folder / "state"),
        "LLX_NODE_PREFIX": str(NODE),
        "PYTHONPATH": str(ROOT),
    }
    argv = [sys.executable, "-m", "llx", *words]
    complete = os.environ | own | environment
    subprocess.run(argv, env=complete, check=True, stdout=sys.stderr)


def engine_environment(folder: Path, engine: str) -> dict[str, str]:
    """What engines are started with, besides."""
    if engine != "held":
        return {}
    step_time = load_scenario(SIMULATED).plan().variants[0].cluster.engine.step_time
    return held(folder / HELD, step_time, str(ROOT))


@contextmanager
def cluster(folder: Path, engine: str) -> Iterator[dict[str, str]]:
    """Up for the length of the block; what its engines were started with."""
    path, environment = cluster_file(folder, engine), engine_environment(folder, engine)
    try:
        llx(folder, "up", "-y", str(path), **environment)
        yield environment
    finally:
        llx(folder, "down", "-y", "--deadline", "5s")


def pace_ms(folder: Path) -> float:
    """Time per token while all engines are busy."""
    runs = run_scenario(folder, BURST).runs
    return statistics.median(each.summary["median_tpot_ms"] for each in runs)


def measure(folder: Path, name: str, repetitions: int | None, tpot_ms: float) -> Results:
    """Run a scenario at this machine's pace."""
    scenario = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    arrivals = scenario["workload"]["arrivals"]
    arrivals["rate"] *= STEP_MS / tpot_ms
    for each in arrivals.get("phases", []):
        each["for_s"] *= tpot_ms / STEP_MS
    scenario["repetitions"] = repetitions or scenario["repetitions"]
    return run_scenario(folder, on_one_machine(scenario))


def on_one_machine(scenario: dict[str, Any]) -> dict[str, Any]:
    """The scenario for this cluster: its instances' names, and nobody cut off from others."""
    variants = []
    for each in scenario["variants"]:
        faults = each.get("faults", [])
        if any("host" in fault for fault in faults):
            continue
        for fault in faults:
            if "instance" in fault:
                fault["instance"] = f"{MODEL}-0"
        variants.append(each)
    return scenario | {"variants": variants}


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
    """As Markdown; latencies in milliseconds. A ratio that says little has a question mark."""
    lines = [f"| {name} | figure | base | other | ratio | 95% interval |", "|" + "---|" * 6]
    for title, ratios in found:
        for each in ratios:
            cells = " | ".join(f"{value:.3g}" for value in (each.base, each.other, each.ratio))
            doubt = "?" if each.is_doubtful else ""
            interval = f"{each.low:.2f} to {each.high:.2f}"
            lines.append(f"| {title} | {each.name} | {cells}{doubt} | {interval} |")
    if any(each.is_doubtful for _, ratios in found for each in ratios):
        lines += ["", DOUBT]
    return "\n".join(lines)


def marked(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of that name.

    Raises:
        ValueError: It has no such marks.
    """
    begin, end = f"<!-- bench: {name} -->\n", "<!-- bench ends -->\n"
    before, mark, rest = page.partition(begin)
    _, other_mark, after = rest.partition(end)
    if not mark or not other_mark:
        raise ValueError(f"the page has no {begin.strip()} with {end.strip()} after it")
    return f"{before}{begin}{text}\n{end}{after}"


def provenance(args: Any, name: str, num_pairs: int, tpot_ms: float) -> str:
    """Command, date, machine and pace, in a line."""
    engine = "" if args.engine == "vllm" else f" --engine {args.engine}"
    given = f" --repetitions {args.repetitions}" if args.repetitions else ""
    load, today = os.getloadavg()[0], time.strftime("%Y-%m-%d")
    return (
        f"`python -m tests.bench.live_policies --out DIR{engine}{given} {name}` · "
        f"{today} · {os.cpu_count()} cores, load average {load:.0f} at the end · "
        f"{num_pairs} repetitions, {tpot_ms:.1f} ms a token"
    )


def shortcomings(name: str, found: list[tuple[str, list[Ratio]]]) -> list[str]:
    """Figures whose interval is not below 1, though that is what the scenario is there to show."""
    wanted = MUST_SHRINK.get(name, ())
    return [
        f"{name}: {each.name} {each.low:.2f} to {each.high:.2f}"
        for _, ratios in found
        for each in ratios
        if each.name in wanted and each.high >= 1
    ]


def arguments(words: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", help=f"default: {', '.join(COMPARED)}")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for everything")
    parser.add_argument("--engine", choices=["vllm", "held", "sim"], default="vllm")
    parser.add_argument("--repetitions", type=int, help="instead of the scenarios' own")
    parser.add_argument("--page", type=Path, help="whose tables are replaced by the new ones")
    args = parser.parse_args(words)
    if unknown := set(args.scenarios) - set(COMPARED):
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    args.scenarios = args.scenarios or list(COMPARED)
    if args.page is not None:  # known before hours of measuring, not after them
        try:
            page = args.page.read_text(encoding="utf-8")
            for name in args.scenarios:
                marked(page, name, "")
        except (OSError, ValueError) as error:
            parser.error(f"--page: {error}")
    return args


def run_all(
    args: Any, tpot_ms: float, measured: Callable[[str], Results]
) -> tuple[list[str], list[str]]:
    """Measure and show each scenario; what has failed, and what was not shown to shrink."""
    failed: list[str] = []
    missed: list[str] = []
    for name in args.scenarios:
        try:
            results = measured(name)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name}: llx ended with {error.returncode}")
            continue
        found = list(comparisons(results))
        print(table(name, found), end="\n\n", flush=True)
        missed += shortcomings(name, found)
        if undone := results.faults_not_done():
            failed += [f"{name}: {each}" for each in undone]
        elif args.page is not None:
            num_pairs = results.scenario.repetitions
            text = f"{provenance(args, name, num_pairs, tpot_ms)}\n\n{table(name, found)}"
            page = args.page.read_text(encoding="utf-8")
            args.page.write_text(marked(page, name, text), encoding="utf-8")
    return failed, missed


def main() -> int:
    args = arguments()
    folder = args.out.resolve()
    folder.mkdir(parents=True)
    with cluster(folder, args.engine):
        tpot_ms = pace_ms(folder)
        print(f"a token takes {tpot_ms:.1f} ms with all engines busy", flush=True)
        if args.engine == "held":
            expect_held(folder / HELD, NUM_ENGINES)
        failed, missed = run_all(
            args, tpot_ms, lambda name: measure(folder, name, args.repetitions, tpot_ms)
        )
    if args.engine == "held":
        print(told_overrun(folder / HELD))
    print(json.dumps({"failed": failed, "not shown to shrink": missed}))
    return 1 if failed else 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
