"""The simulated engine: `llx.core.engine_model` against real time, behind an instance's endpoint.

    input thread    decode ─► commands ─┐
    core thread     commands, schedule, compute, sleep out the step, emit, report
    sender thread   encode ─► peers

One step at a time. What arrives during a step is taken in before the next, as in vLLM. The step's
tokens are computed at its start and leave at its end, so that what Python needs for them is part
of the step and not added to it.

Sampling parameters that shape a distribution (temperature, penalties, bias) have nothing to act on
here and are ignored; what changes the *form* of an answer (structured output, LoRA, images,
pooling, prompt logprobs) is refused with an error output.
"""

import functools
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, assert_never

import msgspec

from llx.agent.engine_codec import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EventType,
    FinishReason,
    PrefillStats,
    SchedulerStats,
    decode_request,
    encode,
    encode_logprobs,
    event,
)
from llx.agent.ownership import Ownership
from llx.agent.sim_kv import SimKv
from llx.agent.sim_moves import SimMoves
from llx.agent.sim_request import Live, read_request
from llx.agent.step_log import StepLog
from llx.core.engine_model import EngineModel, Finish, Step, TokenOutput, work_of
from llx.core.engine_state import EngineConfig
from llx.core.model import Epoch, Nanos, RequestId
from llx.core.token_model import HashedTokens
from llx.errors import EngineError, LlxError, WireError
from llx.ports import PIN, SET_PRIORITY, Frame
from llx.wire import Add, Call, FromInstance, Load, Outputs, Reply, oldest_of

log = logging.getLogger(__name__)

RESULTS: Final = MappingProxyType[str, Any](
    {
        "get_supported_tasks": ["generate"],
        "reset_mm_cache": None,
        "reset_prefix_cache": True,
        "reset_encoder_cache": None,
        "is_sleeping": False,
        "is_scheduler_paused": False,
        "list_loras": [],
    }
)
"""The utilities whose answer never changes."""
REQUESTS: Final = "llx_requests"
"""The utility that answers with a list of `llx.wire.RequestView`."""
OLDEST: Final = "llx_oldest_requests"
"""The utility that answers with `llx.wire.OldestRequests`, of so many as it is asked for."""
STEPS: Final = "llx_steps"
"""The utility that answers with `llx.wire.StepRows`."""
UTILITIES: Final = frozenset({*RESULTS, REQUESTS, OLDEST, STEPS, SET_PRIORITY, PIN})
"""The utilities it answers; the endpoint admits these names and no other."""

_CATCH_UP_NS = 2_000_000
"""Steps follow each other without a gap as long as Python is no later than this."""
_STATS_EVERY_S = 0.1
_FINISH_REASONS = {Finish.STOP: FinishReason.STOP, Finish.LENGTH: FinishReason.LENGTH}


class Outlet(Protocol):
    """Where messages go: an `InstanceEndpoint`, or the stock sockets of a benchmark."""

    def emit(
        self,
        peer: int,
        message: FromInstance,
        payload: Callable[[], Sequence[Frame]] | None = None,
    ) -> None:
        """Send a message; `payload` is encoded on another thread."""

    def report(self, load: Load, seen: dict[int, int]) -> None:
        """Replace the latest load report."""


@dataclass(frozen=True, slots=True)
class _Added:
    peer: int
    header: Add
    message: EngineCoreRequest | None
    """None: the payload could not be read."""
    payload: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Aborted:
    peer: int
    requests: list[tuple[RequestId, Epoch]]


@dataclass(frozen=True, slots=True)
class _Called:
    peer: int
    header: Call
    arguments: bytes


@dataclass(frozen=True, slots=True)
class _PeerGone:
    peer: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """Something that the llumlet wants done."""

    action: Callable[[], None]


class _Stop:
    """Wakes the core thread to its end."""


_Command = _Added | _Aborted | _Called | _PeerGone | _Asked | _Stop


