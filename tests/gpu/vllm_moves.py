"""Moves running requests between two real vLLM instances on one GPU, and measures what it costs.

    python -m tests.gpu.vllm_moves [--json FILE] [--model FOLDER] [--lengths 1024,4096,8000]

Needs the pinned vLLM, msgspec and pyzmq beside torch; no Ray, no tokenizer, no weights: the model
has Llama-3-8B's shape and dummy weights, the same at both ends (without a GPU it is a small one, to
try the script). The instances are llx's own processes. In place of a gateway there is an arbiter in
this process, made of the same parts: links, streams, pace. Downtime is what it sees.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch

from llx.specs import MigrationSpec
from tests.gpu.report import Report
from tests.gpu.two_instances import NAMES, Arbiter, Instances

OUTPUTS = 600
PACE_TOKENS = 40
"""Between two moves: the pace is the median of so many gaps."""

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL = LLAMA_8B | {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip


# ---------------------------------------------------------------- what is measured


def prompt_of(length: int, seed: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, vocabulary, (length,), generator=generator).tolist()


async def identity(arbiter: Arbiter, report: Report, lengths: list[int], vocabulary: int) -> None:
    """Alone in the batch, so that its shape is the same: moved and unmoved, bit by bit."""
    for length in lengths:
        prompt = prompt_of(length, length, vocabulary)
        plain = arbiter.add(prompt, OUTPUTS, "a", 1)
        await arbiter.wait(plain, OUTPUTS)
        moved = arbiter.add(prompt, OUTPUTS, "a", 1)
        for at in (20, 150, 300):
            await arbiter.wait(moved, at)
            news = await arbiter.move(moved, is_checked=True)
            report.check(
                f"{length}: moved, KV equal by digest at both ends",
                news.outcome == "moved", f"{news.outcome} {news.reason} {news.state}",
            )  # fmt: skip
        await arbiter.wait(moved, OUTPUTS)
        one, other = arbiter.streams[plain], arbiter.streams[moved]
        distinct = len(set(one.tokens))
        report.check(
            f"{length}: tokens as without a move", one.tokens == other.tokens,
            f"{len(other.tokens)} tokens, {distinct} distinct",
        )  # fmt: skip
        report.check(
            f"{length}: logprobs as without a move, bit by bit", one.logprobs == other.logprobs
        )


async def stalls(arbiter: Arbiter, report: Report, lengths: list[int], vocabulary: int) -> None:
    """One request, moved to and fro."""
    medians = {}
    for length in lengths:
        request = arbiter.add(
            prompt_of(length, 7 + length, vocabulary), 30 * PACE_TOKENS, "a", None
        )
        await arbiter.wait(request, PACE_TOKENS)
        copied, sizes, elapsed = [], [], []
        for _ in range(10):
            news = await arbiter.move(request)
            if news.outcome != "moved":
                report.check(f"{length}: moved", False, news.reason)
                break
            copied.append(news.blocks_copied)
            sizes.append(news.size_bytes)
            elapsed.append(news.elapsed_ms)
            await arbiter.wait(request, len(arbiter.streams[request].tokens) + PACE_TOKENS)
        moves = arbiter.streams[request].downtimes
        arbiter.abort(request)
        downtime = [each * 1e3 for each, _ in moves]
        itl = [each * 1e3 for _, each in moves]
        report.check(
            f"{length}: went by", news.outcome == "moved", f"{news.transport} {news.transport_why}"
        )
        report.measure(f"{length}: downtime", downtime, "ms")
        report.measure(f"{length}: ITL before", itl, "ms")
        report.measure(f"{length}: whole move", elapsed, "ms")
        report.measure(f"{length}: copied", [each / 2**20 for each in sizes], "MiB")
        ratios = [(down - gap) / gap for down, gap in moves]
        report.measure(f"{length}: stall / ITL", ratios, "", at_most=0.5)
        medians[length] = statistics.median(down - gap for down, gap in moves) * 1e3
    if len(medians) > 1:
        spread = max(medians.values()) - min(medians.values())
        report.measure("stall over lengths, largest - smallest", spread, "ms")


async def neighbours(arbiter: Arbiter, report: Report, length: int, vocabulary: int) -> None:
    """Streams that nobody moves, while another one is copied away beside them, and while not.

    Both instances share the GPU, so what is compared is only the time before the other one decodes:
    while the mover is copied and still decodes here, against right before that.
    """
    others = [
        arbiter.add(prompt_of(256, 100 + each, vocabulary), 6000, "a", None) for each in range(16)
    ]
    mover = arbiter.add(prompt_of(length, 5, vocabulary), 6000, "a", None)
    for each in (*others, mover):
        await arbiter.wait(each, 20)
    gaps: dict[bool, list[float]] = {True: [], False: []}
    ratios, copying_s = [], []
    for _ in range(4):
        found: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(10):
            settled = time.perf_counter()
            await asyncio.sleep(0.15)
            begun = time.perf_counter()
            await moved(arbiter, mover)
            ended = arbiter.streams[mover].left_at[-1]
            copying_s.append(ended - begun)
            for each in others:
                found[False] += arbiter.streams[each].gaps(settled, begun)
                found[True] += arbiter.streams[each].gaps(begun, ended)
            await moved(arbiter, mover)
            await asyncio.sleep(0.05)
        for is_moving in (True, False):
            gaps[is_moving] += found[is_moving]
        ratios.append(statistics.median(found[True]) / statistics.median(found[False]))
    report.measure("copied beside 16 streams, until the mover leaves", copying_s, "s")
    report.measure(
        "others' TPOT p50, nothing is copied", statistics.median(gaps[False]) * 1e3, "ms"
    )
    report.measure("others' TPOT p50, copying / not", ratios, "", at_most=1.01)
    tail = [statistics.quantiles(gaps[each], n=100)[98] for each in (True, False)]
    report.measure("others' TPOT p99, copying / not", tail[0] / tail[1], "")
    for each in (*others, mover):
        arbiter.abort(each)


async def moved(arbiter: Arbiter, request: str) -> None:
    """Move it, for certain."""
    news = await arbiter.move(request)
    if news.outcome != "moved":
        raise RuntimeError(f"not moved: {news.outcome} {news.reason}")


# ---------------------------------------------------------------- the run


@contextlib.asynccontextmanager
async def arbiter_of(instances: Instances) -> AsyncIterator[Arbiter]:
    members = await asyncio.to_thread(instances.members)
    arbiter = Arbiter(instances.keys, members)
    await arbiter.open()
    try:
        yield arbiter
    finally:
        await arbiter.close()


async def measure(instances: Instances, report: Report, lengths: list[int], parts: str) -> None:
    begun = time.monotonic()
    vocabulary = LLAMA_8B["vocab_size"] if torch.cuda.is_available() else SMALL["vocab_size"]
    assert isinstance(vocabulary, int), "a number"
    async with arbiter_of(instances) as arbiter:
        report.measure("both instances ready after", time.monotonic() - begun, "s")
        for link in arbiter._links.values():
            assert link.info is not None, "it is ready"
            reason = link.info.cannot_migrate
            report.check(f"{link.member.instance} can move requests", not reason, reason)
        if "i" in parts:
            await identity(arbiter, report, lengths, vocabulary)
        if "s" in parts:
            await stalls(arbiter, report, lengths, vocabulary)
        if "n" in parts:
            await neighbours(arbiter, report, 2048, vocabulary)


def engine_args(extra: str) -> dict[str, Any]:
    """On a GPU 0.3 of its memory each, of which 12 GiB for KV."""
    common = {
        "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16",
        "max_model_len": 16384 if torch.cuda.is_available() else 8192,
        "enable_prefix_caching": False, "max_num_seqs": 32,
    }  # fmt: skip
    on_gpu = {"gpu_memory_utilization": 0.3, "kv_cache_memory_bytes": 12 << 30}
    on_cpu = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 256 << 20}
    return common | (on_gpu if torch.cuda.is_available() else on_cpu) | json.loads(extra)


def main() -> int:
    """Start, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--lengths", default="1024,4096,8000")
    parser.add_argument("--parts", default="isn")
    parser.add_argument("--engine-args", default='{"enforce_eager": true}')
    parser.add_argument("--migration", default="{}")
    arguments = parser.parse_args()
    import msgspec

    report = Report(section="vllm")
    lengths = [int(each) for each in arguments.lengths.split(",")]
    with tempfile.TemporaryDirectory(prefix="llx-gpu-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        shape = LLAMA_8B if torch.cuda.is_available() else SMALL
        (folder / "model/config.json").write_text(json.dumps(shape))
        migration = msgspec.json.decode(arguments.migration, type=MigrationSpec)
        instances = Instances(folder, engine_args(arguments.engine_args), migration)
        try:
            report.run(
                "vllm", lambda it: asyncio.run(measure(instances, it, lengths, arguments.parts))
            )
        finally:
            instances.stop()
            for each in NAMES:
                if arguments.logs:
                    (arguments.logs / f"{each}.log").write_text(instances.log_of(each, 1 << 20))
                elif not report.is_met:
                    print(f"== {each}\n{instances.log_of(each)}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(report.json())
    return 0 if report.is_met else 8


if __name__ == "__main__":
    sys.exit(main())
