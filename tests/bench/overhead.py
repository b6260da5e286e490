"""What the gateway costs, against vLLM's own front end directly on one engine.

    .venv/bin/python -m tests.bench.overhead sim     (a) on `engine: sim`: added TTFT and ITL
    .venv/bin/python -m tests.bench.overhead vllm    (b) on real vLLM: ratio of output tokens/s

Both servers stay up for the whole run; load goes to one at a time, in turns whose order is shuffled
within each round, so that a machine that drifts drifts for both. Bounds are judged by the 95%
interval over rounds; exit code 8 if one does not hold. One JSON line on standard output.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench.intervals import interval_of_median, percentile
from tests.bench.sse_load import Client, closed_loop
from tests.node import ROOT, node_environment

NODE = Path(os.environ.get("LLX_NODE_PREFIX", ROOT / ".node"))
ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "dtype": "bfloat16",
    "enable_prefix_caching": False,
}
SIM_STEP_MS = 8.0
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING"}
SETTLE_S = 2.0
"""vLLM's worker spins for a second after its last step; the other server's turn waits that out."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, timeout_s: float, process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server behind {url} ended with {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.3)
    raise TimeoutError(url)


def vllm_serve(model: Path, name: str, port: int, engine_args: dict[str, Any]) -> list[str]:
    """The command line of vLLM's own server, with an engine as llx starts it."""
    argv = [str(NODE / "bin/python"), "-m", "vllm.entrypoints.launchers.api_server.entry"]
    argv += [f"--model={model}", f"--served-model-name={name}", "--host=127.0.0.1"]
    argv += [f"--port={port}", "--scheduling-policy=priority", "--disable-uvicorn-access-log"]
    for key, value in engine_args.items():
        flag = key.replace("_", "-")
        argv.append(f"--{flag}={value}" if not isinstance(value, bool) else
                    f"--{'' if value else 'no-'}{flag}")  # fmt: skip
    return argv


@contextlib.contextmanager
def served(
    argv: list[str], url: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A plain server process, up for the length of the block; its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env=QUIET | node_environment() | dict(environment or {}),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(url, 300, process)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


@contextlib.contextmanager
def llx_up(
    folder: Path,
    model: dict[str, Any],
    migration: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
) -> Iterator[int]:
    """A local cluster of one model (an entry of cluster.yaml), by `llx up`.

    Its gateway's port; its state is in `folder`, its name "bench".
    """
    port = free_port()
    config = {
        "cluster": "bench",
        "models": [model],
        "gateway": {"port": port, **(gateway or {})},
        "control": {"port": 0},
        "runtime": {"platform": "cpu", "cpu_threads": 1},
        "migration": migration or {},
    }
    path = folder / "cluster.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    llx = [sys.executable, "-m", "llx"]
    environment = os.environ | {
        "XDG_STATE_HOME": str(folder / "state"),
        "LLX_NODE_PREFIX": str(NODE),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([*llx, "up", "-y", str(path)], env=environment, check=True, stdout=sys.stderr)
    try:
        yield port
    finally:
        down = [*llx, "down", "--deadline", "5s"]
        subprocess.run(down, env=environment, check=True, stdout=sys.stderr)


@contextlib.contextmanager
def llx_cluster(folder: Path, engine: str, model: Path) -> Iterator[int]:
    """One instance behind a gateway, by `llx up`; yields the gateway's port."""
    entry: dict[str, Any] = {
        "name": "m",
        "model": str(model),
        "engine": engine,
        "instances": {"min": 1, "max": 1},
        "engine_args": ENGINE_ARGS,
    }
    if engine == "sim":
        entry["sim"] = SIM
    with llx_up(folder, entry) as port:
        yield port


SIM = {
    "step_base_ms": SIM_STEP_MS,
    "step_ms_per_prefill_token": 0.0,
    "step_ms_per_decode": 0.0,
    "step_ms_per_context_ktoken": 0.0,
}


def tiny_model(folder: Path) -> Path:
    model = folder / "tiny"
    python = str(NODE / "bin/python")
    argv = [python, "-m", "llx.agent.vllm.tiny_model", "--out", str(model)]
    subprocess.run(argv, env=node_environment(), check=True, stdout=sys.stderr)
    return model


def prompts_of(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 500) for _ in range(32)] for _ in range(count)]


# ---------------------------------------------------------------------- (a) simulated engine


