"""An instance of vLLM: its engine core in this process, behind llx's endpoint.

`LlxEngineCore` is vLLM's `EngineCoreProc` with its sockets replaced and nothing else changed:

    input thread    endpoint → add / abort / call ─► input_queue ─┐
    core thread     ownership, scheduler.step, load report  ◄─────┘   (vLLM's busy loop)
    sender thread   encode ─► endpoint ◄─ output_queue (stamped with epoch and offset)
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import (
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core import EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses, SignalCallback
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.request import Request, RequestStatus
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.version import __version__ as vllm_version

from llx import __version__
from llx.agent.endpoint import InstanceEndpoint
from llx.agent.llumlet import EngineFacts, MigrationService
from llx.agent.ownership import Ownership
from llx.agent.pulse import Pulse, Slot
from llx.agent.transport.instance import InstanceTransport
from llx.agent.vllm.arguments import instance_argv
from llx.agent.vllm.cached_prefixes import CachedPrefixes
from llx.agent.vllm.idle_threads import let_gloo_wait
from llx.agent.vllm.migrating import OnCore, VllmMigratingEngine, open_migration
from llx.agent.vllm.model_inspection import inspecting_here
from llx.agent.vllm.operators import OperatorCalls
from llx.agent.vllm.recording_core import RecordingEngineCore
from llx.agent.vllm.scheduler import enable_migration
from llx.agent.vllm.stamping import StampingQueue
from llx.core.model import Epoch, InstanceId, PoolName, RequestId, blocks_for
from llx.curve import KeyFile
from llx.errors import EngineError
from llx.pins import VLLM_VERSION
from llx.ports import PIN, SET_PRIORITY, Frame
from llx.specs import InstanceSpec, Phase, StatusFile
from llx.wire import Add, Call, InstanceInfo, Load

log = logging.getLogger(__name__)

ALLOWED_CALLS = frozenset(
    {
        "get_supported_tasks",
        "reset_mm_cache",
        "reset_prefix_cache",
        "reset_encoder_cache",
        "is_sleeping",
        "is_scheduler_paused",
        "get_weight_version",
        "add_lora",
        "remove_lora",
        "list_loras",
        "pin_lora",
        "llx_requests",
        "llx_oldest_requests",
        SET_PRIORITY,
        PIN,
        "llx_steps",
    }
)
"""Utilities that a peer may call. None of them runs code of the caller's choosing."""

_STEP_LIMIT_CPU_S = 300.0
_STEP_LIMIT_S = 60.0
"""No step takes so long; one that compiles a kernel takes seconds."""
_REPORT_EVERY_S = 0.005
_NOT_READY_S = 0.005
_ADD, _ABORT, _UTILITY, _WAKEUP = (
    EngineCoreRequestType.ADD,
    EngineCoreRequestType.ABORT,
    EngineCoreRequestType.UTILITY,
    EngineCoreRequestType.WAKEUP,
)


@dataclass(frozen=True, slots=True)
class _Rejected:
    """An ADD that could not be prepared; answered on the core thread, where ownership lives."""

    peer: int
    header: Add


@dataclass(frozen=True, slots=True)
class _PeerGone:
    peer: int


@dataclass(frozen=True, slots=True)
class _Claim:
    """A peer's Abort; vLLM's queues carry it where they would carry ids."""

    peer: int
    requests: list[tuple[RequestId, Epoch]]


