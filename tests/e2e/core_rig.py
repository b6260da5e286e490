"""A real vLLM engine core, driven by hand: no gateway and no llumlet, every step one call.

For the scripts that the node's Python runs (`check_vllm_migration.py`, `check_vllm_recovery.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llx.agent.vllm.engine import LlxEngineCore, _Sink
from llx.core.migration import Begun, Cut
from llx.core.model import Epoch, MigrationId, RequestId
from llx.curve import ClusterKeys
from llx.ports import KvStore, MigratingEngine
from llx.specs import EngineKind, InstanceSpec
from llx.wire import Add, Reply, Reserve

BLOCK, NUM_BLOCKS = 32, 24
PEER = 7
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
REGEX = r"( time| year| way| day){20}"


@dataclass
class Said:
    """What left the engine about one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    finish: str = ""
    prefilled: int = 0


class Endpoint:
    """Stands in the endpoint's place: one peer, whose outputs are kept."""

    def __init__(self) -> None:
        self.said: dict[str, Said] = {}
        self.load: Any = None
        self.replies: list[tuple[str, Any]] = []
        self._decoder = MsgpackDecoder(EngineCoreOutputs)

    def report(self, load: Any, seen: dict[int, int]) -> None:
        self.load = load

    def emit(self, peer: int, message: Any, payload: Any = None) -> None:
        if isinstance(message, Reply):
            self.replies.append((message.error, MsgpackDecoder().decode(payload())))
            return
        outputs = self._decoder.decode(payload()).outputs
        for output, (epoch, offset) in zip(outputs, message.owners, strict=True):
            said = self.said.setdefault(output.request_id, Said())
            said.stamps.append((epoch, offset))
            said.tokens.extend(output.new_token_ids)
            if output.new_logprobs is not None:
                said.logprobs.extend(output.new_logprobs.logprobs.tolist())
            if output.prefill_stats is not None:
                said.prefilled = output.prefill_stats.num_prompt_tokens
            if output.finish_reason is not None:
                said.finish = str(output.finish_reason)