async def sim_rounds(ports: dict[str, int], rounds: int, per_round: int, tokens: int) -> dict:
    rng = random.Random(7)
    ttft: dict[str, list[float]] = {name: [] for name in ports}
    gaps: dict[str, list[float]] = {name: [] for name in ports}
    added_ttft, added_itl = [], []
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client("127.0.0.1", port))
            for name, port in ports.items()
        }
        for client in clients.values():
            await client.complete("m", prompts_of(0, 1)[0], tokens)
        for number in range(rounds):
            here: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ports}
            for prompt in prompts_of(number, per_round):
                names = list(clients)
                rng.shuffle(names)
                for name in names:
                    sample = await clients[name].complete("m", prompt, tokens)
                    here[name][0].append(sample.ttft_s * 1e3)
                    here[name][1].extend(gap * 1e3 for gap in sample.gaps_s)
            for name, (firsts, others) in here.items():
                ttft[name].extend(firsts)
                gaps[name].extend(others)
            medians = {
                n: (statistics.median(f), statistics.median(g)) for n, (f, g) in here.items()
            }
            added_ttft.append(medians["gateway"][0] - medians["direct"][0])
            added_itl.append(medians["gateway"][1] - medians["direct"][1])
    return {
        "added_ttft_p50_ms": round(statistics.median(added_ttft), 3),
        "added_ttft_p50_interval_ms": [round(v, 3) for v in interval_of_median(added_ttft)],
        "added_itl_p50_ms": round(statistics.median(added_itl), 3),
        "added_itl_p50_interval_ms": [round(v, 3) for v in interval_of_median(added_itl)],
        "ttft_ms": {n: [round(percentile(v, q), 2) for q in (0.5, 0.99)] for n, v in ttft.items()},
        "itl_ms": {n: [round(percentile(v, q), 2) for q in (0.5, 0.99)] for n, v in gaps.items()},
        "requests": rounds * per_round,
    }


def run_sim(folder: Path, rounds: int) -> dict:
    model = tiny_model(folder)
    direct = free_port()
    python = str(NODE / "bin/python")
    stock = str(ROOT / "tests/bench/stock_sim.py")
    argv = [python, stock, "--model", str(model), "--served-model-name", "m", "--port", str(direct)]
    argv += ["--step-ms", str(SIM_STEP_MS)]
    with (
        llx_cluster(folder, "sim", model) as gateway,
        served(argv, f"http://127.0.0.1:{direct}/health", folder / "direct.log"),
    ):
        ports = {"direct": direct, "gateway": gateway}
        result = asyncio.run(sim_rounds(ports, rounds, per_round=12, tokens=48))
    result["holds"] = (
        result["added_ttft_p50_interval_ms"][0] <= 1.5
        and result["added_itl_p50_interval_ms"][0] <= 0.2
        and result["added_ttft_p50_ms"] <= 1.5
        and result["added_itl_p50_ms"] <= 0.2
    )
    return result


# ---------------------------------------------------------------------- (b) real vLLM


async def vllm_rounds(ports: dict[str, int], rounds: int) -> dict:
    rng = random.Random(7)
    rates: dict[str, list[float]] = {name: [] for name in ports}
    tokens, concurrency, count = 64, 16, 128
    for port in ports.values():
        await closed_loop("127.0.0.1", port, "m", prompts_of(0, concurrency), tokens, concurrency)
    for number in range(rounds):
        names = list(ports)
        rng.shuffle(names)
        for name in names:
            await asyncio.sleep(SETTLE_S)
            elapsed, samples = await closed_loop(
                "127.0.0.1", ports[name], "m", prompts_of(number, count), tokens, concurrency
            )
            rates[name].append(sum(s.output_tokens for s in samples) / elapsed)
            sys.stderr.write(f"round {number} {name}: {rates[name][-1]:.0f} tokens/s\n")
    pairs = zip(rates["gateway"], rates["plain"], strict=True)
    ratios = [ours / plain for ours, plain in pairs]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_interval": [round(v, 3) for v in interval_of_median(ratios)],
        "ratios": [round(v, 3) for v in ratios],
        "tokens_per_s": {n: [round(min(v)), round(statistics.median(v)), round(max(v))]
                         for n, v in rates.items()},
    }  # fmt: skip


def run_vllm(folder: Path, rounds: int) -> dict:
    model = tiny_model(folder)
    plain = free_port()
    argv = vllm_serve(model, "m", plain, ENGINE_ARGS)
    with (
        served(argv, f"http://127.0.0.1:{plain}/health", folder / "plain.log"),
        llx_cluster(folder, "vllm", model) as gateway,
    ):
        result = asyncio.run(vllm_rounds({"plain": plain, "gateway": gateway}, rounds))
    result["holds"] = result["ratio_interval"][0] >= 0.95
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["sim", "vllm"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-bench-") as name:
        run = run_sim if arguments.what == "sim" else run_vllm
        result = run(Path(name), arguments.rounds)
    sys.stdout.write(json.dumps({"bench": arguments.what, **result}) + "\n")
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
