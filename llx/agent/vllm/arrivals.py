"""The target's half of a scheduler to which requests can come. Core thread only.

A request on its way is a *shadow*: in no queue and not in `requests`, so that counts, reports and
the busy loop do not see it; only its blocks are taken. They are held under a key of their own, for
the request's id may come to life here in another way meanwhile. On commit the shadow becomes what
vLLM knows as a preempted request whose KV came back: the one state in which a request with outputs
and with KV may stand in a queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from llx.agent.vllm.arrival import ATTRIBUTE, Arrival
from llx.agent.vllm.movable import movable_reason
from llx.core.migration import Reservation
from llx.core.model import MigrationId


@dataclass(slots=True)
class _Shadow:
    """A request on its way here. `key` is what its blocks are held under."""

    request: Request
    key: str
    num_tokens: int = 0
    num_reused: int = 0


class Arrivals(Scheduler):
    """A mixin; its names begin with ``llx_``, for it shares an object with vLLM."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._llx_shadows: dict[MigrationId, _Shadow] = {}
        self._llx_arrivals: dict[str, Arrival] = {}
        self._llx_gone_arrivals: list[Arrival] = []
        self._llx_in_flight: dict[str, int] = {}
        """Tokens in flight of ids that ended: their output would be taken for a successor's."""

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
        if self.llx_is_ending(request_id):
            return None
        if reason := self._llx_refusal(request, num_tokens):
            return reason
        if (pending := _grammar_reason(request)) != "":
            return pending
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
        if num_tokens and num_active >= self.max_num_active_reqs:
            return f"no room: {num_active} requests are in the batch or come into it"
        return ""

    def llx_is_ending(self, request_id: str) -> bool:
        """Whether an earlier life of this id is not over for the workers before the next step.

        A step ahead, they would take the last token of the one for the next token of the other.
        """
        return request_id in self.finished_req_ids or request_id in self._llx_in_flight

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
        (blocks,) = self.kv_cache_manager.get_block_ids(shadow.key)
        return Reservation(shadow.num_tokens, tuple(blocks), shadow.num_reused)

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
        if not outputs and request.prefill_stats is not None:
            request.prefill_stats.set(request.num_prompt_tokens, shadow.num_reused, 0)
        self._llx_take_in(request, outputs, migration)
        return ""

    def llx_take_over(self, request: Request, outputs: Sequence[int]) -> str | None:
        """Go on, after these outputs, with a request that has lost its instance and its KV.

        None: not yet, its grammar is being compiled. A string says why it cannot go on here; an
        empty one that it does.
        """
        if reason := self._llx_refusal(request, 0):
            return reason
        params = request.sampling_params
        if params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None:
            return "its prompt logprobs would come a second time"
        if len(outputs) >= request.max_tokens:
            return f"it is at its end, with {len(outputs)} tokens of output"
        if (pending := _grammar_reason(request)) != "":
            return pending
        if reason := self._llx_not_committable(_Shadow(request, ""), outputs, 0):
            return reason
        self._llx_take_in(request, outputs, MigrationId(""))
        return ""

    def _llx_take_in(
        self, request: Request, outputs: Sequence[int], migration: MigrationId
    ) -> None:
        """Put a request that began elsewhere in the queue, and have the workers told of it."""
        if outputs:
            request.prefill_stats = None
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

    def _llx_not_committable(
        self, shadow: _Shadow, outputs: Sequence[int], num_computed: int
    ) -> str:
        """Appends the outputs, and takes the grammar through them, if nothing else forbids it."""
        request = shadow.request
        if request.request_id in self.requests or self.llx_is_ending(request.request_id):
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
        """Free what was reserved, and have the workers forget what has come with its last stage."""
        shadow = self._llx_shadows.pop(migration, None)
        if shadow is None:
            return
        gone = Arrival(shadow.request.request_id, migration, is_gone=True)
        self._llx_gone_arrivals.append(gone)
        shadow.request.request_id = shadow.key
        self.kv_cache_manager.free(shadow.request)

    def _llx_announce(self, output: Any) -> None:
        """Tell the workers with a step who is in it for the first time, and who never will be."""
        arrivals, self._llx_gone_arrivals = self._llx_gone_arrivals, []
        if self._llx_arrivals:
            for request_id in output.num_scheduled_tokens:
                if arrival := self._llx_arrivals.pop(request_id, None):
                    arrivals.append(arrival)
        if arrivals:
            setattr(output, ATTRIBUTE, arrivals)

    def _llx_count_down(self, num_scheduled: dict[str, int]) -> None:
        """A step is over: less is in flight of requests that ended."""
        for request_id in [each for each in self._llx_in_flight if each in num_scheduled]:
            self._llx_in_flight[request_id] -= num_scheduled[request_id]
            if self._llx_in_flight[request_id] <= 0:
                del self._llx_in_flight[request_id]

    def _llx_frees(self, request: Request) -> None:
        """It is being freed by vLLM."""
        request_id = request.request_id
        if request.num_in_flight_tokens > 0:
            self._llx_in_flight[request_id] = request.num_in_flight_tokens
        if arrival := self._llx_arrivals.pop(request_id, None):
            self._llx_gone_arrivals.append(Arrival(request_id, arrival.migration, is_gone=True))


def _grammar_reason(request: Request) -> str | None:
    """Empty if its grammar is there, or it has none; None while it is being compiled."""
    if request.structured_output_request is None:
        return ""
    grammar = request.structured_output_request.grammar
    if isinstance(grammar, Exception):
        return f"its grammar does not compile here: {grammar}"
    return None if grammar is None else ""
