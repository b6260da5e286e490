"""vLLM as a `MigratingEngine`: whose requests they are, and their way in and out of the scheduler.

Everything but `on_core` and `prepare` runs on the core thread, between two steps.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.request import Request, RequestStatus
from vllm.v1.serial_utils import MsgpackDecoder

from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.rank import RankAgent
from llx.agent.transport.remote import connect_ranks
from llx.agent.vllm.kv_store import SWITCH_INTERVAL_S, VllmKvStore
from llx.agent.vllm.movable import compatibility, movable_reason, pinned_by_cache
from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, MigrationId, RequestId
from llx.ports import Frame, KvListener
from llx.specs import InstanceSpec
from llx.wire import Add, RequestView, Reserve

if TYPE_CHECKING:
    from llx.agent.vllm.engine import LlxEngineCore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OnCore:
    """An action for the core thread; vLLM's queues carry it where they would carry a utility."""

    action: Callable[[], None]

    def run(self) -> None:
        """Run it; a failure is the action's own and does not end the engine."""
        try:
            self.action()
        except Exception:
            log.exception("engine.action_failed action=%r", self.action)


def open_migration(core: "LlxEngineCore") -> "VllmMigratingEngine | str":
    """The migration end of an engine core; a string says why its requests cannot move.

    Called once, when the core is complete and its busy loop has not begun.
    """
    if core.llx_cannot_migrate:
        return core.llx_cannot_migrate
    if reason := pinned_by_cache(core.scheduler.kv_cache_config):
        return reason
    ranks: list[tuple[str, int, str]] = core.collective_rpc("llx_open_store")
    for layout, _, reason in ranks:
        if reason:
            return reason
        if layout != ranks[0][0]:
            return f"ranks with different KV caches: {layout} and {ranks[0][0]}"
    return VllmMigratingEngine(core, ranks[0][0], [size for _, size, _ in ranks])


class VllmMigratingEngine:
    """The port over an engine core; made by `open_migration`.

    Attributes:
        compatibility: For `Reserve`; equal at both ends of any migration.
        rank_block_bytes: Bytes of a KV block on each rank.
    """

    def __init__(self, core: "LlxEngineCore", layout: str, rank_block_bytes: list[int]) -> None:
        self._core = core
        self._scheduler: Any = core.scheduler
        self._requests = MsgpackDecoder(EngineCoreRequest)
        self.rank_block_bytes = rank_block_bytes
        self.compatibility = compatibility(core.vllm_config, layout)

    def local_store(self) -> VllmKvStore | None:
        """The KV cache of the one rank, if it lives in this process."""
        if not isinstance(self._core.model_executor, UniProcExecutor):
            return None
        (store,) = self._core.collective_rpc("llx_kv_store")
        return store

    def open_transport(self, spec: InstanceSpec, listener: KvListener) -> InstanceTransport:
        """Have every rank serve its KV, within this process or in its worker's."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        store = self.local_store()
        if store is not None:
            agent = RankAgent(store, spec.migration, spec.bind_host, spec.port_range)
            return InstanceTransport([agent], listener)
        encoded = msgspec.msgpack.encode(spec.migration)
        arguments = (encoded, spec.bind_host, spec.port_range)
        return connect_ranks(self._core.collective_rpc("llx_start_rank", args=arguments), listener)

    def on_core(self, action: Callable[[], None]) -> None:
        """See `llx.ports.MigratingEngine`, as all that follows."""
        self._core.input_queue.put_nowait((EngineCoreRequestType.UTILITY, OnCore(action)))

    def watch(self, listener: Callable[[RequestId, str], None]) -> None:
        """Told between two steps, after the outputs of the last one have been sent off."""
        self._scheduler.llx_listener = listener

    def requests(self) -> list[RequestView]:
        """On the core thread, as all that follows."""
        return request_views(self._core)

    def set_priority(self, request: RequestId, priority: int) -> bool:
        """The core's utility of that name."""
        return self._core.llx_set_priority(request, priority)

    # ---------------------------------------------------------------- source

    def begin(self, request: RequestId) -> Begun | str:
        """Watch a request that is to leave."""
        ownership = self._core.llx_ownership
        peer, epoch = ownership.peer_of(request), ownership.epoch_of(request)
        if peer is None or epoch is None:
            return "no such request here"
        if pin := ownership.pin_of(request):
            return f"pinned: {pin}"
        progress = self._scheduler.llx_begin(request)
        if isinstance(progress, str):
            return progress
        held = self._scheduler.requests[request]
        return Begun(progress, peer, epoch, held.llx_header.name, held.llx_payload)

    def progress(self, request: RequestId) -> Progress | None:
        """How far it is."""
        progress: Progress | None = self._scheduler.llx_progress(request)
        return progress

    def cut(self, request: RequestId, done: Callable[[Cut | None], None]) -> None:
        """Take it out of the batch or its queue."""
        self._scheduler.llx_cut(request, done)

    def resume(self, request: RequestId, epoch: Epoch) -> None:
        """It goes on here after all."""
        self._core.llx_ownership.set_epoch(request, epoch)
        self._scheduler.llx_resume(request)

    def release(self, request: RequestId) -> None:
        """It goes on elsewhere."""
        self._core.llx_ownership.drop(request)
        self._scheduler.llx_release(request)

    def unwatch(self, request: RequestId) -> None:
        """It never left the batch."""
        self._scheduler.llx_unwatch(request)

    # ---------------------------------------------------------------- target

    def prepare(self, header: Reserve, payload: Sequence[Frame]) -> object | str:
        """Decode it, hash its prompt and begin to compile its grammar."""
        frames = tuple(bytes(frame) for frame in payload)
        try:
            message = self._requests.decode(frames)
            if message.request_id != header.request:
                return f"header {header.request!r}, payload {message.request_id!r}"
            if message.mm_features:
                return "it has images or other media"
            request = self._core.llx_prepare(message)[0]
        except Exception as error:  # whatever vLLM makes of a request must not end the instance
            log.exception("engine.bad_arrival request=%s", header.request)
            return f"it cannot be read here: {error}"
        request.llx_header = Add(header.request, header.epoch, 0, header.name)
        request.llx_payload = frames
        return request

    def reserve(
        self, migration: MigrationId, prepared: object, num_tokens: int, *, reuse_prefix: bool
    ) -> Reservation | str | None:
        """Blocks for a request that `prepare` made."""
        assert isinstance(prepared, Request)
        if not self._core.is_running():
            return "this instance is stopping"
        if self._core.llx_ownership.peer_of(RequestId(prepared.request_id)) is not None:
            return "still held here"
        reservation: Reservation | str | None = self._scheduler.llx_reserve(
            migration, prepared, num_tokens, reuse_prefix=reuse_prefix
        )
        return reservation

    def extend(self, migration: MigrationId, num_tokens: int) -> Reservation | str:
        """More of them."""
        reservation: Reservation | str = self._scheduler.llx_extend(migration, num_tokens)
        return reservation

    def commit(
        self,
        migration: MigrationId,
        peer: int,
        epoch: Epoch,
        outputs: Sequence[int],
        num_computed: int,
    ) -> str:
        """Own it from here on."""
        core = self._core
        request = self._scheduler.llx_arriving(migration)
        if request is None:
            return "nothing is reserved for it here"
        request_id = RequestId(request.request_id)
        if core.llx_ownership.peer_of(request_id) is not None or not core.is_running():
            self._scheduler.llx_abandon(migration)
            return "its id came to life here in another way, or this instance is stopping"
        reason = self._scheduler.llx_commit(migration, outputs, num_computed)
        if reason:
            return str(reason)
        request.client_index = peer
        is_new = core.llx_ownership.adopt(request_id, peer, epoch, len(outputs))
        assert is_new, f"{request_id} is held already"
        return ""

    def abandon(self, migration: MigrationId) -> None:
        """It does not come."""
        self._scheduler.llx_abandon(migration)


