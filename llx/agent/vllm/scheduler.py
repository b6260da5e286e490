"""vLLM's schedulers, whose requests can leave and arrive. Core thread only.

Here lives what a migration does to vLLM's bookkeeping; who asks for it and why is the llumlet's,
and the bytes are the transport's. At the source:

    begin ── progress* ── cut ── (nothing of it in flight any more) ── release
                           └──────────────────────────────────────── resume

A request that was cut is out of `running` (or of its waiting queue) and stays in `requests` with
its blocks, so that an abort by its client takes vLLM's own way.

At the target a request on its way is a *shadow*: in no queue and not in `requests`, so that counts,
reports and the busy loop do not see it; only its blocks are taken. They are held under a key of
their own, for the request's id may come to life here in another way meanwhile. On commit the shadow
becomes what vLLM knows as a preempted request whose KV came back: the one state in which a request
with outputs and with KV may stand in a queue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from llx.agent.vllm.arrival import ATTRIBUTE, Arrival
from llx.agent.vllm.movable import movable_reason, pinned_by_config
from llx.core.migration import Cut, Progress, Reservation
from llx.core.model import MigrationId, RequestId

Done = Callable[[Cut | None], None]
Listener = Callable[[RequestId, str], None]

WORKER_EXTENSION: Final = "llx.agent.vllm.worker.LlxWorker"


def enable_migration(config: Any) -> str:
    """Choose the scheduler and the worker extension in a `VllmConfig` that is complete otherwise.

    vLLM has decided by then whether it schedules asynchronously, and that stays as it is. What is
    returned says why requests of such an instance cannot move; then nothing is changed.
    """
    if reason := pinned_by_config(config):
        return reason
    scheduler = config.scheduler_config
    scheduler.scheduler_cls = (
        MigratingAsyncScheduler if scheduler.async_scheduling else MigratingScheduler
    )
    config.parallel_config.worker_extension_cls = WORKER_EXTENSION
    return ""


@dataclass(slots=True)
class _Leaving:
    """A request that was cut. `done` is None once it has been called."""

    request: Request
    was_running: bool
    done: Done | None


@dataclass(slots=True)
class _Shadow:
    """A request on its way here. `key` is what its blocks are held under."""

    request: Request
    key: str
    num_tokens: int = 0
    num_reused: int = 0


class _Migrating(Scheduler):
    """The mixin; its names begin with ``llx_``, for it shares an object with vLLM."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llx_listener: Listener | None = None
        self._llx_watched: set[str] = set()
        self._llx_leaving: dict[str, _Leaving] = {}
        self._llx_shadows: dict[MigrationId, _Shadow] = {}
        self._llx_arrivals: dict[str, Arrival] = {}
        self._llx_gone_arrivals: list[Arrival] = []
        self._llx_in_flight: dict[str, int] = {}
        """Tokens in flight of ids that ended: their output would be taken for a successor's."""
        self._llx_notices: list[Callable[[], None]] = []
        self._llx_max_active: int = self.max_num_active_reqs

    # ---------------------------------------------------------------- source

    def llx_begin(self, request_id: RequestId) -> Progress | str:
        """Watch a request from here on; a string says why it cannot leave."""
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return "no such request here"
        if request_id in self._llx_watched or request_id in self._llx_leaving:
            return "it is leaving already"
        if request_id in self._llx_arrivals:
            return "it has only just arrived"
        if reason := movable_reason(request):
            return f"pinned: {reason}"
        self._llx_watched.add(request_id)
        return self._llx_progress(request)

    def llx_progress(self, request_id: RequestId) -> Progress | None:
        """How far a watched request is; None: it is watched no more."""
        request = self.requests.get(request_id)
        if request is None or request_id not in self._llx_watched:
            return None
        return self._llx_progress(request)

    def _llx_progress(self, request: Request) -> Progress:
        settled = request.num_computed_tokens - request.num_in_flight_tokens
        is_running = request.status == RequestStatus.RUNNING
        return Progress(
            num_tokens=request.num_tokens,
            num_prompt=request.num_prompt_tokens,
            num_settled=max(0, min(settled, request.num_tokens)),
            blocks=self.llx_blocks(request.request_id),
            is_waiting=not is_running and request.num_computed_tokens == 0,
        )

    def llx_blocks(self, request_id: str) -> tuple[int, ...]:
        """The block table of a request, or of a shadow's key."""
        (blocks,) = self.kv_cache_manager.get_block_ids(request_id)
        return tuple(blocks)

    def llx_cut(self, request_id: RequestId, done: Done) -> None:
        """Take a watched request out of the batch or its queue; see `llx_settle`."""
        request = self.requests.get(request_id)
        if request is None or request_id not in self._llx_watched:
            done(None)
            return
        assert request_id not in self._llx_leaving, f"{request_id} was cut already"
        was_running = request.status == RequestStatus.RUNNING
        if was_running:
            self.running.remove(request)
        else:
            self.waiting.remove_requests({request})
            self.kv_holding_waiting.remove_requests({request})
            self.deferred_waiting.discard(request)
        self._llx_leaving[request_id] = _Leaving(request, was_running, done)
        self.llx_settle()

    def llx_settle(self) -> None:
        """Say what is due: between two steps, after the last one's outputs have been sent off.

        Not from within vLLM's own loops, where those who hear it could not act on it; and not
        before the outputs, or a target could emit the next token before this one left here.
        """
        for leaving in list(self._llx_leaving.values()):
            if leaving.done is not None and leaving.request.num_in_flight_tokens == 0:
                done, leaving.done = leaving.done, None
                done(self._llx_cut_of(leaving.request))
        while self._llx_notices:
            self._llx_notices.pop(0)()

    def _llx_cut_of(self, request: Request) -> Cut:
        request.spec_token_ids = []
        request.num_output_placeholders = 0
        return Cut(
            outputs=tuple(request.output_token_ids),
            num_computed=min(request.num_computed_tokens, request.num_tokens - 1),
            blocks=self.llx_blocks(request.request_id),
        )

    def llx_resume(self, request_id: RequestId) -> None:
        """Put a request that was cut back where it was."""
        self._llx_watched.discard(request_id)
        leaving = self._llx_leaving.pop(request_id, None)
        if leaving is None:
            return
        request = leaving.request
        if leaving.was_running:
            self.running.append(request)
            return
        if self._is_blocked_waiting_status(request.status):
            self.deferred_waiting.add(request)
        holds = self._holds_kv_blocks(request)
        (self.kv_holding_waiting if holds else self.waiting).prepend_request(request)

    def llx_release(self, request_id: RequestId) -> None:
        """Free a request that was cut; the listener is told nothing."""
        self._llx_watched.discard(request_id)
        if self._llx_leaving.pop(request_id, None) is not None:
            self.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def llx_unwatch(self, request_id: RequestId) -> None:
        """It stays, and was not cut."""
        self._llx_watched.discard(request_id)

    def llx_is_leaving(self, request_id: str) -> bool:
        """Whether it was cut: it counts as running, whatever vLLM's status of it."""
        return request_id in self._llx_leaving

    # ---------------------------------------------------------------- target

    def llx_reserve(
        self, migration: MigrationId, request: Request, num_tokens: int, *, reuse_prefix: bool
    ) -> Reservation | str | None:
        """Blocks for a request on its way; see `llx.ports.MigratingEngine.reserve`."""
        request_id = request.request_id
        taken = {shadow.request.request_id for shadow in self._llx_shadows.values()}
        if migration in self._llx_shadows or request_id in taken:
            return "it is on its way here already"
        if request_id in self.requests:
            return "still held here"
        if request_id in self.finished_req_ids or request_id in self._llx_in_flight:
            return None  # its last life here is not over for the workers before the next step
        if reason := self._llx_refusal(request, num_tokens):
            return reason
        if request.structured_output_request is not None:
            grammar = request.structured_output_request.grammar
            if grammar is None:
                return None
            if isinstance(grammar, Exception):
                return f"its grammar does not compile here: {grammar}"
        shadow = _Shadow(request, f"\0llx:{migration}")
        if num_tokens and not self._llx_allocate(shadow, num_tokens, reuse_prefix=reuse_prefix):
            return self._llx_no_room(num_tokens)
        self._llx_shadows[migration] = shadow
        return self._llx_reservation(shadow)

    def _llx_refusal(self, request: Request, num_tokens: int) -> str:
        if reason := movable_reason(request):
            return reason
        if request.num_prompt_tokens + request.max_tokens > self.max_model_len:
            return f"it may grow beyond the {self.max_model_len} tokens that fit here"
        if lora := request.lora_request:
            if self.lora_config is None:
                return f"its adapter {lora.lora_name!r} cannot be used here: LoRA is off"
            if not Path(lora.lora_path).exists():
                return f"its adapter {lora.lora_name!r} is not at {lora.lora_path} here"
        holding = sum(1 for shadow in self._llx_shadows.values() if shadow.num_tokens)
        num_active = len(self.running) + len(self.kv_holding_waiting) + holding
        if num_tokens and num_active + self._llx_num_cut() >= self._llx_max_active:
            return f"no room: {self._llx_max_active} requests are in the batch"
        return ""

    def _llx_num_cut(self) -> int:
        return sum(leaving.was_running for leaving in self._llx_leaving.values())

    def llx_arriving(self, migration: MigrationId) -> Request | None:
        """The request that blocks are reserved for."""
        shadow = self._llx_shadows.get(migration)
        return None if shadow is None else shadow.request

    def llx_extend(self, migration: MigrationId, num_tokens: int) -> Reservation | str:
        """More blocks; a string refuses, and what was reserved stays."""
        shadow = self._llx_shadows.get(migration)
        if shadow is None:
            return "nothing is reserved for it here"
        if num_tokens > shadow.num_tokens and not self._llx_allocate(
            shadow, num_tokens, reuse_prefix=False
        ):
            return self._llx_no_room(num_tokens)
        return self._llx_reservation(shadow)

    def _llx_allocate(self, shadow: _Shadow, num_tokens: int, *, reuse_prefix: bool) -> bool:
        """Take blocks, unpublished: nothing is in them yet that a prefix cache could hand out.

        Leaves free what requests in prefill still need, and a block for each running one.
        """
        manager, request = self.kv_cache_manager, shadow.request
        hit, num_hit = None, 0
        if reuse_prefix:
            hit, num_hit, _ = manager.get_computed_blocks(request)
        request_id, request.request_id = request.request_id, shadow.key
        try:
            new = manager.allocate_slots(
                request,
                max(0, num_tokens - num_hit),
                num_new_computed_tokens=num_hit,
                new_computed_blocks=hit if num_hit else None,
                delay_cache_blocks=True,
                reserved_blocks=self._inflight_prefill_reserved_blocks() + len(self.running),
                has_scheduled_reqs=bool(self.running),
            )
        finally:
            request.request_id = request_id
        if new is None:
            return False
        shadow.num_tokens = max(num_tokens, num_hit)
        shadow.num_reused = shadow.num_reused or num_hit
        # A worker that zeroes fresh blocks with the next step would zero what is being copied.
        fresh = {block for group in new.get_block_ids() for block in group}
        for each in manager.coordinator.single_type_managers:
            each.new_block_ids = [block for block in each.new_block_ids if block not in fresh]
        return True

    def _llx_no_room(self, num_tokens: int) -> str:
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return f"no room: {num_tokens} tokens wanted, {free} blocks free"

    def _llx_reservation(self, shadow: _Shadow) -> Reservation:
        return Reservation(shadow.num_tokens, self.llx_blocks(shadow.key), shadow.num_reused)

    def llx_commit(self, migration: MigrationId, outputs: Sequence[int], num_computed: int) -> str:
        """Let the request go on here; a string says why not, and then nothing is held for it."""
        shadow = self._llx_shadows.get(migration)
        if shadow is None:
            return "nothing is reserved for it here"
        if reason := self._llx_not_committable(shadow, outputs, num_computed):
            self.llx_abandon(migration)
            return reason
        del self._llx_shadows[migration]
        request = shadow.request
        self._llx_rename_blocks(shadow.key, request.request_id)
        num_computed = max(num_computed, shadow.num_reused)
        if num_computed:
            request.num_computed_tokens = num_computed
            self.kv_cache_manager.cache_blocks(request, num_computed)
        else:
            self.kv_cache_manager.free(request)
        if not outputs and not num_computed:
            self.add_request(request)
            self._llx_gone_arrivals.append(Arrival(request.request_id, migration, is_gone=True))
            return ""
        if outputs:
            request.prefill_stats = None
        elif request.prefill_stats is not None:
            request.prefill_stats.set(request.num_prompt_tokens, shadow.num_reused, 0)
        request.status = RequestStatus.PREEMPTED
        self.requests[request.request_id] = request
        self._llx_arrivals[request.request_id] = Arrival(
            request=request.request_id,
            migration=migration,
            prompt=request.prompt_token_ids,
            outputs=tuple(outputs),
            sampling_params=request.sampling_params,
            lora_request=request.lora_request,
            mm_features=request.mm_features,
        )
        self._enqueue_waiting_request(request)
        return ""

    def _llx_not_committable(
        self, shadow: _Shadow, outputs: Sequence[int], num_computed: int
    ) -> str:
        """Appends the outputs, and takes the grammar through them, if nothing else forbids it."""
        request = shadow.request
        if request.request_id in self.requests or (
            request.request_id in self.finished_req_ids or request.request_id in self._llx_in_flight
        ):
            return "its id came to life here in another way"
        if num_computed > shadow.num_tokens:
            return f"{num_computed} tokens copied, {shadow.num_tokens} reserved"
        if num_computed >= request.num_tokens + len(outputs):
            return f"{num_computed} tokens copied, it has {request.num_tokens + len(outputs)}"
        grammar = self.structured_output_manager
        if not request.use_structured_output:
            request.append_output_token_ids(list(outputs))
            return ""
        # One by one, as they were made: a reasoning parser looks at the last ones for its end.
        for token in outputs:
            request.append_output_token_ids(token)
            if not grammar.accept_tokens(request, [token]):
                return "its grammar refuses what it has said so far"
        return ""

    def _llx_rename_blocks(self, key: str, request_id: str) -> None:
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            assert not manager.req_to_blocks.get(request_id), f"{request_id} holds blocks"
            manager.req_to_blocks.pop(request_id, None)
            if key in manager.req_to_blocks:
                manager.req_to_blocks[request_id] = manager.req_to_blocks.pop(key)
            if key in manager.num_cached_block:
                manager.num_cached_block[request_id] = manager.num_cached_block.pop(key)

    def llx_abandon(self, migration: MigrationId) -> None:
        """Free what was reserved."""
        shadow = self._llx_shadows.pop(migration, None)
        if shadow is None:
            return
        shadow.request.request_id = shadow.key
        self.kv_cache_manager.free(shadow.request)

    # ---------------------------------------------------------------- vLLM's methods

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Keep the slots of requests that were cut, and tell the workers who has arrived."""
        self.max_num_active_reqs = self._llx_max_active - self._llx_num_cut()
        output = super().schedule(throttle_prefills)
        arrivals, self._llx_gone_arrivals = self._llx_gone_arrivals, []
        if self._llx_arrivals:
            for request_id in output.num_scheduled_tokens:
                if arrival := self._llx_arrivals.pop(request_id, None):
                    arrivals.append(arrival)
        if arrivals:
            setattr(output, ATTRIBUTE, arrivals)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Count down what is in flight of requests that ended."""
        for request_id in [
            each for each in self._llx_in_flight if each in scheduler_output.num_scheduled_tokens
        ]:
            left = self._llx_in_flight[request_id]
            left -= scheduler_output.num_scheduled_tokens[request_id]
            if left > 0:
                self._llx_in_flight[request_id] = left
            else:
                del self._llx_in_flight[request_id]
        return super().update_from_output(scheduler_output, model_runner_output)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Refuse what would fail half-way: blocks of requests that move are in nobody's reach."""
        if reset_running_requests and (self._llx_leaving or self._llx_shadows):
            return False
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._llx_lost(request.request_id, "preempted")

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        request_id = request.request_id
        if request.num_in_flight_tokens > 0:
            self._llx_in_flight[request_id] = request.num_in_flight_tokens
        if arrival := self._llx_arrivals.pop(request_id, None):
            self._llx_gone_arrivals.append(Arrival(request_id, arrival.migration, is_gone=True))
        leaving = self._llx_leaving.pop(request_id, None)
        if leaving is not None and leaving.done is not None:
            done = leaving.done
            self._llx_notices.append(lambda: done(None))
        is_aborted = request.status == RequestStatus.FINISHED_ABORTED
        self._llx_lost(request_id, "aborted" if is_aborted else "finished")
        return super()._free_request(request, *args, **kwargs)

    def _llx_lost(self, request_id: str, why: str) -> None:
        if request_id not in self._llx_watched:
            return
        self._llx_watched.discard(request_id)
        listener = self.llx_listener
        if listener is not None:
            self._llx_notices.append(lambda: listener(RequestId(request_id), why))


class MigratingScheduler(_Migrating):
    """For an engine that schedules a step when the last one is done."""


class MigratingAsyncScheduler(_Migrating, AsyncScheduler):
    """For an engine that schedules a step ahead."""