class LlxEngineCore(OperatorCalls, RecordingEngineCore):
    """vLLM's engine core, served by an `InstanceEndpoint`."""

    def __init__(self, vllm_config: Any, spec: InstanceSpec) -> None:
        self.llx_spec = spec
        self.llx_keys = KeyFile(Path(spec.keys_path))
        self.llx_pulse = Pulse.beside(spec.status_path)
        self._llx_step_limit_s = _step_limit_s(spec)
        self.llx_ownership = Ownership()
        self.llx_endpoint: InstanceEndpoint | None = None
        self.llx_addresses: tuple[str, str] = ("", "")
        self.llx_prefixes: CachedPrefixes | None = None
        self._llx_bound = threading.Event()
        self._llx_encoder = MsgpackEncoder()
        self._llx_reported_at = 0.0
        self.llx_cannot_migrate = enable_migration(vllm_config)
        self.llx_migrating: VllmMigratingEngine | None = None
        self.llx_llumlet: MigrationService | None = None
        self.llx_transport: InstanceTransport | None = None
        self._llx_prepare_lock = threading.Lock()
        self._llx_late: list[tuple[Request, int]] = []
        """Requests added under an id whose last life here is just ending, or with a grammar that is
        still being compiled."""
        self._llx_waker: threading.Timer | None = None
        """Has an idle core look at them again."""
        folder = Path(spec.status_path).parent
        executor_class = _executor_class(vllm_config, folder)
        super().__init__(vllm_config, True, "", executor_class, log_stats=True)

    # ------------------------------------------------------------------ vLLM's sockets, replaced

    @contextmanager
    def _perform_handshakes(self, *_: Any, **__: Any) -> Generator[EngineZmqAddresses, None, None]:
        self.output_queue = StampingQueue(self)
        yield EngineZmqAddresses(inputs=[], outputs=[])

    def process_input_sockets(
        self, _inputs: Any, _coordinator: Any, _identity: Any, ready_event: threading.Event
    ) -> None:
        """Bind the endpoint; its own threads do the rest.

        The core thread waits for it to be bound, so what is asked of the workers here is the first.
        """
        match open_migration(self):
            case str(reason):
                self.llx_cannot_migrate = reason
                log.info("engine.cannot_migrate instance=%s why=%s", self.llx_spec.name, reason)
            case migrating:
                self.llx_migrating = migrating
        sink = _Sink(self)
        llumlet = self._llx_llumlet(sink)
        self.llx_prefixes = CachedPrefixes(self)
        endpoint = InstanceEndpoint(
            self.llx_keys,
            self.llx_spec.bind_host,
            info=self._llx_info(self.llx_prefixes.block),
            engine_ready=msgspec.msgpack.encode(self._make_ready_response()),
            sink=sink,
            llumlet=llumlet,
            prefixes=self.llx_prefixes.reports(),
            allowed_calls=ALLOWED_CALLS,
            port_range=self.llx_spec.port_range,
            beat=lambda: self.llx_pulse.promise(Slot.ALIVE, self.llx_spec.hang.silent_s),
        )
        self.llx_endpoint = endpoint
        self.llx_report(is_forced=True)
        if llumlet is not None:
            assert self.llx_migrating is not None, "it has a llumlet"
            self.llx_transport = self.llx_migrating.open_transport(self.llx_spec, llumlet)
            llumlet.start(endpoint, self.llx_transport)
            self.llx_llumlet = llumlet
        self.llx_addresses = endpoint.start()
        self._llx_bound.set()
        ready_event.set()

    def _llx_llumlet(self, sink: "_Sink") -> MigrationService | None:
        """The migration end, if requests can move."""
        migrating, config = self.llx_migrating, self.vllm_config
        if migrating is None:
            return None
        facts = EngineFacts(
            InstanceId(self.llx_spec.name),
            migrating.compatibility,
            config.cache_config.block_size,
            config.model_config.max_model_len,
        )
        return MigrationService(
            self.llx_keys,
            PoolName(self.llx_spec.pool_key),
            facts,
            self.llx_spec.migration,
            migrating,
            sink,
        )

    def llx_end_migration(self) -> None:
        """End the llumlet and the copies under way; what it left open the other ends settle."""
        if self.llx_llumlet is not None:
            self.llx_llumlet.close()
        if self.llx_transport is not None:
            self.llx_transport.stop()

    def process_output_sockets(self, *_: Any) -> None:
        """Wait for the end: outputs leave through the endpoint."""
        self._llx_bound.wait()
        assert self.llx_endpoint is not None
        self.llx_endpoint.wait_closed()

    def _llx_info(self, prefix_block: int) -> InstanceInfo:
        config = self.vllm_config
        return InstanceInfo(
            instance=InstanceId(self.llx_spec.name),
            pool=PoolName(self.llx_spec.pool_key),
            engine=self.llx_spec.engine,
            llx_version=__version__,
            vllm_version=vllm_version,
            model=self.llx_spec.model,
            num_blocks=self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
            block_size=config.cache_config.block_size,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            tensor_parallel=config.parallel_config.tensor_parallel_size,
            pid=os.getpid(),
            cannot_migrate=self.llx_cannot_migrate,
            prefix_block=prefix_block,
            compatibility="" if self.llx_migrating is None else self.llx_migrating.compatibility,
        )

    # ------------------------------------------------------------------ core thread

    def _handle_client_request(self, request_type: EngineCoreRequestType, request: Any) -> None:
        match request:
            case _Rejected(peer=peer, header=header):
                if self.llx_ownership.is_superseded(peer, header):
                    self.abort_requests([header.request])
                if self.llx_ownership.add(peer, header):
                    self._llx_finish(peer, [header.request], FinishReason.ERROR)
            case _PeerGone(peer=peer):
                self.abort_requests(list(self.llx_ownership.of_peer(peer)))
            case OnCore():
                request.run()
            case _:
                super()._handle_client_request(request_type, request)
        if request_type == _UTILITY:
            self.llx_report(is_forced=not self.scheduler.has_requests())
        self._llx_settle()

    def _reject_add_in_shutdown(self, request: Request) -> bool:
        if self.is_running():
            return False
        self.llx_ownership.add(request.client_index, request.llx_header)
        return bool(super()._reject_add_in_shutdown(request))

    def add_request(self, request: Request, request_wave: int = 0) -> None:
        """Take in a request, unless its id is held already."""
        header: Add = request.llx_header
        if self.llx_ownership.is_superseded(request.client_index, header):
            self.abort_requests([header.request])
        if not self.llx_ownership.add(request.client_index, header):
            log.warning("engine.duplicate_add request=%s epoch=%s", header.request, header.epoch)
            return
        self._llx_add(request, request_wave)

    def _llx_add(self, request: Request, request_wave: int) -> None:
        header: Add = request.llx_header
        if self.llx_migrating is not None and self.scheduler.llx_is_ending(header.request):
            self._llx_late.append((request, request_wave))
            return
        try:
            if header.outputs:
                self._llx_take_over(request, request_wave)
            else:
                super().add_request(request, request_wave)
        except (TypeError, ValueError):
            log.exception("engine.add_refused request=%s", header.request)
            self._llx_finish(request.client_index, [header.request], FinishReason.ERROR)

    def _llx_take_over(self, request: Request, request_wave: int) -> None:
        """A request whose instance was lost goes on here, once its grammar is compiled."""
        header: Add = request.llx_header
        reason: str | None = f"requests cannot be taken over here: {self.llx_cannot_migrate}"
        if self.llx_migrating is not None:
            reason = self.scheduler.llx_take_over(request, header.outputs)
        if reason is None:
            self._llx_late.append((request, request_wave))
            if self._llx_waker is None:
                self._llx_waker = threading.Timer(_NOT_READY_S, self._llx_wake)
                self._llx_waker.daemon = True
                self._llx_waker.start()
        elif reason:
            log.warning("engine.not_taken_over request=%s reason=%s", header.request, reason)
            self._llx_finish(request.client_index, [header.request], FinishReason.ERROR)

    def _llx_wake(self) -> None:
        """On the timer's thread: the core looks again, and may set the next timer."""
        self._llx_waker = None
        self.input_queue.put_nowait((_WAKEUP, None))

    def abort_requests(self, request_ids: Sequence[str | _Claim]) -> None:
        """Abort by id, or what peers may claim (`Ownership.held`)."""
        ids = [each for each in request_ids if isinstance(each, str)]
        for claim in request_ids:
            if isinstance(claim, _Claim):
                ids.extend(self.llx_ownership.held(claim.peer, claim.requests))
        for request in ids:
            self.llx_ownership.drop(RequestId(request))
        super().abort_requests(ids)

    def _process_engine_step(self) -> bool:
        self.llx_pulse.promise(Slot.STEP, self._llx_step_limit_s)
        model_executed = super()._process_engine_step()
        self.llx_pulse.rest(Slot.STEP)
        self._llx_settle()
        self.llx_report(is_forced=not self.scheduler.has_requests())
        return model_executed

    def _llx_settle(self) -> None:
        if self.llx_migrating is not None:
            self.scheduler.llx_settle()
        late, self._llx_late = self._llx_late, []
        for request, wave in late:
            header: Add = request.llx_header
            if self.llx_ownership.epoch_of(header.request) == header.epoch:  # not aborted since
                self._llx_add(request, wave)

    def llx_prepare(self, message: EngineCoreRequest) -> tuple[Request, int]:
        """vLLM's preparation of a request, on any thread but the core's: one at a time."""
        with self._llx_prepare_lock:
            prepared: tuple[Request, int] = self.preprocess_add_request(message)
        return prepared

    def llx_report(self, *, is_forced: bool) -> None:
        """Hand the endpoint a fresh load report, at most one per 5 ms unless forced."""
        now = time.monotonic()
        if self.llx_endpoint is None or (
            not is_forced and now - self._llx_reported_at < _REPORT_EVERY_S
        ):
            return
        self._llx_reported_at = now
        if self.llx_prefixes is not None:
            self.llx_prefixes.flush()
        self.llx_endpoint.report(self._llx_load(), dict(self.llx_ownership.seen))

    def _llx_load(self) -> Load:
        block_size = self.vllm_config.cache_config.block_size
        pool = self.scheduler.kv_cache_manager.block_pool
        classes: dict[int, list[int]] = {}
        waiting_tokens = preempted = 0
        migrating = self.llx_migrating
        for request in self.scheduler.requests.values():
            if RequestStatus.is_finished(request.status):
                continue
            entry = classes.setdefault(request.priority, [0, 0, 0])
            if request.status == RequestStatus.RUNNING or (
                migrating is not None and self.scheduler.llx_is_leaving(request.request_id)
            ):
                entry[0] += 1
                lacking = request.num_tokens - request.num_computed_tokens
                waiting_tokens += lacking if lacking > 1 else 0  # a prompt that takes more steps
                continue
            entry[1] += 1
            # What has just arrived has its blocks already.
            has_blocks = request.num_computed_tokens > 0
            entry[2] += 0 if has_blocks else blocks_for(request.num_tokens, block_size)
            waiting_tokens += max(0, request.num_tokens - request.num_computed_tokens)
            preempted += request.status == RequestStatus.PREEMPTED and not has_blocks
        return Load(
            session=0,
            seen=0,
            at=time.monotonic_ns(),  # type: ignore[arg-type]
            total=pool.num_gpu_blocks - 1,
            free=pool.get_num_free_blocks(),
            block_size=block_size,
            num_running=sum(entry[0] for entry in classes.values()),
            num_waiting=sum(entry[1] for entry in classes.values()),
            waiting_demand=sum(entry[2] for entry in classes.values()),
            waiting_tokens=waiting_tokens,
            num_preempted=preempted,
            classes={key: (run, wait, need) for key, (run, wait, need) in classes.items()},
            covers=self.llx_ownership.taken(),
            queue_head=self._llx_queue_head(block_size),
            num_preemptions=getattr(self.scheduler, "llx_num_preemptions", None),
        )

    def _llx_queue_head(self, block_size: int) -> int | None:
        """What the first that waits for blocks would take; what has arrived by a move has them."""
        if not self.scheduler.waiting:
            return None
        first = self.scheduler.waiting.peek_request()
        return 0 if first.num_computed_tokens > 0 else blocks_for(first.num_tokens, block_size)

    def _llx_finish(self, peer: int, requests: list[RequestId], reason: FinishReason) -> None:
        self._send_finish_outputs_to_client(requests, peer, reason)