class Rig:
    """The core, the port, the store, and a hand on each."""

    def __init__(self, core: LlxEngineCore) -> None:
        self.core = core
        assert core.llx_endpoint is not None
        core.llx_endpoint.close("the test takes its place")
        self.endpoint = Endpoint()
        core.llx_endpoint = self.endpoint
        assert core.llx_migrating is not None, core.llx_cannot_migrate
        self.port: MigratingEngine = core.llx_migrating
        store = core.llx_migrating.local_store()
        assert store is not None
        self.store: KvStore = store
        self.sink = _Sink(core)
        self.lost: list[tuple[str, str]] = []
        self.port.watch(lambda request, why: self.lost.append((request, why)))
        self.encoder = MsgpackEncoder()
        self.count = 0

    @property
    def free(self) -> int:
        return self.core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def new_id(self, stem: str) -> RequestId:
        self.count += 1
        return RequestId(f"{stem}-{self.count}")

    def payload(
        self, request: str, prompt: list[int], params: dict[str, Any], priority: int
    ) -> Any:
        params = dict(params)
        regex = params.pop("regex", None)
        if regex is not None:
            structured = StructuredOutputsParams(regex=regex)
            structured._backend = "xgrammar"
            params["structured_outputs"] = structured
        message = EngineCoreRequest(
            request_id=request,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=SamplingParams(**(GREEDY | params)),
            pooling_params=None,
            arrival_time=float(self.count),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            priority=priority,
        )
        return [bytes(frame) for frame in self.encoder.encode(message)]

    def add(self, prompt: list[int], params: dict[str, Any], priority: int = 0) -> RequestId:
        request = self.new_id("r")
        header = Add(request, Epoch(1), self.count, f"name-of-{request}")
        self.sink.add(PEER, header, self.payload(request, prompt, params, priority))
        self.pump()
        return request

    def pump(self) -> None:
        while not self.core.input_queue.empty():
            self.core._handle_client_request(*self.core.input_queue.get_nowait())

    def step(self) -> None:
        self.pump()
        if self.core.has_work():
            self.core._process_engine_step()

    def said(self, request: str) -> Said:
        return self.endpoint.said.setdefault(request, Said())

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        for _ in range(3000):
            if is_so():
                return
            self.step()
            if not self.core.has_work():
                time.sleep(0.001)  # what is waited for is on its way in another thread
        fail(f"never came: {what}")

    def run(self, request: str) -> Said:
        self.until(lambda: bool(self.said(request).finish), f"the end of {request}")
        return self.said(request)

    def idle(self) -> None:
        self.until(lambda: not self.core.has_work(), "an idle engine")

    def is_quiet(self, free: int, what: str) -> None:
        """Everything is as it was before, once the workers have heard with a step who is gone."""
        self.idle()
        scheduler = self.core.scheduler
        if scheduler._llx_gone_arrivals:
            self.run(self.add([1, 2, 3], {"max_tokens": 1}))
            self.idle()
        check(f"{what}: free blocks", self.free == free, self.free, free)
        manager = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        left = {key for key, blocks in manager.req_to_blocks.items() if blocks}
        check(f"{what}: no block tables", not left, left)
        tables = (
            scheduler.requests, scheduler._llx_watched, scheduler._llx_leaving,
            scheduler._llx_shadows, scheduler._llx_arrivals, scheduler._llx_in_flight,
            scheduler._llx_notices, self.store._kept, scheduler._llx_gone_arrivals,
        )  # fmt: skip
        check(f"{what}: nothing held", not any(tables), [len(each) for each in tables])
        check(f"{what}: nobody owned", len(self.core.llx_ownership) == 0)
        report = self.endpoint.load
        check(f"{what}: load", (report.num_running, report.num_waiting) == (0, 0), report)

    # ------------------------------------------------------------ one move, part by part

    def begin(self, request: RequestId) -> Begun:
        begun = self.port.begin(request)
        assert isinstance(begun, Begun), begun
        assert (begun.peer, begun.epoch, begun.name) == (PEER, 1, f"name-of-{request}")
        return begun

    def prepare(self, prompt: list[int], params: dict[str, Any], priority: int = 0) -> Any:
        """The same request under another id, prepared at the target."""
        target = self.new_id("t")
        header = Reserve(MigrationId("m"), target, Epoch(2), "gateway", "name", "", 0)
        prepared = self.port.prepare(header, self.payload(target, prompt, params, priority))
        assert not isinstance(prepared, str), prepared
        return target, prepared

    def reserve(self, migration: str, prepared: Any, tokens: int, reuse: bool) -> Any:
        for _ in range(200):
            answer = self.port.reserve(MigrationId(migration), prepared, tokens, reuse_prefix=reuse)
            if answer is not None:
                return answer
            time.sleep(0.01)
            self.step()
        return fail("a reservation never got ready")

    def copy(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        buffer = memoryview(bytearray(len(source) * self.store.block_bytes))
        self.store.pack(source, buffer)
        self.store.unpack(target, buffer)

    def cut(self, request: RequestId) -> Cut | None:
        done: list[Cut | None] = []
        self.port.cut(request, done.append)
        self.until(lambda: bool(done), f"{request} cut")
        return done[0]


def check(name: str, is_right: bool, *evidence: object) -> None:
    if not is_right:
        fail(name, *evidence)
    print(f"{name}: ok", flush=True)


def fail(name: str, *evidence: object) -> Any:
    print(f"{name}: wrong", *evidence, sep="\n  ", flush=True)
    raise SystemExit(1)


def prompt_of(length: int, seed: int) -> list[int]:
    return [3 + (seed * 7919 + n * n * 31 + n * 17) % 500 for n in range(length)]


def build(model: str, mode: str, folder: Path) -> LlxEngineCore:
    ClusterKeys.create().save(folder / "keys")
    config = AsyncEngineArgs(
        model=model, dtype="float32", block_size=BLOCK, num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=640, max_num_seqs=4, max_num_batched_tokens=128, enforce_eager=True,
        enable_prefix_caching=True, scheduling_policy="priority",
    ).create_engine_config()  # fmt: skip
    config.scheduler_config.async_scheduling = mode == "async"
    spec = InstanceSpec(
        name="one", pool="pool", engine=EngineKind.VLLM, model=model, engine_args={},
        tensor_parallel=1, bind_host="127.0.0.1", keys_path=str(folder / "keys"),
        status_path=str(folder / "status"),
    )  # fmt: skip
    return LlxEngineCore(config, spec)
