"""Two real vLLM instances of llx, and an arbiter in the place of their gateway and scheduler."""

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq.asyncio

from llx.agent.engine_codec import EngineCoreRequest, SamplingParams, decode_outputs, encode
from llx.agent.link import InstanceLink, peer_of_process
from llx.core.model import Blocks, Epoch, InstanceId, MigrationId, PoolName, RequestId, Term
from llx.core.streams import Streams, Verdict
from llx.curve import ClusterKeys
from llx.specs import EngineKind, InstanceSpec, MigrationSpec, Phase, ProcessStatus, save_spec
from llx.wire import AskOwner, Member, MigrateOrder, MigrationNews, Moving, Ruling, Target

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b")
START_S = 150.0
MOVE_S = 20.0


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