def _step_limit_s(spec: InstanceSpec) -> float:
    if spec.hang.step_s is not None:
        return spec.hang.step_s
    return _STEP_LIMIT_CPU_S if current_platform.is_cpu() else _STEP_LIMIT_S


def _executor_class(vllm_config: Any, folder: Path) -> type[Executor]:
    """What runs the model: vLLM's choice, but in this process for a single rank on a CPU.

    There vLLM would add a worker process, because only so can it set up OpenMP; the node agent has
    done that in our environment. Core and worker would spin on shared memory against each other,
    the gateway and other instances: on two cores a quarter of the throughput, and stalls of 200 to
    600 ms, since the kernel's autogroups keep a spinner from yielding to another session.
    """
    if current_platform.is_cpu() and vllm_config.parallel_config.world_size == 1:
        return _tidy(folder)
    chosen: type[Executor] = Executor.get_class(vllm_config)
    return _tidy(folder) if chosen is UniProcExecutor else chosen


def _tidy(folder: Path) -> type[UniProcExecutor]:
    """vLLM's executor of one rank, whose file of rendezvous goes with the instance's directory.

    In the system's directory for such files vLLM would leave another one at each start.
    """

    class TidyExecutor(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, local_rank = super()._distributed_args()
            if method.startswith("file:"):
                path = folder / "rendezvous"
                path.unlink(missing_ok=True)  # of the start before
                method = f"file://{path.absolute()}"
            return method, rank, local_rank

    return TidyExecutor


class _Sink:
    """The engine's side of the endpoint; every method runs on the endpoint's input thread."""

    def __init__(self, core: LlxEngineCore) -> None:
        self._core = core
        self._requests = MsgpackDecoder(EngineCoreRequest)
        self._arguments = MsgpackDecoder()

    def add(self, peer: int, header: Add, payload: Sequence[Frame]) -> None:
        """Decode and prepare a request (hashes, grammar) off the core thread."""
        core = self._core
        try:
            message = self._requests.decode(payload)
            if message.request_id != header.request:
                raise EngineError(f"header {header.request!r}, payload {message.request_id!r}")
            message.client_index = peer
            request, wave = core.llx_prepare(message)
        except Exception:  # whatever vLLM makes of a request must not end the instance
            log.exception("engine.bad_request request=%s", header.request)
            core.input_queue.put_nowait((_UTILITY, _Rejected(peer, header)))
            return
        request.llx_header = header
        request.llx_payload = ()
        if core.llx_migrating is not None and not request.mm_features:
            request.llx_payload = tuple(bytes(frame) for frame in payload)
        core.input_queue.put_nowait((_ADD, (request, wave)))

    def abort(self, peer: int, requests: list[tuple[RequestId, Epoch]]) -> None:
        """In order with ADDs. Not into vLLM's eager queue besides: it could overtake an ADD."""
        self._core.input_queue.put_nowait((_ABORT, [_Claim(peer, requests)]))

    def call(self, peer: int, header: Call, payload: Sequence[Frame]) -> None:
        """A utility from the allow-list."""
        arguments = self._arguments.decode(payload) if payload else []
        request = (peer, header.call, header.method, arguments)
        self._core.input_queue.put_nowait((_UTILITY, request))

    def drop_peer(self, peer: int) -> None:
        """Abort what the session left behind."""
        self._core.input_queue.put_nowait((_UTILITY, _PeerGone(peer)))


def run_vllm(spec: InstanceSpec, status: StatusFile) -> int:
    """Run an instance until SIGTERM; returns its exit code.

    Raises:
        EngineError: This vLLM is not the pinned one.
    """
    if vllm_version != VLLM_VERSION:
        raise EngineError(
            f"vLLM {vllm_version} is installed; llx {__version__} works with {VLLM_VERSION}",
            remedy="run `llx node install`",
        )
    os.environ.pop("VLLM_ALLOW_INSECURE_SERIALIZATION", None)
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    engine_args = AsyncEngineArgs.from_cli_args(parser.parse_args(instance_argv(spec)))
    status.write(Phase.LOADING, "loading the model")
    with inspecting_here():
        config = engine_args.create_engine_config()
    if engine_args.async_scheduling:  # asked for: vLLM's CPU platform takes it back unasked
        config.scheduler_config.async_scheduling = True
    core = LlxEngineCore(config, spec)
    if config.parallel_config.world_size == 1:
        let_gloo_wait()

    def wake() -> None:
        core.input_queue.put_nowait((_WAKEUP, None))

    stop = SignalCallback(wake)

    def on_signal(_number: int, _frame: object) -> None:
        core.shutdown_state = EngineShutdownState.REQUESTED
        stop.trigger()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    status.write(Phase.READY, addresses=list(core.llx_addresses))
    assert core.llx_endpoint is not None
    try:
        core.run_busy_loop()
    except SystemExit:
        core.llx_pulse.end()
        status.write(Phase.STOPPING)
        core.llx_endpoint.close("stopped")
        return 0
    except Exception:
        core.llx_pulse.end()
        log.exception("engine.failed instance=%s", spec.name)
        core._send_engine_dead()
        return 1
    finally:
        stop.stop()
        core.llx_end_migration()
        core.shutdown()
    return 0
