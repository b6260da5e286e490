"""llx beside other routers, on the load that `kv_bound` is: long prompts where KV is short.

    python -m venv build/routers
    build/routers/bin/pip install vllm-router==0.1.17
    .venv/bin/python -m tests.bench.peers --routers build/routers --out DIR

Four engines behind llx (`examples/bench/cluster-kv-bound.yaml`), and four with the same arguments,
each behind vLLM's own server; before these the routers. All of it stays up and takes turns,
repetition by repetition, with the same requests; who has no turn is idle. The rate is made to fit
this machine as in `tests.bench.live_policies`.

Prints what `llx bench compare` says of llx against each. Exit code 8 if an interval of P99 of TTFT
is not below 1, or throughput is more than a tenth lower.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from llx.bench.compare import Ratio, compare
from llx.bench.run_directory import Results
from tests.bench.live_policies import (
    EXAMPLES,
    STEP_MS,
    cluster,
    cluster_file,
    pace_ms,
    run_scenario,
    table,
)
from tests.bench.overhead import free_port, served, vllm_serve

NUM_ENGINES: Final = 4
ROUTERS: Final = {
    "vllm-router": ("vllm-router", "--policy", "cache_aware"),
    "round-robin": ("vllm-router", "--policy", "round_robin"),
    "power-of-two": ("vllm-router", "--policy", "power_of_two"),
}
"""By name, the command; the first chooses as it does by default. sglang-router 0.3.2 is not among
them: it takes no prompts that are given as tokens."""
OURS: Final = "llx"
STILL: Final = "llx-still"
"""Without moves."""
FIGURES: Final = ("mean_ttft", "p90_ttft", "p99_ttft", "mean_tpot", "p99_tpot", "mean_e2el",
                  "output_throughput")  # fmt: skip


@contextmanager
def engines(folder: Path, config: dict[str, Any]) -> Iterator[list[str]]:
    """vLLM's own servers; their addresses."""
    [model] = config["models"]
    with ExitStack() as stack:
        urls = []
        for number in range(NUM_ENGINES):
            port = free_port()
            argv = vllm_serve(Path(model["model"]), model["name"], port, model["engine_args"])
            url = f"http://127.0.0.1:{port}"
            stack.enter_context(served(argv, f"{url}/health", folder / f"vllm-{number}.log"))
            urls.append(url)
        yield urls


@contextmanager
def routers(names: list[str], prefix: Path, folder: Path, workers: list[str]) -> Iterator[Any]:
    """The address of each."""
    with ExitStack() as stack:
        urls = {}
        for name in names:
            program, *options = ROUTERS[name]
            port, metrics = free_port(), free_port()
            argv = [str(prefix.resolve() / "bin" / program), *options, "--host", "127.0.0.1"]
            argv += ["--port", str(port), "--prometheus-port", str(metrics)]
            argv += ["--worker-urls", *workers]
            url = f"http://127.0.0.1:{port}"
            stack.enter_context(served(argv, f"{url}/health", folder / f"{name}.log"))
            urls[name] = url
        yield urls


def scenario(tpot_ms: float, urls: dict[str, str], words: argparse.Namespace) -> dict[str, Any]:
    """`kv_bound`, with others instead of other rules."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "kv_bound.yaml").read_text(encoding="utf-8"))
    found["name"] = "peers"
    found["model"] = "deep"
    found["workload"]["arrivals"]["rate"] *= STEP_MS / tpot_ms
    found["workload"]["requests"] = words.requests
    still = {"name": STILL, "policy": {"rescheduling.steps": []}}
    others = [{"name": name, "url": url} for name, url in urls.items()]
    found["variants"] = [{"name": OURS}, still, *others]
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


def shortcomings(found: list[tuple[str, list[Ratio]]]) -> list[str]:
    """What was to be shown and is not."""
    missed = []
    for title, ratios in found:
        by_name = {each.name: each for each in ratios}
        late, rate = by_name["p99_ttft"], by_name["output_throughput"]
        if late.high >= 1:
            missed.append(f"{title}: p99_ttft {late.low:.2f} to {late.high:.2f}")
        if rate.low < 0.9:
            missed.append(f"{title}: output_throughput {rate.low:.2f} to {rate.high:.2f}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--routers", type=Path, required=True, help="where they are installed")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for everything")
    parser.add_argument("--peers", nargs="+", choices=ROUTERS, default=list(ROUTERS)[:2])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--requests", type=int, default=100, help="of each run")
    words = parser.parse_args()
    folder = words.out.resolve()
    folder.mkdir(parents=True)
    config = yaml.safe_load(cluster_file(folder, "vllm").read_text(encoding="utf-8"))
    with (
        cluster(folder, "vllm"),
        engines(folder, config) as workers,
        routers(words.peers, words.routers, folder, workers) as urls,
    ):
        tpot_ms = pace_ms(folder)
        print(f"a token takes {tpot_ms:.1f} ms with all engines busy", flush=True)
        results = run_scenario(folder, scenario(tpot_ms, urls, words))
    found = comparisons(results, [STILL, *words.peers])
    print(table("peers", found), end="\n\n", flush=True)
    missed = shortcomings(found)
    print(json.dumps({"not shown": missed}))
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
