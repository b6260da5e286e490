"""`llx bench run` beside `vllm bench serve`: the same server, rate and lengths, in turns.

    python -m tests.bench.against_vllm --node .node --model DIR --rounds 5

Needs the node environment and a model's directory, for its tokenizer (`llx up` makes one). Without
`--url` the server is one of set pace (`tests.bench.sse_server`).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.bench.intervals import interval_of_median

VLLM_BENCH_SERVE = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`: the command itself asks for a package called vllm, which builds for the CPU
are not."""

FIGURES = (
    "median_ttft_ms", "mean_ttft_ms", "median_itl_ms", "mean_itl_ms", "median_tpot_ms",
    "median_e2el_ms", "mean_e2el_ms",
)  # fmt: skip
"""Not rates: vLLM stretches its arrivals to fill the planned time, llx takes them as drawn."""


def ours(words: argparse.Namespace, url: str, folder: Path, number: int) -> dict:
    scenario = {
        "name": "x",
        "model": words.served,
        "workload": {
            "requests": words.requests,
            "arrivals": {"rate": words.rate},
            "lengths": {"prompt": words.prompt, "output": words.tokens},
        },
        "seed": number,
    }
    file, out = folder / f"s{number}.yaml", folder / f"llx-{number}"
    file.write_text(yaml.safe_dump(scenario))
    subprocess.run(
        [sys.executable, "-m", "llx", "bench", "run", str(file), "--url", url, "--out", str(out)],
        check=True, capture_output=True,
    )  # fmt: skip
    return json.loads((out / "runs/base-0/summary.json").read_text())


def theirs(words: argparse.Namespace, url: str, folder: Path, number: int) -> dict:
    name = f"vllm-{number}.json"
    subprocess.run(
        [
            str(words.node / "bin/python"), "-c", VLLM_BENCH_SERVE,
            "--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions",
            "--model", words.served, "--tokenizer", str(words.model), "--dataset-name", "random",
            "--random-input-len", str(words.prompt), "--random-output-len", str(words.tokens),
            "--num-prompts", str(words.requests), "--request-rate", str(words.rate),
            "--ignore-eos", "--temperature", "0", "--seed", str(number),
            "--percentile-metrics", "ttft,tpot,itl,e2el",
            "--save-result", "--result-dir", str(folder), "--result-filename", name,
        ],
        check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return json.loads((folder / name).read_text())


def measure(words: argparse.Namespace, url: str) -> None:
    sides = {"llx": [], "vllm": []}
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(words.rounds):
            for name in draw.sample(list(sides), 2):
                run = ours if name == "llx" else theirs
                found = run(words, url, Path(folder), number)
                assert found["completed"] == words.requests, found
                sides[name].append(found)
                print(name, {each: round(found[each], 2) for each in FIGURES}, flush=True)
    for figure in FIGURES:
        a, b = ([each[figure] for each in sides[name]] for name in ("llx", "vllm"))
        ratios = [one / other for one, other in zip(a, b, strict=True)]
        low, high = interval_of_median(ratios)
        print(
            f"{figure}: llx {statistics.median(a):.2f}, vllm {statistics.median(b):.2f}, "
            f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, default=Path(".node"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served", default="mock")
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    words = parser.parse_args()
    if words.url:
        measure(words, words.url)
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sse_server", "--ttft-ms", "50", "--itl-ms", "20"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        measure(words, f"http://127.0.0.1:{int(server.stdout.readline())}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
