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
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zmq.asyncio

from llx.agent.engine_codec import EngineCoreRequest, SamplingParams, decode_outputs, encode
from llx.agent.link import InstanceLink, peer_of_process
from llx.core.model import Blocks, Epoch, InstanceId, MigrationId, PoolName, RequestId, Term
from llx.core.streams import Streams, Verdict
from llx.curve import ClusterKeys
from llx.specs import EngineKind, InstanceSpec, MigrationSpec, Phase, ProcessStatus, save_spec
from llx.wire import AskOwner, Member, MigrateOrder, MigrationNews, Moving, Ruling, Target
from tests.gpu.report import Report

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b")
START_S = 150.0
MOVE_S = 20.0
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


# ---------------------------------------------------------------- the two instances


class Instances:
    """Two `llx.agent.instance` processes over one model."""

    def __init__(self, folder: Path, engine_args: dict[str, Any], migration: MigrationSpec) -> None:
        self._folder = folder
        self._keys = folder / "keys"
        ClusterKeys.create().save(self._keys)
        self._children = {name: self._spawn(name, engine_args, migration) for name in NAMES}

    def _spawn(
        self, name: str, engine_args: dict[str, Any], migration: MigrationSpec
    ) -> "subprocess.Popen[bytes]":
        spec = InstanceSpec(
            name=name, pool="m", engine=EngineKind.VLLM, model=str(self._folder / "model"),
            engine_args=engine_args, tensor_parallel=1, bind_host="127.0.0.1",
            keys_path=str(self._keys), status_path=str(self._folder / f"{name}.status"),
            migration=migration,
        )  # fmt: skip
        path = self._folder / f"{name}.spec"
        save_spec(path, spec)
        environment = os.environ | {
            "NCCL_HOSTID": name, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1",
            "NCCL_NET": "Socket", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "llx.agent.instance", str(path)],
                env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def keys(self) -> ClusterKeys:
        return ClusterKeys.load(self._keys)

    def members(self) -> list[Member]:
        """Both, once they are ready."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = [self._status(name) for name in NAMES]
            if all(each is not None and each.phase is Phase.READY for each in found):
                return [
                    Member(InstanceId(name), PoolName("m"), each.addresses[0], each.addresses[1])
                    for name, each in zip(NAMES, found, strict=True)
                    if each is not None
                ]
            dead = [name for name, child in self._children.items() if child.poll() is not None]
            if dead:
                raise RuntimeError(f"instance {dead[0]} ended:\n{self.log_of(dead[0])}")
            time.sleep(0.2)
        raise RuntimeError(f"not ready in {START_S} s:\n{self.log_of(NAMES[0])}")

    def _status(self, name: str) -> "ProcessStatus | None":
        import msgspec

        with contextlib.suppress(OSError, msgspec.DecodeError):
            text = (self._folder / f"{name}.status").read_bytes()
            return msgspec.json.decode(text, type=ProcessStatus)
        return None

    def log_of(self, name: str, size: int = 4000) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-size:]

    def stop(self) -> None:
        """By pid, each with the processes of its own session."""
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


# ---------------------------------------------------------------- the arbiter


@dataclass
class Stream:
    """What came of one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    downtimes: list[tuple[float, float]] = field(default_factory=list)
    """(downtime, median of the gaps before) in seconds, by move."""
    left_at: list[float] = field(default_factory=list)
    """When the last token before each move came."""
    is_finished: bool = False

    def gaps(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """Between tokens, as far as they lie within a time."""
        pairs = itertools.pairwise(self.times)
        return [after - before for before, after in pairs if begin <= before and after <= end]


def plain(value: Any) -> Any:
    """Decoded msgpack whose buffers compare by content."""
    import msgspec

    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, memoryview):
        return bytes(value)
    return bytes(value.data) if isinstance(value, msgspec.msgpack.Ext) else value


