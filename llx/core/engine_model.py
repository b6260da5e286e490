"""A continuous-batching engine as a pure state machine: queues, KV blocks, step time.

Serves the discrete-event simulator (virtual time) and the simulated engine (real time). It knows
no clock: the caller says when a step starts, and is told how long it takes.

    add ─► waiting ──admit──► running ──finish──► gone          schedule(now) ─► Step(duration_ns)
              ▲                  │                                   … duration_ns later …
              └─────preempt──────┘                              complete(step) ─► outputs

It batches as vLLM's v1 scheduler does under ``--scheduling-policy priority``: running requests
first, then the waiting ones by (priority, arrival), in one budget of tokens per step, long prefills
in chunks. A request is admitted when all its tokens so far would fit in the free blocks. Who runs
out of blocks takes them from the least urgent running request, which is recomputed later. One
difference: a running request that has to preempt itself does not end the step's planning for the
rest, so that a step is never empty.

What a token *is* lies behind `TokenModel`; this module only counts them.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from llx.core.model import Blocks, ClassLoad, InstanceLoad, Nanos, RequestId, Tokens, blocks_for

_NOTHING: frozenset[int] = frozenset()


class TokenModel(Protocol):
    """The model's arithmetic: what a step writes to the KV cache and reads from it."""

    def compute(self, tokens: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> None:
        """Write the KV of positions `start` to `end` (exclusive) of `tokens`."""

    def sample(
        self,
        request: "EngineRequest",
        num_tokens: int,
        blocks: Sequence[int],
        banned: frozenset[int],
    ) -> int:
        """The token after the first `num_tokens`, whose KV is in `blocks`; none of `banned`."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long a step takes, as a sum of four linear terms (`llx.specs.SimSpec`)."""

    base_ns: int
    prefill_token_ns: int
    decode_ns: int
    context_ktoken_ns: int

    def of(self, num_prefill_tokens: int, num_decodes: int, num_context_tokens: int) -> Nanos:
        """Duration of a step of that many prefill tokens, decodes and tokens of context."""
        return Nanos(
            self.base_ns
            + self.prefill_token_ns * num_prefill_tokens
            + self.decode_ns * num_decodes
            + self.context_ktoken_ns * num_context_tokens // 1000
        )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """An engine's size. A request of `max_model_len` tokens must fit in the blocks."""

    num_blocks: Blocks
    block_size: Tokens
    max_num_seqs: int
    max_num_batched_tokens: Tokens
    max_model_len: Tokens
    step_time: StepTime

    def __post_init__(self) -> None:
        assert min(self.num_blocks, self.block_size, self.max_num_seqs) > 0, self
        assert self.max_num_batched_tokens > 0, self
        assert blocks_for(self.max_model_len, self.block_size) <= self.num_blocks, (
            f"{self.num_blocks} blocks cannot hold one request of {self.max_model_len} tokens"
        )


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request as the engine gets it.

    `priority`: lower is more urgent. `arrival` orders requests of one priority. The request ends
    at `max_tokens`, at `eos_token` or at a token of `stop_tokens`; the first
    `min_tokens` are none of `banned_early`.
    """

    request: RequestId
    prompt: tuple[int, ...]
    max_tokens: int
    arrival: Nanos
    priority: int = 0
    min_tokens: int = 0
    eos_token: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    banned_early: frozenset[int] = frozenset()
    seed: int = 0


class Finish(Enum):
    """Why a request ended by itself."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One new token of one request."""

    request: RequestId
    token: int
    finish: Finish | None = None
    stop_token: int | None = None
    """The token of `stop_tokens` that ended the request; None at `eos_token` or by length."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions `start` to `end` (exclusive) of a request, computed in one step."""

    request: RequestId
    life: int
    start: int
    end: int
    is_decode: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of the step's budget that it takes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Step:
    """A batch: what runs, for how long, and what the planning of it changed."""

    started_at: Nanos
    duration_ns: Nanos
    chunks: tuple[Chunk, ...]
    admitted: tuple[RequestId, ...]
    preempted: tuple[RequestId, ...]


class _State(Enum):
    WAITING = "waiting"
    PREEMPTED = "preempted"
    RUNNING = "running"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class _Held:
    """A request in the engine. Tokens 0 … num_computed have their KV in `blocks`."""

    asked: EngineRequest
    life: int
    tokens: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    state: _State = _State.WAITING

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - len(self.asked.prompt)


@dataclass(slots=True)
class _Tally:
    """What one priority class has here."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_demand: int = 0


@dataclass(slots=True)
class _Plan:
    """A step while it is being put together."""

    budget: int
    chunks: dict[RequestId, Chunk] = field(default_factory=dict)
    admitted: list[RequestId] = field(default_factory=list)
    preempted: list[RequestId] = field(default_factory=list)


def _urgency(held: _Held) -> tuple[int, int, int]:
    """Sort key: the most urgent first."""
    return (held.asked.priority, held.asked.arrival, held.life)


class EngineModel:
    """The engine. Calls alternate: `schedule`, then `complete` of that step; the rest any time."""

    def __init__(self, config: EngineConfig, tokens: TokenModel) -> None:
        self.config = config
        self._tokens = tokens
        self._free = list(range(config.num_blocks - 1, -1, -1))
        self._held: dict[RequestId, _Held] = {}
        self._running: list[_Held] = []
        self._waiting: list[_Held] = []
        self._tallies: dict[int, _Tally] = {}
        self._waiting_tokens = 0
        self._num_preempted = 0
        self._next_life = 0
        self._open: Step | None = None

    @property
    def num_requests(self) -> int:
        """Requests held, waiting and running."""
        return len(self._held)

    def add(self, request: EngineRequest) -> None:
        """Queue a request of a new id, with a prompt of 1 to ``max_model_len - 1`` tokens."""
        assert request.request not in self._held, f"{request.request} is held already"
        assert 1 <= len(request.prompt) < self.config.max_model_len, "prompt does not fit"
        assert request.max_tokens >= 1, "a request asks for one token at least"
        held = _Held(request, self._next_life, list(request.prompt))
        self._next_life += 1
        self._held[request.request] = held
        self._enqueue(held, _State.WAITING)

    def abort(self, request: RequestId) -> bool:
        """End a request and free its blocks. False if it is not held."""
        held = self._held.get(request)
        if held is None:
            return False
        self._remove(held)
        return True

    def schedule(self, now: Nanos) -> Step | None:
        """Plan the next step, to start at `now`; None when there is nothing to run."""
        assert self._open is None, "the step before is not complete"
        plan = _Plan(self.config.max_num_batched_tokens)
        self._continue_running(plan)
        if not plan.preempted:
            self._admit(plan)
        if not plan.chunks:
            assert not self._held, "requests are held, yet none can run"
            return None
        chunks = tuple(plan.chunks.values())
        self._open = Step(
            started_at=now,
            duration_ns=self._duration(chunks),
            chunks=chunks,
            admitted=tuple(plan.admitted),
            preempted=tuple(plan.preempted),
        )
        return self._open

    def complete(self, step: Step) -> list[TokenOutput]:
        """Carry the step out; returns its tokens in the order of its chunks.

        Requests aborted since `schedule` are left out.
        """
        assert step is self._open, "not the step that was scheduled last"
        self._open = None
        outputs = []
        for chunk in step.chunks:
            held = self._held.get(chunk.request)
            if held is None or held.life != chunk.life:
                continue
            self._tokens.compute(held.tokens, chunk.start, chunk.end, held.blocks)
            held.num_computed = chunk.end
            if chunk.end == len(held.tokens):
                outputs.append(self._next_token(held))
        return outputs

    def load(self) -> InstanceLoad:
        """The load at this moment; costs O(priority classes)."""
        tallies = self._tallies.items()
        return InstanceLoad(
            total=self.config.num_blocks,
            free=Blocks(len(self._free)),
            block_size=self.config.block_size,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            waiting_demand=Blocks(sum(tally.waiting_demand for _, tally in tallies)),
            waiting_tokens=Tokens(self._waiting_tokens),
            num_preempted=self._num_preempted,
            classes={
                priority: ClassLoad(t.num_running, t.num_waiting, Blocks(t.waiting_demand))
                for priority, t in tallies
            },
        )

    def block_table(self, request: RequestId) -> tuple[int, ...]:
        """The blocks a request holds, in the order of its positions."""
        held = self._held.get(request)
        return tuple(held.blocks) if held is not None else ()

    # ------------------------------------------------------------------ planning

    def _continue_running(self, plan: _Plan) -> None:
        for held in list(self._running):
            if plan.budget == 0:
                return
            if held.state is not _State.RUNNING:
                continue  # preempted by one before it in this very loop
            self._run(held, plan)

    def _admit(self, plan: _Plan) -> None:
        while self._waiting and plan.budget > 0 and len(self._running) < self.config.max_num_seqs:
            held = self._waiting[0]
            if self._demand(held) > len(self._free):
                return
            self._dequeue(held)
            held.state = _State.RUNNING
            self._running.append(held)
            self._tally(held).num_running += 1
            plan.admitted.append(held.asked.request)
            self._run(held, plan)

    def _run(self, held: _Held, plan: _Plan) -> None:
        """Give `held` a chunk of the step, taking blocks from the least urgent where needed."""
        start = held.num_computed
        end = min(len(held.tokens), start + plan.budget)
        num_new = blocks_for(end, self.config.block_size) - len(held.blocks)
        while num_new > len(self._free):
            victim = max(self._running, key=_urgency)
            self._preempt(victim, plan)
            if victim is held:
                return
            end = min(len(held.tokens), start + plan.budget)
            num_new = blocks_for(end, self.config.block_size) - len(held.blocks)
        held.blocks.extend(self._free.pop() for _ in range(num_new))
        is_decode = end - start == 1 and held.num_outputs > 0
        plan.chunks[held.asked.request] = Chunk(
            held.asked.request, held.life, start, end, is_decode
        )
        plan.budget -= end - start

    def _preempt(self, victim: _Held, plan: _Plan) -> None:
        chunk = plan.chunks.pop(victim.asked.request, None)
        if chunk is not None:
            plan.budget += chunk.num_tokens
        self._release(victim)
        self._stop_running(victim)
        self._enqueue(victim, _State.PREEMPTED)
        plan.preempted.append(victim.asked.request)

    def _duration(self, chunks: Sequence[Chunk]) -> Nanos:
        num_decodes = sum(chunk.is_decode for chunk in chunks)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_context_tokens = sum(chunk.end for chunk in chunks)
        step_time = self.config.step_time
        return step_time.of(num_tokens - num_decodes, num_decodes, num_context_tokens)

    # ------------------------------------------------------------------ completing

    def _next_token(self, held: _Held) -> TokenOutput:
        asked = held.asked
        is_early = held.num_outputs < asked.min_tokens
        banned = asked.banned_early if is_early else _NOTHING
        token = self._tokens.sample(asked, len(held.tokens), held.blocks, banned)
        held.tokens.append(token)
        finish, stop_token = self._finish_of(held, token)
        if finish is not None:
            self._remove(held)
        return TokenOutput(asked.request, token, finish, stop_token)

    def _finish_of(self, held: _Held, token: int) -> tuple[Finish | None, int | None]:
        asked = held.asked
        if token == asked.eos_token:
            return Finish.STOP, None
        if token in asked.stop_tokens:
            return Finish.STOP, token
        is_full = len(held.tokens) >= self.config.max_model_len
        if is_full or held.num_outputs >= asked.max_tokens:
            return Finish.LENGTH, None
        return None, None

    # ------------------------------------------------------------------ bookkeeping

    def _demand(self, held: _Held) -> int:
        return blocks_for(len(held.tokens), self.config.block_size)

    def _tally(self, held: _Held) -> _Tally:
        return self._tallies.setdefault(held.asked.priority, _Tally())

    def _enqueue(self, held: _Held, state: _State) -> None:
        held.state = state
        bisect.insort(self._waiting, held, key=_urgency)
        tally = self._tally(held)
        tally.num_waiting += 1
        tally.waiting_demand += self._demand(held)
        self._waiting_tokens += len(held.tokens)
        self._num_preempted += state is _State.PREEMPTED

    def _dequeue(self, held: _Held) -> None:
        index = bisect.bisect_left(self._waiting, _urgency(held), key=_urgency)
        assert self._waiting.pop(index) is held, "the waiting queue is out of order"
        tally = self._tally(held)
        tally.num_waiting -= 1
        tally.waiting_demand -= self._demand(held)
        self._waiting_tokens -= len(held.tokens)
        self._num_preempted -= held.state is _State.PREEMPTED

    def _stop_running(self, held: _Held) -> None:
        self._running.remove(held)
        self._tally(held).num_running -= 1

    def _release(self, held: _Held) -> None:
        self._free.extend(reversed(held.blocks))
        held.blocks = []
        held.num_computed = 0

    def _remove(self, held: _Held) -> None:
        if held.state is _State.RUNNING:
            self._stop_running(held)
        else:
            self._dequeue(held)
        self._release(held)
        held.state = _State.GONE
        del self._held[held.asked.request]
        tally = self._tally(held)
        if not tally.num_running and not tally.num_waiting:
            del self._tallies[held.asked.priority]
