"""The engine-core client of a pool: vLLM's front end above, any number of instances below.

`PoolClient` stands where vLLM's `AsyncMPClient` would be. It has each request placed
(`llx.gateway.placement`), sends it to the instance that was chosen, and merges the outputs of all
instances into the one queue that vLLM reads. Which outputs count, and who owns a stream while it
moves, is `llx.core.streams`' to say.
"""

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llx.agent.link import InstanceLink, encode_arguments
from llx.core.fixed import fixed
from llx.core.model import (
    Blocks,
    ClassName,
    Epoch,
    InstanceId,
    PoolName,
    RequestId,
    Tokens,
    blocks_for,
)
from llx.core.scheduler.commands import Refusal as Reason
from llx.core.streams import Stream, Streams, Verdict
from llx.errors import UnreachableError
from llx.gateway import context, story
from llx.gateway.clocks import ClockOffset
from llx.gateway.counters import Counters
from llx.gateway.pace import MoveLog
from llx.gateway.paces import Paces
from llx.gateway.placement import Placement, Wanted
from llx.gateway.prefixes import PromptBlocks
from llx.gateway.refusals import CANCELLED, NO_INSTANCE, Refusal, lost, of_answer, timed_out
from llx.gateway.roster import Roster
from llx.gateway.sent import Sent
from llx.gateway.service_time import ServiceTime
from llx.wire import AskOwner, FromLlumlet, Moving, NotPlaced, Outputs, Ruling

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 60.0
_OF_LIMITS = {each.value for each in (Reason.QUEUE_FULL, Reason.TOO_BUSY, Reason.WAITED_TOO_LONG)}
_TAKE_OVER_S = 2.0
"""So long after a source's death its target may still take a stream over."""
_MAX_EARLY = 4096
"""Outputs of one stream that wait for those before them; they come within a step, as a rule."""
_MOST_LOSSES = 3
"""A request that ends every instance it is sent to must not be sent to all of them: so many in a
row may be lost with it before a token comes, …"""
_MOST_PLACEMENTS = 16
"""… and so often it is placed anew at most."""
_PAUSE_S = 0.1
"""Before it is placed anew when its instance stops, as others may, too; then twice that, …"""
_NOWHERE_S = 30.0
"""So long it looks for an instance while there is none and the scheduler is silent."""


@fixed
class _Given:
    """An output as an instance gave it."""

    link: InstanceLink
    output: EngineCoreOutput
    epoch: Epoch
    offset: int
    timestamp: float