class Arbiter:
    """Sends requests, takes their outputs, and rules; also orders the moves."""

    def __init__(self, keys: ClusterKeys, members: list[Member]) -> None:
        self.streams: dict[str, Stream] = {}
        self.news: dict[str, MigrationNews] = {}
        self._early: dict[str, list[tuple[InstanceId, Any, tuple[Epoch, int]]]] = {}
        self._owners = Streams()
        self._members = {each.instance: each for each in members}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        context = zmq.asyncio.Context.instance()
        gateway, scheduler = peer_of_process("gateway"), peer_of_process("scheduler")
        self._links = {
            each.instance: InstanceLink(
                context, keys, each, peer=gateway, role="gateway", events=self
            )
            for each in members
        }
        self._orders = {
            each.instance: InstanceLink(
                context, keys, each, peer=scheduler, role="scheduler", events=self, term=Term(1)
            )
            for each in members
        }

    async def open(self) -> None:
        for link in (*self._links.values(), *self._orders.values()):
            link.start()
        await self.until(lambda: all(each.is_ready for each in self._all()), "sessions", 20)

    async def close(self) -> None:
        for link in self._all():
            await link.close()

    def _all(self) -> list[InstanceLink]:
        return [*self._links.values(), *self._orders.values()]

    async def until(self, condition: Any, what: str, timeout_s: float = MOVE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise RuntimeError(f"not in {timeout_s} s: {what}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, 0.5))

    # ------------------------------------------------------------ what the instances say

    def on_ready(self, link: InstanceLink) -> None:
        self._changed.set()

    def on_down(self, link: InstanceLink, reason: str) -> None:
        print(f"link to {link.member.instance} down: {reason}", file=sys.stderr)

    def on_load(self, link: InstanceLink, load: Any) -> None: ...

    def on_outputs(self, link: InstanceLink, header: Any, payload: list[memoryview]) -> None:
        now = time.perf_counter()
        for output, owner in zip(decode_outputs(payload).outputs, header.owners, strict=True):
            self._judge(link.member.instance, output, owner, now)
            for early in self._early.pop(output.request_id, []):
                self._judge(*early, now)
        self._changed.set()

    def _judge(
        self, instance: InstanceId, output: Any, owner: tuple[Epoch, int], now: float
    ) -> None:
        request = RequestId(output.request_id)
        before = self._owners.get(request)
        former = before.owner if before else None
        verdict = self._owners.judge(request, instance, *owner, len(output.new_token_ids))
        if verdict is Verdict.EARLY:
            self._early.setdefault(request, []).append((instance, output, owner))
        if verdict not in {Verdict.COUNTS, Verdict.MOVES}:
            assert verdict is not Verdict.GAP, f"{request}: tokens are missing"
            return
        stream = self.streams[request]
        if verdict is Verdict.MOVES:
            gaps = stream.gaps()[-32:]
            stream.downtimes.append((now - stream.times[-1], statistics.median(gaps)))
            stream.left_at.append(stream.times[-1])
            assert former is not None, "moved from somewhere"
            self._links[former].tell_llumlet(Ruling(request, owner[0], is_yours=False))
        stream.tokens.extend(output.new_token_ids)
        stream.times.extend([now] * len(output.new_token_ids))
        if output.new_logprobs is not None:
            stream.logprobs.append(plain(output.new_logprobs))
        if output.finish_reason is not None:
            stream.is_finished = True
            self._owners.end(request)

    def on_llumlet(self, link: InstanceLink, message: Any) -> None:
        instance = link.member.instance
        match message:
            case Moving(request=request, epoch=epoch, target=target):
                self._owners.note_target(request, instance, epoch, target)
            case AskOwner(request=request, epoch=epoch):
                answer = self._owners.ask(request, instance, epoch)
                if answer is not None:
                    link.tell_llumlet(Ruling(request, answer.epoch, answer.is_yours))
            case MigrationNews():
                self.news[message.migration] = message
                self._changed.set()

    # ------------------------------------------------------------ what is asked of them

    def add(self, prompt: list[int], max_tokens: int, where: str, logprobs: int | None) -> str:
        request = RequestId(f"r-{next(self._numbers)}")
        self.streams[request] = Stream()
        epoch = self._owners.own(request, InstanceId(where))
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs
        )
        message = EngineCoreRequest(
            request, prompt, None, params, None, time.time(), None, None, None,
            external_req_id=request,
        )  # fmt: skip
        self._links[InstanceId(where)].add(request, epoch, Blocks(0), [encode(message)], request)
        return request

    def abort(self, request: str) -> None:
        stream = self._owners.end(RequestId(request))
        if stream is not None:
            self._links[stream.owner].abort([(RequestId(request), stream.epoch)])

    def owner(self, request: str) -> str:
        stream = self._owners.get(RequestId(request))
        assert stream is not None, f"{request} has ended"
        return stream.owner

    async def move(self, request: str, **more: Any) -> MigrationNews:
        """Move it to the other instance; returns when the source has said what became of it."""
        source = self.owner(request)
        other = self._members[InstanceId("b" if source == "a" else "a")]
        migration = MigrationId(f"m-{next(self._numbers)}")
        order = MigrateOrder(
            migration, RequestId(request),
            Target(other.instance, other.address_in, other.address_out), Term(1),
            reuse_prefix=False, **more,
        )  # fmt: skip
        self._orders[InstanceId(source)].tell_llumlet(order)
        await self.until(
            lambda: migration in self.news and self.news[migration].is_over, f"{migration} over"
        )
        return self.news[migration]

    async def wait(self, request: str, num_tokens: int, timeout_s: float = 60.0) -> None:
        stream = self.streams[request]
        await self.until(
            lambda: stream.is_finished or len(stream.tokens) >= num_tokens,
            f"{num_tokens} tokens of {request}", timeout_s,
        )  # fmt: skip


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
