"""What front ends cost in processor time: the gateway, vLLM's own server, a router before that.

    .venv/bin/python -m tests.bench.front_ends --rounds 9 [--routers build/routers]

All on simulated engines (`engine: sim`; `tests.bench.stock_sim` behind vLLM's unmodified front
end), each in a process of its own, which is not counted. The same prompts, `--streams` at a time,
in turns whose order is shuffled in each round; counted are the tokens and the processor time of the
front end's process, and with `--routers`, where vllm-router is installed, of vLLM's and the
router's together. Then so many streams at once through the gateway as `--crowd` says, each to its
end.

One JSON line on standard output: tokens per second of processor time, of each; their ratios to
vLLM's with 95% intervals over rounds; the crowd. Exit code 8 if the gateway's interval begins below
0.9.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.intervals import interval_of_median
from tests.bench.overhead import NODE, free_port, llx_up, prompts_of, served, tiny_model
from tests.bench.peers import router_argv
from tests.bench.read_verbs import cpu_s
from tests.bench.sse_load import Client, closed_loop
from tests.node import ROOT

BOUND = 0.9
TOKENS = 64
CROWD_WITHIN_S = 12.0
CROWD_TOKENS = 192
STEP_MS = 20.0
STEP_MS_PER_STREAM = 0.3
"""So that thousands of streams get as many tokens as a gateway can pass on."""
SIM = {
    "step_base_ms": STEP_MS,
    "step_ms_per_prefill_token": 0.0,
    "step_ms_per_decode": STEP_MS_PER_STREAM,
    "step_ms_per_context_ktoken": 0.0,
    "num_blocks": 65_536,
    "max_num_seqs": 8192,
    "max_num_batched_tokens": 65_536,
}
Side = tuple[int, list[int]]
"""Where it listens, and the processes that count."""


async def tokens_per_cpu_s(side: Side, seed: int, streams: int, requests: int) -> float:
    """Of one turn."""
    port, pids = side
    before = sum(map(cpu_s, pids))
    prompts = prompts_of(seed, requests)
    _, samples = await closed_loop("127.0.0.1", port, "m", prompts, TOKENS, streams)
    used_s = sum(map(cpu_s, pids)) - before
    return sum(each.output_tokens for each in samples) / used_s


async def measure(sides: Mapping[str, Side], words: argparse.Namespace) -> dict[str, Any]:
    """All rounds, after a turn of each that is not counted."""
    draw = random.Random(7)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        await tokens_per_cpu_s(side, 0, words.streams, words.requests)
    for number in range(words.rounds):
        for name in draw.sample(sorted(sides), len(sides)):
            rate = await tokens_per_cpu_s(sides[name], number + 1, words.streams, words.requests)
            rates[name].append(rate)
            sys.stderr.write(f"round {number} {name}: {rate:.0f} tokens per second of processor\n")
    ratios = {
        name: [ours / theirs for ours, theirs in zip(found, rates["vllm"], strict=True)]
        for name, found in rates.items()
        if name != "vllm"
    }
    return {
        "tokens_per_cpu_s": {name: round(statistics.median(v)) for name, v in rates.items()},
        "to_vllm": {name: round(statistics.median(v), 3) for name, v in ratios.items()},
        "to_vllm_interval": {
            name: [round(each, 3) for each in interval_of_median(v)] for name, v in ratios.items()
        },
    }


async def crowd(side: Side, streams: int) -> dict[str, Any]:
    """So many, which come within some seconds and stay until all are there and longer.

    Raises if one is not answered to its last token.
    """
    port, pids = side
    before, began = sum(map(cpu_s, pids)), time.monotonic()
    tokens: list[int] = []
    num_open = most_open = 0

    async def one(number: int, prompt: list[int]) -> None:
        nonlocal num_open, most_open
        await asyncio.sleep(CROWD_WITHIN_S * number / streams)
        async with Client("127.0.0.1", port) as client:
            num_open += 1
            most_open = max(most_open, num_open)
            sample = await client.complete("m", prompt, CROWD_TOKENS)
            num_open -= 1
            tokens.append(sample.output_tokens)

    await asyncio.gather(*(one(*each) for each in enumerate(prompts_of(99, streams))))
    took_s = time.monotonic() - began
    return {
        "requests": len(tokens),
        "most_at_once": most_open,
        "tokens_per_s": round(sum(tokens) / took_s),
        "gateway_cores": round((sum(map(cpu_s, pids)) - before) / took_s, 3),
    }


def gateway_pid(folder: Path) -> int:
    """The gateway of the cluster whose state lies there."""
    environment = os.environ | {"XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "llx", "status", "-o", "json"]
    done = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True)
    [gateway] = json.loads(done.stdout)["gateways"]
    return int(gateway["pid"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--streams", type=int, default=64, help="at a time")
    parser.add_argument("--requests", type=int, default=256, help="of a turn")
    parser.add_argument("--crowd", type=int, default=2200, help="streams in the end")
    parser.add_argument("--routers", type=Path, help="where vllm-router is installed")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        model = tiny_model(folder)
        entry = {"name": "m", "model": str(model), "engine": "sim", "sim": SIM, "instances": 1}
        port = stack.enter_context(llx_up(folder, entry, gateway={"max_requests": 8192}))
        sides: dict[str, Side] = {"gateway": (port, [gateway_pid(folder)])}
        direct, step_ms = free_port(), STEP_MS + STEP_MS_PER_STREAM * words.streams
        argv = [str(NODE / "bin/python"), str(ROOT / "tests/bench/stock_sim.py"), "--model"]
        argv += [str(model), "--served-model-name", "m", "--port", str(direct)]
        argv += ["--step-ms", str(step_ms)]
        url = f"http://127.0.0.1:{direct}"
        stock = stack.enter_context(served(argv, f"{url}/health", folder / "vllm.log"))
        sides["vllm"] = (direct, [stock])
        if words.routers is not None:
            before = free_port()
            argv = router_argv("round-robin", words.routers, before, [url])
            log, health = folder / "router.log", f"http://127.0.0.1:{before}/health"
            router = stack.enter_context(served(argv, health, log))
            sides["vllm-router"] = (before, [stock, router])
        result = asyncio.run(measure(sides, words))
        result["crowd"] = asyncio.run(crowd(sides["gateway"], words.crowd))
    result["holds"] = result["to_vllm_interval"]["gateway"][0] >= BOUND
    print(json.dumps({"bench": "front_ends", **result}))
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
