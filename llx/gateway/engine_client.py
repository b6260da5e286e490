"""The engine-core client of a pool: vLLM's front end above, any number of instances below.

`PoolClient` stands where vLLM's `AsyncMPClient` would be. It sends each request to the instance
that dispatch chose and merges the outputs of all instances into the one queue that vLLM reads.
An output counts only if it carries the request's present epoch and the offset that comes next:

    sent   epoch 1 → A                    A dies before the first token → epoch 2 → B
    A      (1, 0) late, dropped: epoch    B  (2, 0) ok  (2, 1) ok  (2, 1) again: dropped, offset
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
from vllm.exceptions import QueueOverflowError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llx.agent.link import InstanceLink, encode_arguments
from llx.core.model import Epoch, RequestId
from llx.errors import UnreachableError
from llx.gateway import context
from llx.gateway.roster import Roster
from llx.ports import Frame
from llx.wire import Outputs

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Owned:
    """A request in flight and who owns it."""

    request: RequestId
    payload: Sequence[Frame]
    prompt_tokens: int
    link: InstanceLink
    epoch: Epoch
    num_tokens: int = 0


@dataclass(slots=True)
class Counters:
    """What the pool has done since the gateway started."""

    num_requests: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_redispatched: int = 0
    num_dropped_outputs: int = 0
    output_tokens: int = 0


class PoolClient(AsyncMPClient):
    """vLLM's engine-core client over a roster of instances.

    `MPClient.__init__` is deliberately not called: it would launch engines and bind sockets. The
    attributes set here are those that `AsyncLLM` and the inherited helpers read.
    """

    def __init__(
        self, vllm_config: Any, log_stats: bool, renderer: Any, roster: Roster, num_slots: int
    ) -> None:
        self.vllm_config = vllm_config
        self.log_stats = log_stats
        self.client_count, self.client_index = 1, 0
        self.resources = SimpleNamespace(
            engine_dead=False, output_queue_task=None, engine_manager=None
        )
        self.engines_running = False
        self.stats_update_address = None
        self.engine_ranks_managed = list(range(num_slots))
        self._renderer = renderer
        self._kv_event_sources: dict[int, Any] = {}
        self._effective_attention_block_sizes: set[int | None] = set()
        self.outputs_queue: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self.counters = Counters()
        self._roster = roster
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._owned: dict[str, _Owned] = {}
        if renderer is not None:
            renderer.start_mm_warmup_in_background()

    @property
    def num_in_flight(self) -> int:
        """Requests sent and not finished."""
        return len(self._owned)

    # ------------------------------------------------------------------ called by vLLM

    def _ensure_output_queue_task(self) -> None:
        """Outputs arrive through the links; there is no socket task to start."""

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next outputs of any instance."""
        return await self.outputs_queue.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Dispatch a request.

        Raises:
            QueueOverflowError: No instance can take it (vLLM answers 503).
        """
        http = context.current.get()
        if http is not None:
            request.priority = http.priority
        request.client_index = 0
        owned = _Owned(
            RequestId(request.request_id),
            self._encoder.encode(request),
            len(request.prompt_token_ids or ()),
            link=None,  # type: ignore[arg-type]  # set by _place, the next line
            epoch=Epoch(0),
        )
        if not self._place(owned):
            raise QueueOverflowError
        self.counters.num_requests += 1
        if http is not None:
            http.instances.append(owned.link.member.instance)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """End requests wherever they are by now."""
        for request_id in request_ids:
            owned = self._owned.pop(request_id, None)
            if owned is not None:
                owned.link.abort([(owned.request, owned.epoch)])

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """Call a utility on every instance; the first one's answer stands for all."""
        return (await self.call_utility_all_async(method, *args))[0]

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        """Call a utility on every instance.

        Raises:
            RemoteError: An instance refused it, for example because it is not on the allow-list.
        """
        await asyncio.wait_for(self._roster.ready_event.wait(), _CALL_TIMEOUT_S)
        payload = encode_arguments(*args)
        replies = await asyncio.gather(
            *[link.call(method, payload, _CALL_TIMEOUT_S) for link in self._roster.ready()]
        )
        return [msgspec.msgpack.decode(frames[0]) if frames else None for frames in replies]

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing of ours to stop: links belong to the gateway."""

    def __del__(self) -> None:
        """vLLM's finaliser expects sockets that were never made."""

    # ------------------------------------------------------------------ called by the links

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """One step's outputs of one instance."""
        outputs: EngineCoreOutputs = self._decoder.decode(payload)
        if len(outputs.outputs) != len(header.owners):
            log.error("pool.malformed_outputs instance=%s", link.member.instance)
            return
        outputs.outputs = [
            output
            for output, (epoch, offset) in zip(outputs.outputs, header.owners, strict=True)
            if self._accept(link, output, epoch, offset)
        ]
        if outputs.outputs or outputs.scheduler_stats is not None:
            outputs.engine_index = self._roster.slot(link.member.instance)
            self.outputs_queue.put_nowait(outputs)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """An instance is lost: what has not answered yet goes elsewhere, the rest ends in error."""
        for owned in [each for each in self._owned.values() if each.link is link]:
            self._recover(owned, f"instance {link.member.instance} was lost ({reason})")

    # ------------------------------------------------------------------ ownership

    def _place(self, owned: _Owned) -> bool:
        while (choice := self._roster.choose(owned.prompt_tokens)) is not None:
            link, demand, decision = choice
            owned.link, owned.epoch = link, Epoch(owned.epoch + 1)
            try:
                link.add(owned.request, owned.epoch, demand, owned.payload)
            except UnreachableError:
                continue  # it went down since it was listed; the roster no longer lists it
            self._owned[owned.request] = owned
            log.debug(
                "pool.dispatched request=%s instance=%s epoch=%s freeness=%.2f",
                owned.request,
                link.member.instance,
                owned.epoch,
                decision.scores[0][1],
            )
            return True
        return False

    def _accept(
        self, link: InstanceLink, output: EngineCoreOutput, epoch: Epoch, offset: int
    ) -> bool:
        owned = self._owned.get(output.request_id)
        if owned is None or owned.link is not link or owned.epoch != epoch:
            self.counters.num_dropped_outputs += 1
            return False
        if offset != owned.num_tokens:
            self.counters.num_dropped_outputs += 1
            if offset > owned.num_tokens:
                self._fail(owned, f"tokens {owned.num_tokens}..{offset - 1} were lost on the way")
            return False
        if output.finish_reason == FinishReason.ABORT:
            self._recover(owned, f"instance {link.member.instance} is stopping")
            return False
        owned.num_tokens += len(output.new_token_ids)
        self.counters.output_tokens += len(output.new_token_ids)
        if output.finish_reason is not None:
            del self._owned[output.request_id]
            if output.finish_reason == FinishReason.ERROR:
                self.counters.num_failed += 1
            else:
                self.counters.num_finished += 1
        return True

    def _recover(self, owned: _Owned, reason: str) -> None:
        """Send a request that has produced nothing yet to another instance; end any other."""
        if owned.num_tokens == 0 and self._place(owned):
            self.counters.num_redispatched += 1
            log.warning(
                "pool.redispatched request=%s instance=%s reason=%s",
                owned.request,
                owned.link.member.instance,
                reason,
            )
            return
        self._fail(owned, reason)

    def _fail(self, owned: _Owned, reason: str) -> None:
        log.error("pool.failed request=%s reason=%s", owned.request, reason)
        self.counters.num_failed += 1
        del self._owned[owned.request]
        owned.link.abort([(owned.request, owned.epoch)])
        error = EngineCoreOutput(owned.request, [], finish_reason=FinishReason.ERROR)
        self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=[error]))