class PoolClient(AsyncMPClient):
    """vLLM's engine-core client over a roster of instances.

    `MPClient.__init__` is deliberately not called: it would launch engines and bind sockets. The
    attributes set here are those that `AsyncLLM` and the inherited helpers read.
    """

    def __init__(
        self,
        vllm_config: Any,
        log_stats: bool,
        renderer: Any,
        *,
        pool: PoolName,
        roster: Roster,
        placement: Placement,
        num_slots: int,
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
        self._pool = pool
        self._roster = roster
        self._placement = placement
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._prompt_blocks = PromptBlocks()
        self._streams = Streams()
        self._sent: dict[RequestId, Sent] = {}
        self._early: dict[RequestId, list[_Given]] = {}
        """Outputs of a stream's next owner that came before its owner's last ones."""
        self._clocks: dict[InstanceId, ClockOffset] = {}
        self.moves = MoveLog()
        self._service = ServiceTime()
        self.paces = Paces(time.monotonic())
        if renderer is not None:
            renderer.start_mm_warmup_in_background()

    @property
    def num_in_flight(self) -> int:
        """Requests that have come and not finished, those that wait for an instance included."""
        return len(self._sent)

    # ------------------------------------------------------------------ called by vLLM

    def _ensure_output_queue_task(self) -> None:
        """Outputs arrive through the links; there is no socket task to start."""

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next outputs of any instance."""
        return await self.outputs_queue.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Have a request placed; it goes, or is refused, when that is known."""
        http = context.current.get()
        if http is not None:
            request.priority, http.is_read = http.priority, True
        request.client_index = 0
        sent = Sent(
            RequestId(request.request_id),
            self._encoder.encode(request),
            len(request.prompt_token_ids or ()),
            http,
            ClassName(http.class_name if http is not None else ""),
            http.arrived if http is not None else time.monotonic(),
        )
        if request.sampling_params is not None:
            sent.max_tokens = request.sampling_params.max_tokens
        self._sent[sent.request] = sent
        self.counters.num_requests += 1
        story.accepted(self._pool, sent)
        if http is not None and http.deadline is not None:
            loop, late = asyncio.get_running_loop(), timed_out(http.limit_s)
            sent.deadline = loop.call_at(http.deadline, self._end_answer, sent, late)
        self._ask(sent)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """End requests wherever they are by now."""
        for request_id in request_ids:
            if (sent := self._sent.get(RequestId(request_id))) is not None:
                story.left(sent)
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

    def give_up(self, reason: str) -> None:
        """End every request: nobody will ever go on with them."""
        for request in list(self._sent):
            self._fail(request, reason)

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing of ours to stop: links belong to the gateway."""

    def __del__(self) -> None:
        """vLLM's finaliser expects sockets that were never made."""

    # ------------------------------------------------------------------ called by the links

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """One step's outputs of one instance."""
        now = time.monotonic()
        outputs: EngineCoreOutputs = self._decoder.decode(payload)
        if len(outputs.outputs) != len(header.owners):
            log.error("pool.malformed_outputs instance=%s", link.member.instance)
            return
        instance = link.member.instance
        self._clocks.setdefault(instance, ClockOffset()).convert(outputs, now)
        given = [
            _Given(link, output, epoch, offset, outputs.timestamp)
            for output, (epoch, offset) in zip(outputs.outputs, header.owners, strict=True)
        ]
        outputs.outputs = [each.output for each in given if self._accept(each, now)]
        if outputs.outputs or outputs.scheduler_stats is not None:
            outputs.engine_index = self._roster.slot(instance)
            self.outputs_queue.put_nowait(outputs)
        if self._early:
            for each in given:
                self._accept_early(RequestId(each.output.request_id), now)

    def _accept_early(self, request: RequestId, now: float) -> None:
        """What was early may count by now; what is let through may make room for more."""
        while early := self._early.pop(request, None):
            early.sort(key=lambda each: each.offset)
            counted = [each for each in early if self._accept(each, now)]
            for each in counted:
                late = EngineCoreOutputs(outputs=[each.output], timestamp=each.timestamp)
                late.engine_index = self._roster.slot(each.link.member.instance)
                self.outputs_queue.put_nowait(late)
            if not counted:
                return

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """The source of a migration tells the arbiter, or asks it."""
        instance = link.member.instance
        match message:
            case Moving(request=request, epoch=epoch, target=target):
                self._streams.note_target(request, instance, epoch, target)
            case AskOwner(request=request, epoch=epoch):
                answer = self._streams.ask(request, instance, epoch)
                if answer is None:
                    return  # not decided yet: it asks again
                if answer.is_yours:
                    self._early.pop(request, None)
                log.info("pool.ruled request=%s instance=%s answer=%s", request, instance, answer)
                self._rule(link, request, answer.epoch, is_yours=answer.is_yours)
            case _:
                log.warning("pool.unexpected_message type=%s", type(message).__name__)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """An instance is lost: what it had goes on elsewhere, after the tokens that have come.

        What was just leaving it may go on at its target: that is waited for, a moment.
        """
        instance = link.member.instance
        self._clocks.pop(instance, None)
        for request, early in list(self._early.items()):
            self._early[request] = [each for each in early if each.link is not link]
        why = f"instance {instance} was lost ({reason})"
        for request in self._streams.owned_by(instance):
            stream = self._streams.get(request)
            assert stream is not None, "it is owned"
            self._leave(request, stream.target, why)

    def _rule(
        self, link: InstanceLink, request: RequestId, epoch: Epoch, *, is_yours: bool
    ) -> None:
        try:
            link.tell_llumlet(Ruling(request, epoch, is_yours))
        except UnreachableError:
            log.info("pool.ruling_not_sent request=%s", request)  # its session ends all it had

    # ------------------------------------------------------------------ called for operators

    def has(self, request: RequestId) -> bool:
        """Whether a request is here and has not ended."""
        return request in self._sent

    def cancel(self, request: RequestId) -> None:
        """End a request, wherever it is, and tell its client so; nothing, if it has ended.

        An answer with several generations ends with any of them, as vLLM does not go on then.
        """
        sent = self._sent.get(request)
        if sent is not None:
            self._end_answer(sent, CANCELLED)

    def _end_answer(self, sent: Sent, refusal: Refusal) -> None:
        together = [sent.request]
        if sent.http is not None:
            sent.http.refusal = sent.http.refusal or refusal
            together = [each.request for each in self._sent.values() if each.http is sent.http]
        for each in together:
            log.info("pool.ended request=%s why=%s", each, refusal.message)
            self._end_in_error(each)

    def reclass(self, request: RequestId, name: ClassName, priority: int) -> bool:
        """Place and send a request as of another class from now on. False if it is not here.

        Whoever has it already is to be told: `holders`.
        """
        sent = self._sent.get(request)
        if sent is None:
            return False
        sent.reclass(name, priority)
        self._placement.reclass(request, name)
        return True

    def holders(self, request: RequestId) -> list[InstanceLink]:
        """Who has a request: its owner, or the instance that it is being given to.

        Empty: nobody, for it waits for an instance, or has ended.
        """
        sent, stream = self._sent.get(request), self._streams.get(request)
        if sent is None or stream is None or request in self._placement or sent.pause is not None:
            return []
        names = (stream.owner, stream.target)
        links = (self._roster.get(each) for each in names if each is not None)
        return [link for link in links if link is not None]

    # ------------------------------------------------------------------ placement

    def _ask(self, sent: Sent) -> None:
        size = self._roster.prefix_block()
        prefix = self._prompt_blocks.of(sent.payload, sent.outputs, size) if size else b""
        wanted = Wanted(
            self._pool,
            sent.request,
            sent.priority_class,
            Tokens(sent.num_tokens),
            sent.since,
            sent.name,
            prefix,
            size,
            self._must_go_by(sent),
        )
        self._placement.ask(wanted, self)

    def _must_go_by(self, sent: Sent) -> float | None:
        """When it must have an instance to be done in time, as long as requests take now."""
        if sent.http is None or sent.http.deadline is None or sent.why_again:
            return None
        left_s = sent.http.deadline - asyncio.get_running_loop().time()
        return time.monotonic() + left_s - self._service.expected_s(sent.max_tokens)

    def placed(self, request: RequestId, instance: InstanceId) -> bool:
        """`Placeable`: the scheduler has chosen."""
        link = self._roster.get(instance)
        if link is None or not link.is_ready or link.load is None:
            return False
        sent = self._sent[request]
        self._send(sent, link, blocks_for(sent.num_tokens + 1, link.load.block_size))
        return True

    def bypassed(self, request: RequestId) -> None:
        """`Placeable`: dispatched by what the links report."""
        sent = self._sent[request]
        choice = self._roster.choose(sent.num_tokens)
        if choice is not None:
            self.counters.num_bypassed += 1
            link, demand, _ = choice
            self._send(sent, link, demand)
            return
        if sent.why_again and time.monotonic() - sent.since < _NOWHERE_S:
            self._ask_after(sent, 2 * _PAUSE_S)
        else:
            self._turn_away(sent, NO_INSTANCE)

    def refused(self, request: RequestId, answer: NotPlaced) -> None:
        """`Placeable`: the scheduler says no. What was taken once is not turned away by a limit."""
        sent = self._sent[request]
        if sent.why_again and answer.reason in _OF_LIMITS:
            self.bypassed(request)
        else:
            self._turn_away(sent, of_answer(answer, self._pool))

    def _turn_away(self, sent: Sent, refusal: Refusal) -> None:
        """It is not taken; if it was once, and lost its instance, it has failed."""
        if sent.http is not None:
            sent.http.refusal = refusal
        if sent.why_again:
            self._fail(sent.request, f"{sent.why_again}; then {refusal.message}")
            return
        log.info("pool.refused request=%s reason=%s", sent.request, refusal.message)
        self._end_in_error(sent.request)

    def _send(self, sent: Sent, link: InstanceLink, demand: Blocks) -> None:
        request, instance = sent.request, link.member.instance
        epoch = self._streams.own(request, instance)
        link.add(request, epoch, demand, sent.payload, sent.name, sent.outputs)
        story.dispatched(sent, instance, epoch)
        if sent.http is not None:
            sent.http.instances.append(instance)
        if not sent.why_again:
            sent.sent_at = time.monotonic()
            if sent.http is not None:
                sent.http.charge(sent.prompt_tokens)
            return
        if sent.outputs:
            self.counters.num_recovered += 1
        else:
            self.counters.num_redispatched += 1

    # ------------------------------------------------------------------ ownership

    def _accept(self, given: _Given, now: float) -> bool:
        """Whether vLLM's front end gets to see an output now."""
        output, instance = given.output, given.link.member.instance
        request, num_new = RequestId(output.request_id), len(output.new_token_ids)
        stream = self._streams.get(request)
        former, heir = (None, None) if stream is None else (stream.owner, stream.target)
        is_abort = output.finish_reason is not None and output.finish_reason == FinishReason.ABORT
        if is_abort and former != instance:
            return False  # a target that stops: the source takes the stream back
        verdict = self._streams.judge(request, instance, given.epoch, given.offset, num_new)
        match verdict:
            case Verdict.COUNTS:
                self._note_pace(self._sent[request], instance, num_new, now)
            case Verdict.MOVES:
                assert former is not None, "a stream moves from somewhere"
                self._note_move(request, former, given, now)
            case Verdict.EARLY:
                early = self._early.setdefault(request, [])
                early.append(given)
                if len(early) > _MAX_EARLY:
                    self._fail(request, f"the tokens before {early[0].offset} do not come")
                return False
            case _:
                self._refuse(given, verdict)
                return False
        if is_abort:
            self._leave(request, heir, f"instance {instance} is stopping", is_fault=False)
            return False
        return self._take_in(request, output)

    def _note_pace(self, sent: Sent, instance: InstanceId, num_new: int, now: float) -> None:
        gap_s = sent.pace.note(now)
        if not num_new:
            return
        self.paces.note_tokens(instance, num_new)
        if sent.outputs:
            self.paces.note_gap(instance, gap_s)
        else:
            self.paces.note_first(instance, now - sent.since)

    def _refuse(self, given: _Given, verdict: Verdict) -> None:
        """Tokens that do not count. Whoever makes them without owning the stream is to stop."""
        request = RequestId(given.output.request_id)
        self.counters.num_dropped_outputs += 1
        if verdict is Verdict.GAP:
            given.link.abort([(request, given.epoch)])
            self._recover(request, f"tokens before {given.offset} were lost on the way")
        elif verdict is Verdict.STALE and given.output.finish_reason is None:
            given.link.abort([(request, given.epoch)])

    def _note_move(self, request: RequestId, former: InstanceId, given: _Given, now: float) -> None:
        sent, instance = self._sent[request], given.link.member.instance
        self._placement.withdraw(request)  # its source was lost, and its target has it after all
        move = self.moves.note(request, given.epoch, former, instance, given.offset, sent.pace, now)
        log.info(
            "pool.moved request=%s source=%s target=%s downtime_ms=%.1f itl_ms=%.1f",
            request, former, instance, move.downtime_ms, move.itl_ms,
        )  # fmt: skip
        if sent.http is not None:
            sent.http.instances.append(instance)
        if (link := self._roster.get(former)) is not None:
            self._rule(link, request, given.epoch, is_yours=False)

    def _take_in(self, request: RequestId, output: EngineCoreOutput) -> bool:
        """An output counts: it is one for vLLM's front end."""
        self.counters.output_tokens += len(output.new_token_ids)
        sent = self._sent[request]
        if output.new_token_ids:
            sent.outputs.extend(output.new_token_ids)
            if sent.http is not None:
                sent.http.charge(len(output.new_token_ids))
            sent.num_losses = 0
        if output.finish_reason is not None:
            story.finished(sent, output.finish_reason)
            self._forget(request)
            if output.finish_reason == FinishReason.ERROR:
                self.counters.num_failed += 1
            else:
                self.counters.num_finished += 1
                if sent.sent_at is not None:
                    self._service.note(time.monotonic() - sent.sent_at, len(sent.outputs))
        return True

    def _leave(
        self, request: RequestId, heir: InstanceId | None, reason: str, *, is_fault: bool = True
    ) -> None:
        """Its owner is gone: its target may have it, or else it is placed anew."""
        stream = self._streams.get(request)
        assert stream is not None, "it is owned"
        target = self._roster.get(heir) if heir is not None else None
        if target is None or not target.is_ready:
            self._recover(request, reason, is_fault=is_fault)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(_TAKE_OVER_S, self._recover_if, request, stream.epoch, reason)

    def _recover_if(self, request: RequestId, epoch: Epoch, reason: str) -> None:
        stream = self._streams.get(request)
        if stream is not None and stream.epoch == epoch:
            self._recover(request, reason)

    def _recover(self, request: RequestId, reason: str, *, is_fault: bool = True) -> None:
        """Have a request placed anew: whoever gets it goes on after the tokens that it has."""
        sent = self._sent[request]
        if request in self._placement or sent.pause is not None:
            return  # it has left there already
        for each in self._early.pop(request, ()):  # what was before these will never come
            each.link.abort([(request, each.epoch)])
        sent.num_losses += is_fault
        sent.num_placements += 1
        sent.why_again, sent.since = reason, time.monotonic()
        if sent.num_losses >= _MOST_LOSSES or sent.num_placements >= _MOST_PLACEMENTS:
            self._fail(request, f"{reason}; it was placed {sent.num_placements} times")
        elif is_fault:
            self._ask(sent)
        else:
            self._ask_after(sent, _PAUSE_S * min(sent.num_placements, 8))

    def _ask_after(self, sent: Sent, pause_s: float) -> None:
        def ask() -> None:
            sent.pause = None
            self._ask(sent)

        sent.pause = asyncio.get_running_loop().call_later(pause_s, ask)

    def _fail(self, request: RequestId, reason: str) -> None:
        log.error("pool.failed request=%s reason=%s", request, reason)
        self.counters.num_failed += 1
        http = self._sent[request].http
        if http is not None and http.refusal is None:
            http.refusal = lost(reason)
        self._end_in_error(request)

    def _end_in_error(self, request: RequestId) -> None:
        self._end(request)
        error = EngineCoreOutput(request, [], finish_reason=FinishReason.ERROR)
        self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=[error]))

    def _end(self, request: RequestId) -> None:
        """Forget a request and have its owner forget it too."""
        self._placement.withdraw(request)
        stream = self._forget(request)
        if stream is not None and (link := self._roster.get(stream.owner)) is not None:
            link.abort([(request, stream.epoch)])

    def _forget(self, request: RequestId) -> Stream | None:
        sent = self._sent.pop(request, None)
        for timer in () if sent is None else (sent.pause, sent.deadline):
            if timer is not None:
                timer.cancel()
        self._early.pop(request, None)
        return self._streams.end(request)
