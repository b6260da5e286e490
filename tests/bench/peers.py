"""llx beside other routers: on the load of `kv_bound`, and on `uniform`, where moves do not help.

    python -m venv build/routers
    build/routers/bin/pip install vllm-router==0.1.17
    .venv/bin/python -m tests.bench.peers --routers build/routers --out DIR kv_bound uniform

Four engines behind llx (`examples/bench/cluster-kv-bound.yaml`); four with the same arguments, each
behind vLLM's own server, with the routers before these; and the four of one `vllm serve`, data
parallel. All of it stays up and takes turns, repetition by repetition, with the same requests; who
has no turn is idle. Everybody's steps are held (`tests.bench.held_steps`), so that requests stand
in each other's way, and engines do not; `--engine vllm` leaves steps alone. The rate is made to fit
this machine as in `tests.bench.live_policies`.

Prints what `llx bench compare` says of llx against each. Exit code 8 if it is not shown that P99 of
TTFT is below a peer's on `kv_bound`, and no more than a tenth above it on `uniform`, and throughput
no more than a tenth lower: if an interval does not lie there.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from llx.bench.compare import Ratio, compare
from llx.bench.run_directory import Results
from tests.bench.held_steps import expect_held, told_overrun
from tests.bench.live_policies import (
    EXAMPLES,
    HELD,
    MODEL,
    NUM_ENGINES,
    STEP_MS,
    cluster,
    pace_ms,
    run_scenario,
    table,
)
from tests.bench.overhead import free_port, served, vllm_serve

ROUTERS: Final = {
    "vllm-router": ("vllm-router", "--policy", "cache_aware"),
    "round-robin": ("vllm-router", "--policy", "round_robin"),
    "power-of-two": ("vllm-router", "--policy", "power_of_two"),
}
"""By name, the command; the first chooses as it does by default. sglang-router 0.3.2 is not among
them: it takes no prompts that are given as tokens."""
DATA_PARALLEL: Final = "data-parallel"
"""`vllm serve --data-parallel-size`: its own choice among its engines."""
OURS: Final = "llx"
STILL: Final = "llx-still"
"""Without moves."""
MOST: Final = {"kv_bound": 1.0, "uniform": 1.1}
"""By scenario: below this P99 of TTFT is to be, as a multiple of a peer's."""
FIGURES: Final = ("mean_ttft", "p90_ttft", "p99_ttft", "mean_tpot", "p99_tpot", "mean_e2el",
                  "output_throughput")  # fmt: skip


@contextmanager
def served_models(
    folder: Path, config: dict[str, Any], count: int, environment: Mapping[str, str], **more: Any
) -> Iterator[list[str]]:
    """That many of vLLM's own servers, with `more` arguments; their addresses."""
    [model] = config["models"]
    with ExitStack() as stack:
        urls = []
        for _ in range(count):
            port = free_port()
            arguments = model["engine_args"] | more
            argv = vllm_serve(Path(model["model"]), model["name"], port, arguments)
            url = f"http://127.0.0.1:{port}"
            log = folder / f"vllm-{port}.log"
            stack.enter_context(served(argv, f"{url}/health", log, environment))
            urls.append(url)
        yield urls


@contextmanager
def routers(names: list[str], prefix: Path, folder: Path, workers: list[str]) -> Iterator[Any]:
    """The address of each."""
    with ExitStack() as stack:
        urls = {}
        for name in names:
            port = free_port()
            argv = router_argv(name, prefix, port, workers)
            url = f"http://127.0.0.1:{port}"
            stack.enter_context(served(argv, f"{url}/health", folder / f"{name}.log"))
            urls[name] = url
        yield urls


def router_argv(name: str, prefix: Path, port: int, workers: list[str]) -> list[str]:
    """The command line of a router that is installed in `prefix`."""
    program, *options = ROUTERS[name]
    argv = [str(prefix.resolve() / "bin" / program), *options, "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--prometheus-port", str(free_port())]
    return [*argv, "--worker-urls", *workers]


def scenario(
    name: str, tpot_ms: float, urls: dict[str, str], words: argparse.Namespace
) -> dict[str, Any]:
    """That one, with others instead of other rules."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    found["model"] = MODEL
    found["workload"]["arrivals"]["rate"] *= STEP_MS / tpot_ms
    found["workload"]["requests"] = words.requests or found["workload"]["requests"]
    still = [{"name": STILL, "policy": {"rescheduling.steps": []}}] if words.still else []
    others = [{"name": name, "url": url} for name, url in urls.items()]
    found["variants"] = [{"name": OURS}, *still, *others]
    found["repetitions"] = words.repetitions
    return found


def comparisons(results: Results, peers: list[str]) -> list[tuple[str, list[Ratio]]]:
    """llx against each of them."""
    return [
        (f"{OURS} / {peer}", [
            each
            for each in compare(results.of(peer), results.of(OURS), {})
            if each.name in FIGURES
        ])
        for peer in peers
    ]  # fmt: skip


def shortcomings(name: str, found: list[tuple[str, list[Ratio]]]) -> list[str]:
    """What was to be shown and is not."""
    missed = []
    for title, ratios in found:
        by_name = {each.name: each for each in ratios}
        late, rate = by_name["p99_ttft"], by_name["output_throughput"]
        if late.high >= MOST[name]:
            missed.append(f"{name}, {title}: p99_ttft {late.low:.2f} to {late.high:.2f}")
        if rate.low < 0.9:
            missed.append(f"{name}, {title}: output_throughput {rate.low:.2f} to {rate.high:.2f}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenarios", nargs="+", choices=MOST)
    parser.add_argument("--routers", type=Path, required=True, help="where they are installed")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for everything")
    parser.add_argument("--engine", choices=["held", "vllm"], default="held")
    default = [DATA_PARALLEL, *list(ROUTERS)[:2]]
    choices = [DATA_PARALLEL, *ROUTERS]
    parser.add_argument("--peers", nargs="+", choices=choices, default=default)
    parser.add_argument("--still", action="store_true", help="beside llx without moves, too")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--requests", type=int, help="of each run; default: the scenarios' own")
    words = parser.parse_args()
    folder = words.out.resolve()
    folder.mkdir(parents=True)
    missed = []
    with ExitStack() as stack:
        environment = stack.enter_context(cluster(folder, words.engine))
        config = yaml.safe_load((folder / "cluster.yaml").read_text(encoding="utf-8"))
        workers = stack.enter_context(served_models(folder, config, NUM_ENGINES, environment))
        names = [each for each in words.peers if each in ROUTERS]
        urls = stack.enter_context(routers(names, words.routers, folder, workers))
        if DATA_PARALLEL in words.peers:
            size = {"data_parallel_size": NUM_ENGINES}
            one = served_models(folder, config, 1, environment, **size)
            [urls[DATA_PARALLEL]] = stack.enter_context(one)
        tpot_ms = pace_ms(folder)
        if words.engine == "held":
            # llx's engines: the others' have done nothing yet.
            expect_held(folder / HELD, NUM_ENGINES)
        print(f"a token takes {tpot_ms:.1f} ms with all engines busy", flush=True)
        for name in words.scenarios:
            results = run_scenario(folder, scenario(name, tpot_ms, urls, words))
            found = comparisons(results, [STILL] * words.still + words.peers)
            print(table(name, found), end="\n\n", flush=True)
            missed += shortcomings(name, found)
    if words.engine == "held":
        num_sides = 1 + bool(names) + (DATA_PARALLEL in words.peers)
        expect_held(folder / HELD, num_sides * NUM_ENGINES)
        print(told_overrun(folder / HELD))
    print(json.dumps({"not shown": missed}))
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