class SimEngine:
    """The engine of one instance; implements `llx.ports.EngineSink`.

    `moves` is its `llx.ports.MigratingEngine`, `kv` its `llx.ports.KvStore`.

    `add`, `abort`, `call`, `drop_peer` and `stop` may be called from any thread; `run` is the core
    thread.
    """

    def __init__(self, config: EngineConfig, tokens: HashedTokens) -> None:
        self._config = config
        self._model = EngineModel(config, tokens)
        self._vocabulary = tokens.vocabulary
        self._ownership = Ownership()
        self._live: dict[RequestId, Live] = {}
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._stats_sent: dict[int, float] = {}
        self._num_steps = self._num_preemptions = 0
        self._step_log = StepLog()
        self._outlet: Outlet
        self.kv: Final = SimKv(tokens)
        self.moves: Final = SimMoves(
            config,
            self._model,
            self._ownership,
            self._live,
            block_bytes=self.kv.block_bytes,
            vocabulary=tokens.vocabulary,
            post=lambda action: self._commands.put(_Asked(action)),
            forget=self._forget,
        )

    # ------------------------------------------------------------------ any thread

    def add(self, peer: int, header: Add, payload: Sequence[Frame]) -> None:
        """Decode a request here, off the core thread."""
        message: EngineCoreRequest | None = None
        try:
            message = decode_request(payload)
            if message.request_id != header.request:
                raise WireError(f"the payload is of {message.request_id!r}")
        except WireError as error:
            log.warning("engine.bad_request request=%s error=%s", header.request, error)
            message = None
        # Copied: it outlives the buffers of the socket.
        frames = tuple(bytes(frame) for frame in payload)
        self._commands.put(_Added(peer, header, message, frames))

    def abort(self, peer: int, requests: list[tuple[RequestId, Epoch]]) -> None:
        """End requests, each only if held at that epoch or an earlier one."""
        self._commands.put(_Aborted(peer, requests))

    def call(self, peer: int, header: Call, payload: Sequence[Frame]) -> None:
        """A utility."""
        self._commands.put(_Called(peer, header, b"".join(payload)))

    def drop_peer(self, peer: int) -> None:
        """Abort what the session left behind."""
        self._commands.put(_PeerGone(peer))

    def stop(self) -> None:
        """Make `run` return: what is running is aborted, not finished."""
        self._stopping.set()
        self._commands.put(_Stop())

    # ------------------------------------------------------------------ core thread

    def run(self, outlet: Outlet) -> None:
        """Serve until `stop`; then every request held ends with an ABORT output."""
        self._outlet = outlet
        step_end = 0
        while not self._stopping.is_set():
            self._take_in()
            now = time.monotonic_ns()
            is_on_time = now - step_end < _CATCH_UP_NS
            self._step_log.begin(now)
            step = self._model.schedule(Nanos(step_end if is_on_time else now))
            self._report(now)
            if step is None:
                step_end = 0
                self._step_log.pause()
                if not self._model.moves.tell():  # whoever is told may give it something to run
                    self._handle(self._commands.get())
                continue
            step_end = step.started_at + step.duration_ns
            self._note(step)
            work = work_of(step.chunks)
            outputs = self._model.complete(step)
            self._stopping.wait((step_end - time.monotonic_ns()) / 1e9)
            self._step_log.note(work, time.monotonic_ns())
            self._emit_tokens(outputs)
        self._take_in()
        self._end_all()

    def _take_in(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            self._handle(command)

    def _handle(self, command: _Command) -> None:
        match command:
            case _Added():
                self._add(command)
            case _Aborted(peer=peer, requests=requests):
                self._forget(self._ownership.held(peer, requests))
            case _Called():
                self._answer(command)
            case _PeerGone(peer=peer):
                self._forget(self._ownership.of_peer(peer))
                self._stats_sent.pop(peer, None)
            case _Asked(action=action):
                action()
            case _Stop():
                pass
            case _:
                assert_never(command)
        self._model.moves.tell()

    def _add(self, command: _Added) -> None:
        header, message = command.header, command.message
        if self._ownership.is_superseded(command.peer, header):
            self._forget([header.request])
        if not self._ownership.add(command.peer, header):
            log.warning("engine.duplicate_add request=%s epoch=%s", header.request, header.epoch)
            return
        live = Live(command.peer, header.name, command.payload)
        self._live[header.request] = live
        if message is None:
            self._finish([header.request], FinishReason.ERROR)
            return
        if message.abort_immediately:
            self._finish([header.request], FinishReason.ABORT)
            return
        request = read_request(
            message, max_model_len=self._config.max_model_len, vocabulary=self._vocabulary
        )
        if isinstance(request, str):
            log.warning("engine.refused request=%s reason=%s", header.request, request)
            self._finish([header.request], FinishReason.ERROR)
            return
        live.num_logprobs = request.num_logprobs
        live.events.append(event(EventType.QUEUED))
        if header.outputs:
            live.prefill_stats = None
            if refusal := self._model.moves.take_over(request.asked, header.outputs):
                log.warning("engine.refused request=%s reason=%s", header.request, refusal)
                self._finish([header.request], FinishReason.ERROR)
            return
        num_prompt = len(request.asked.prompt)
        live.prefill_stats = PrefillStats(num_prompt, num_prompt)
        self._model.add(request.asked)

    def _forget(self, requests: list[RequestId]) -> None:
        """End requests without an output; the list may name one twice."""
        peers = set()
        for request in requests:
            live = self._live.pop(request, None)
            if live is not None:
                peers.add(live.peer)
                self._model.abort(request)
                self._ownership.drop(request)
        for peer in peers:  # no output will bring their front ends the stats that have changed
            self._stats_sent.pop(peer, None)
            self._emit(peer, [])

    def _answer(self, command: _Called) -> None:
        peer, call = command.peer, command.header.call
        try:
            result = self._call(command.header.method, command.arguments)
        except (msgspec.DecodeError, LlxError) as error:
            self._outlet.emit(peer, Reply(call, f"{command.header.method}: {error}"))
        else:
            self._outlet.emit(peer, Reply(call), lambda: [encode(result)])

    def _call(self, method: str, arguments: bytes) -> Any:
        if method == REQUESTS:
            return self.moves.requests()
        if method == OLDEST:
            (count,) = msgspec.msgpack.decode(arguments, type=tuple[int])
            return oldest_of(self.moves.requests(), count)
        if method == STEPS:
            return self._step_log.answer()
        if method == SET_PRIORITY:
            request, priority = msgspec.msgpack.decode(arguments, type=tuple[RequestId, int])
            return self.moves.set_priority(request, priority)
        if method == PIN:
            request, words = msgspec.msgpack.decode(arguments, type=tuple[RequestId, str])
            return self.moves.pin(request, words)
        if method not in RESULTS:
            raise EngineError("the simulated engine has no such utility")
        return RESULTS[method]

    def _note(self, step: Step) -> None:
        """Remember what planning the step did to requests, for their next outputs."""
        self._num_preemptions += len(step.preempted)
        for kind, requests in (
            (EventType.PREEMPTED, step.preempted),
            (EventType.SCHEDULED, step.admitted),
        ):
            for request in requests:
                self._live[request].events.append(event(kind))

    def _end_all(self) -> None:
        """End what is held. What was cut may go on elsewhere by now: it ends without a word."""
        requests = list(self._live)
        leaving = [each for each in requests if self._model.moves.is_cut(each)]
        self._forget(leaving)
        self._finish([each for each in requests if each not in leaving], FinishReason.ABORT)
        self._model.moves.tell()

    # ------------------------------------------------------------------ outputs

    def _emit_tokens(self, tokens: Sequence[TokenOutput]) -> None:
        self._num_steps += 1
        by_peer: defaultdict[int, list[EngineCoreOutput]] = defaultdict(list)
        for token in tokens:
            live = self._live[token.request]
            by_peer[live.peer].append(self._output(token, live))
        for peer, outputs in by_peer.items():
            self._emit(peer, outputs)
        self._model.moves.tell()

    def _output(self, token: TokenOutput, live: Live) -> EngineCoreOutput:
        output = EngineCoreOutput(token.request, [token.token])
        if live.num_logprobs is not None:
            output.new_logprobs = self._logprobs(token.token, live.num_logprobs)
        if token.finish is not None:
            output.finish_reason = _FINISH_REASONS[token.finish]
            output.stop_reason = token.stop_token
        if live.events:
            output.events, live.events = live.events, []
        output.prefill_stats, live.prefill_stats = live.prefill_stats, None
        return output

    def _logprobs(self, token: int, count: int) -> Any:
        """The sampled token, then the top `count`, each half as likely as the one before."""
        top = [token, *self._vocabulary.neighbours(token, count)][:count]
        ranked = [-0.6931472 * rank for rank in range(1, count + 1)]
        return encode_logprobs([token, *top], [-0.6931472, *ranked], rank=1)

    def _finish(self, requests: list[RequestId], reason: FinishReason) -> None:
        by_peer: defaultdict[int, list[EngineCoreOutput]] = defaultdict(list)
        for request in requests:
            self._model.abort(request)
            live = self._live[request]
            output = EngineCoreOutput(request, [], finish_reason=reason)
            if live.prefill_stats is not None:
                # Without these the front end's histograms would count from the machine's start.
                output.events = [event(EventType.QUEUED), event(EventType.SCHEDULED)]
            by_peer[live.peer].append(output)
        for peer, outputs in by_peer.items():
            self._emit(peer, outputs)

    def _emit(self, peer: int, outputs: list[EngineCoreOutput]) -> None:
        """Stamp and send; what is finished is forgotten."""
        owners = []
        for output, stamp in zip(outputs, self._ownership.stamp(_marks(outputs)), strict=True):
            assert stamp is not None, f"{output.request_id} has no owner"
            owners.append(stamp)
            if output.finish_reason is not None:
                del self._live[RequestId(output.request_id)]
        message = EngineCoreOutputs(outputs=outputs, timestamp=time.monotonic())
        message.scheduler_stats = self._stats(peer, message.timestamp)
        self._outlet.emit(peer, Outputs(0, owners), functools.partial(_frames, message))

    def _stats(self, peer: int, now: float) -> SchedulerStats | None:
        is_busy = self._model.num_requests > 0
        if is_busy and now - self._stats_sent.get(peer, 0.0) < _STATS_EVERY_S:
            return None
        self._stats_sent[peer] = now
        load = self._model.load()
        return SchedulerStats(
            num_running_reqs=load.num_running,
            num_waiting_reqs=load.num_waiting,
            step_counter=self._num_steps,
            kv_cache_usage=load.used / load.total,
        )

    def _report(self, now_ns: int) -> None:
        load = self._model.load()
        message = Load(
            session=0,
            seen=0,
            at=Nanos(now_ns),
            total=load.total,
            free=load.free,
            block_size=load.block_size,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            waiting_demand=load.waiting_demand,
            waiting_tokens=load.waiting_tokens,
            num_preempted=load.num_preempted,
            classes={
                priority: (each.num_running, each.num_waiting, each.waiting_demand)
                for priority, each in load.classes.items()
            },
            covers=self._ownership.taken(),
            queue_head=self._model.queue_head(),
            num_preemptions=self._num_preemptions,
        )
        self._outlet.report(message, dict(self._ownership.seen))


def _marks(outputs: Sequence[EngineCoreOutput]) -> list[tuple[RequestId, int, bool]]:
    return [
        (RequestId(each.request_id), len(each.new_token_ids), each.finish_reason is not None)
        for each in outputs
    ]


def _frames(message: EngineCoreOutputs) -> list[Frame]:
    return [encode(message)]
