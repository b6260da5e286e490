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
from llx.core import epochs
from llx.core.model import Epoch, InstanceId, RequestId
from llx.core.streams import Stream, Streams, Verdict
from llx.errors import UnreachableError
from llx.gateway import context
from llx.gateway.roster import Roster
from llx.ports import Frame
from llx.wire import FromLlumlet, Outputs

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 60.0
_MAX_PLACEMENTS = 3
"""A request that ends every instance it is sent to must not be sent to all of them."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What it takes to send a request again."""

    request: RequestId
    payload: Sequence[Frame]
    prompt_tokens: int


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
        self._streams = Streams()
        self._sent: dict[RequestId, _Sent] = {}
        if renderer is not None:
            renderer.start_mm_warmup_in_background()

    @property
    def num_in_flight(self) -> int:
        """Requests sent and not finished."""
        return len(self._streams)

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
        sent = _Sent(
            RequestId(request.request_id),
            self._encoder.encode(request),
            len(request.prompt_token_ids or ()),
        )
        instance = self._place(sent)
        if instance is None:
            # vLLM has registered the request and forgets it only by an output.
            gone = EngineCoreOutput(sent.request, [], finish_reason=FinishReason.ABORT)
            self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=[gone]))
            raise QueueOverflowError
        self._sent[sent.request] = sent
        self.counters.num_requests += 1
        if http is not None:
            http.instances.append(instance)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """End requests wherever they are by now."""
        for request_id in request_ids:
            self._end(RequestId(request_id))

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
        instance = link.member.instance
        outputs.outputs = [
            output
            for output, (epoch, offset) in zip(outputs.outputs, header.owners, strict=True)
            if self._accept(instance, output, epoch, offset)
        ]
        if outputs.outputs or outputs.scheduler_stats is not None:
            outputs.engine_index = self._roster.slot(instance)
            self.outputs_queue.put_nowait(outputs)

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """The source of a migration asks or tells the arbiter."""

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """An instance is lost: what has not answered yet goes elsewhere, the rest ends in error."""
        instance = link.member.instance
        for request in self._streams.owned_by(instance):
            self._recover(request, f"instance {instance} was lost ({reason})")

    # ------------------------------------------------------------------ ownership

    def _place(self, sent: _Sent) -> InstanceId | None:
        """Send a request where dispatch says; None if no instance can take it."""
        while (choice := self._roster.choose(sent.prompt_tokens)) is not None:
            link, demand, decision = choice
            instance = link.member.instance
            epoch = self._streams.own(sent.request, instance)
            try:
                link.add(sent.request, epoch, demand, sent.payload)
            except UnreachableError:
                continue  # it went down since it was listed; the roster no longer lists it
            log.debug(
                "pool.dispatched request=%s instance=%s epoch=%s freeness=%.2f",
                sent.request,
                instance,
                epoch,
                decision.scores[0][1],
            )
            return instance
        self._streams.end(sent.request)
        return None

    def _accept(
        self, instance: InstanceId, output: EngineCoreOutput, epoch: Epoch, offset: int
    ) -> bool:
        """Whether vLLM's front end gets to see an output."""
        request, num_new = RequestId(output.request_id), len(output.new_token_ids)
        verdict = self._streams.judge(request, instance, epoch, offset, num_new)
        if verdict is not Verdict.COUNTS:
            self.counters.num_dropped_outputs += 1
            if verdict is Verdict.GAP:
                self._fail(request, f"tokens before {offset} were lost on the way")
            return False
        if output.finish_reason == FinishReason.ABORT:
            self._recover(request, f"instance {instance} is stopping")
            return False
        self.counters.output_tokens += num_new
        if output.finish_reason is not None:
            self._forget(request)
            if output.finish_reason == FinishReason.ERROR:
                self.counters.num_failed += 1
            else:
                self.counters.num_finished += 1
        return True

    def _recover(self, request: RequestId, reason: str) -> None:
        """Send a request that has produced nothing yet to another instance; end any other."""
        stream = self._streams.get(request)
        assert stream is not None, f"{request} has no stream to recover"
        if (
            stream.num_tokens == 0
            and epochs.num_reigns(stream.epoch) < _MAX_PLACEMENTS
            and (instance := self._place(self._sent[request])) is not None
        ):
            self.counters.num_redispatched += 1
            log.warning(
                "pool.redispatched request=%s instance=%s reason=%s", request, instance, reason
            )
            return
        self._fail(request, reason)

    def _fail(self, request: RequestId, reason: str) -> None:
        log.error("pool.failed request=%s reason=%s", request, reason)
        self.counters.num_failed += 1
        self._end(request)
        error = EngineCoreOutput(request, [], finish_reason=FinishReason.ERROR)
        self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=[error]))

    def _end(self, request: RequestId) -> None:
        """Forget a request and have its owner forget it too."""
        stream = self._forget(request)
        if stream is not None and (link := self._roster.get(stream.owner)) is not None:
            link.abort([(request, stream.epoch)])

    def _forget(self, request: RequestId) -> Stream | None:
        self._sent.pop(request, None)
        return self._streams.end(request)