def request_views(core: "LlxEngineCore") -> list[RequestView]:
    """Every request an engine holds, for operators; works on vLLM's own schedulers, too."""
    scheduler: Any = core.scheduler
    migrating = core.llx_migrating
    block_bytes = sum(migrating.rank_block_bytes) if migrating is not None else _block_bytes(core)
    blocks_of = scheduler.kv_cache_manager.get_block_ids
    views = []
    for request in scheduler.requests.values():
        if request.is_finished():
            continue
        num_blocks = sum(len(group) for group in blocks_of(request.request_id))
        views.append(
            RequestView(
                id=request.request_id,
                name=request.llx_header.name,
                peer=request.client_index,
                priority=request.priority,
                state=_state(scheduler, request),
                num_prompt=request.num_prompt_tokens,
                num_tokens=request.num_tokens,
                num_blocks=num_blocks,
                size_bytes=num_blocks * block_bytes,
                arrival=request.arrival_time,
                pinned=core.llx_ownership.pin_of(RequestId(request.request_id))
                or core.llx_cannot_migrate
                or movable_reason(request),
            )
        )
    return views


def _block_bytes(core: "LlxEngineCore") -> int:
    """Bytes per block by vLLM's plan of the cache, where no store has been opened."""
    cache: Any = core.scheduler.kv_cache_config
    tensors = cache.kv_cache_tensors
    per_rank = tensors[0].size // cache.num_blocks if tensors else 0
    return int(per_rank * core.vllm_config.parallel_config.tensor_parallel_size)


def _state(scheduler: Any, request: Request) -> str:
    is_leaving = getattr(scheduler, "llx_is_leaving", None)
    if is_leaving is not None and is_leaving(request.request_id):
        return "leaving"
    match request.status:
        case RequestStatus.RUNNING:
            return "running"
        case RequestStatus.PREEMPTED:
            return "preempted"
        case _:
            return "waiting"
