"""A continuous-batching engine as a pure state machine: queues, KV blocks, step time.

Serves the discrete-event simulator (virtual time) and the simulated engine (real time). It knows
no clock: the caller says when a step starts, and is told how long it takes.

    add ─► waiting ──admit──► running ──finish──► gone          schedule(now) ─► Step(duration_ns)
              ▲                  │                                   … duration_ns later …
              └─────preempt──────┘                              complete(step) ─► outputs

It batches as vLLM's v1 scheduler does under ``--scheduling-policy priority``: running requests
first, then those that arrived with their KV (`llx.core.engine_moves`), then the waiting ones by
(priority, arrival), in one budget of tokens per step, long prefills in chunks. A request is
admitted when all its tokens so far would fit in the free blocks. Who runs out of blocks takes them
from the least urgent request in the batch, which is recomputed later. Two differences: a running
request that has to preempt itself does not end the step's planning for the rest, so that a step is
empty only if nothing can run; and one that has arrived, and has no place in the batch yet, can lose
its blocks as if it had one.

What a token *is* lies behind `TokenModel`; this module only counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from llx.core.engine_leap import LikeSteps, carry_out, like_steps
from llx.core.engine_moves import EngineMoves
from llx.core.engine_state import (
    Chunk,
    EngineConfig,
    EngineRequest,
    EngineState,
    Held,
    State,
    urgency,
)
from llx.core.fixed import fixed
from llx.core.model import Blocks, InstanceLoad, Nanos, RequestId, Tokens

_NOTHING: frozenset[int] = frozenset()
_RUNNING: Final = State.RUNNING
_STATES: Final = {
    State.WAITING: "waiting",
    State.PREEMPTED: "preempted",
    State.ARRIVED: "waiting",
    State.RUNNING: "running",
    State.CUT: "leaving",
}


class TokenModel(Protocol):
    """The model's arithmetic: what a step writes to the KV cache and reads from it."""

    def compute(self, tokens: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> None:
        """Write the KV of positions `start` to `end` (exclusive) of `tokens`."""

    def sample(
        self,
        request: EngineRequest,
        num_tokens: int,
        blocks: Sequence[int],
        banned: frozenset[int],
    ) -> int:
        """The token after the first `num_tokens`, whose KV is in `blocks`; none of `banned`."""


class Finish(Enum):
    """Why a request ended by itself."""

    STOP = "stop"
    LENGTH = "length"


@fixed
class TokenOutput:
    """One new token of one request."""

    request: RequestId
    token: int
    finish: Finish | None = None
    stop_token: int | None = None
    """The token of `stop_tokens` that ended the request; None at `eos_token` or by length."""


@fixed
class Step:
    """A batch: what runs, for how long, and what the planning of it changed."""

    started_at: Nanos
    duration_ns: Nanos
    chunks: tuple[Chunk, ...]
    admitted: tuple[RequestId, ...]
    preempted: tuple[RequestId, ...]


@fixed
class RequestStatus:
    """A request as operators see it.

    `state`: ``waiting``, ``preempted``, ``running``, or ``leaving`` while it is being moved away.
    """

    asked: EngineRequest
    state: str
    num_tokens: int
    num_blocks: int


@dataclass(slots=True)
class _Plan:
    """A step while it is being put together."""

    budget: int
    chunks: dict[RequestId, Chunk] = field(default_factory=dict)
    admitted: list[RequestId] = field(default_factory=list)
    preempted: list[RequestId] = field(default_factory=list)


class EngineModel:
    """The engine. Calls alternate: `schedule`, then `complete` of that step; the rest any time."""

    def __init__(self, config: EngineConfig, tokens: TokenModel) -> None:
        self.config: Final = config
        self._tokens = tokens
        self._state = EngineState(config)
        self.moves: Final = EngineMoves(self._state)
        self._open: Step | None = None

    @property
    def num_requests(self) -> int:
        """Requests held, in whatever state."""
        return len(self._state.held)

    def add(self, request: EngineRequest) -> None:
        """Queue a request of a new id, with a prompt of 1 to ``max_model_len - 1`` tokens."""
        self._state.move(self._state.hold(request), State.WAITING)

    def abort(self, request: RequestId) -> bool:
        """End a request and free its blocks. False if it is not held."""
        held = self._state.held.get(request)
        if held is None:
            return False
        self._end(held, "aborted")
        return True

    def set_priority(self, request: RequestId, priority: int) -> bool:
        """Serve a request by another priority from now on. False: it is not here, or was cut."""
        held = self._state.held.get(request)
        if held is None or held.state is State.CUT:
            return False
        self._state.reclass(held, priority)
        return True

    def schedule(self, now: Nanos) -> Step | None:
        """Plan the next step, to start at `now`; None when there is nothing to run.

        That may be so although requests are held: when they are on their way out, or wait for
        blocks or places which such requests, or reservations, still have.
        """
        assert self._open is None, "the step before is not complete"
        plan = _Plan(self.config.max_num_batched_tokens)
        if self.config.is_prefill_first:
            self._admit(plan)
        if not plan.chunks:
            self._continue_running(plan)
            if not (plan.preempted and plan.chunks):
                self._admit_arrived(plan)
                self._admit_late(plan)
        if not plan.chunks:
            state = self._state
            assert not state.held or state.cut or state.num_reserved, (
                "requests are held, yet none can run"
            )
            return None
        chunks = tuple(plan.chunks.values())
        self._open = Step(
            started_at=now,
            duration_ns=self._duration(chunks),
            chunks=chunks,
            admitted=tuple(plan.admitted),
            preempted=tuple(plan.preempted),
        )
        self._state.in_flight = plan.chunks
        return self._open

    def complete(self, step: Step) -> list[TokenOutput]:
        """Carry the step out; returns its tokens in the order of its chunks.

        Requests aborted since `schedule` are left out.
        """
        assert step is self._open, "not the step that was scheduled last"
        self._open = None
        self._state.in_flight = {}
        outputs = []
        for chunk in step.chunks:
            held = self._state.held.get(chunk.request)
            if held is None or held.life != chunk.life:
                continue
            end = held.num_computed + chunk.end - chunk.start
            self._tokens.compute(held.tokens, held.num_computed, end, held.blocks)
            held.num_computed = end
            if end == len(held.tokens):
                outputs.append(self._next_token(held))
        self.moves.drained()
        return outputs

    def like_steps(self, step: Step) -> LikeSteps | None:
        """The row of like steps that the open one begins; None if those after it may differ.

        Nothing ends or comes in before the last of them completes. As long as the row goes on this
        engine stands still, at its first step: `settle` has it catch up.
        """
        if step.admitted or step.preempted:
            return None  # the next step may differ: preempting frees blocks that nobody took yet
        assert step is self._open, "not the step that was scheduled last"
        return like_steps(self._state, step.started_at, len(step.chunks))

    def settle(self, row: LikeSteps) -> None:
        """Carry out those steps of a row that are over; the one under way is the open one then.

        The state is as if each had been completed and scheduled, tokens apart: they are zeros
        that no `TokenModel` has seen. Blocks may be others, as many. It is the first step that is
        given to `complete` in the end, though its chunks are further on by now.
        """
        count = row.settle()
        if count:
            carry_out(self._state, count)
        assert len(self._state.free) == row.num_free, "the row has counted other blocks"

    def load(self) -> InstanceLoad:
        """The load at this moment; costs O(running requests)."""
        state = self._state
        lacking = (len(held.tokens) - held.num_computed for held in state.running)
        num_prefill = sum(num for num in lacking if num > 1)
        return state.load(Blocks(len(state.free)), Tokens(num_prefill))

    def load_in(self, row: LikeSteps) -> InstanceLoad:
        """The load at the step of a row that is under way."""
        return self._state.load(row.num_free)

    def requests(self) -> list[RequestStatus]:
        """All requests held, in the order they came in."""
        return [_status(held) for held in self._state.held.values()]

    def running(self) -> list[RequestId]:
        """Those in the batch."""
        return [held.asked.request for held in self._state.running]

    def asked(self, request: RequestId) -> EngineRequest:
        """A request that is held, as it was asked for."""
        return self._state.held[request].asked

    def queue_head(self) -> Blocks | None:
        """Blocks that the first waiting request lacks; None: nobody waits."""
        queue = self._state.arrived or self._state.waiting
        return Blocks(self._state.demand(queue[0])) if queue else None

    def block_table(self, request: RequestId) -> tuple[int, ...]:
        """The blocks a request holds, in the order of its positions."""
        held = self._state.held.get(request)
        return tuple(held.blocks) if held is not None else ()

    # ------------------------------------------------------------------ planning

    def _continue_running(self, plan: _Plan) -> None:
        for held in list(self._state.running):
            if plan.budget == 0:
                return
            if held.state is not _RUNNING:
                continue  # preempted by one before it in this very loop
            self._run(held, plan)

    def _admit_arrived(self, plan: _Plan) -> None:
        """Those that came with their KV; they take blocks from others only where nothing runs."""
        while self._state.arrived and self._can_admit(plan):
            held = self._state.arrived[0]
            if plan.chunks and self._num_new(held, plan) > len(self._state.free):
                return
            self._start(held, plan)

    def _admit(self, plan: _Plan) -> None:
        while self._state.waiting and not self._state.arrived and self._can_admit(plan):
            held = self._state.waiting[0]
            if self._state.demand(held) + self._kept_free > len(self._state.free):
                return
            if self.config.is_prefill_first and len(held.tokens) > plan.budget:
                return
            self._start(held, plan)

    def _admit_late(self, plan: _Plan) -> None:
        """Into a step that has decodes, chunks of prompts; nothing where prefills go first."""
        if not self.config.is_prefill_first or not plan.chunks:
            self._admit(plan)

    @property
    def _kept_free(self) -> int:
        return self.config.watermark if self._state.running else 0

    def _can_admit(self, plan: _Plan) -> bool:
        return plan.budget > 0 and self._state.num_slots_taken < self.config.max_num_seqs

    def _start(self, held: Held, plan: _Plan) -> None:
        self._state.move(held, _RUNNING)
        self._run(held, plan)
        if held.state is _RUNNING:
            plan.admitted.append(held.asked.request)

    def _run(self, held: Held, plan: _Plan) -> None:
        """Give `held` a chunk of the step, taking blocks from the least urgent where needed."""
        start, free, tokens = held.num_computed, self._state.free, held.tokens
        while True:
            end = min(len(tokens), start + plan.budget)
            num_new = -(-end // self.config.block_size) - len(held.blocks)
            if num_new <= len(free):
                break
            victim = max([*self._state.running, *self._state.arrived], key=urgency)
            self._preempt(victim, plan)
            if victim is held:
                return
        if num_new > 0:
            held.blocks += self._state.take(num_new)
        is_decode = end - start == 1 and len(tokens) > len(held.asked.prompt)
        request = held.asked.request
        plan.chunks[request] = Chunk(request, held.life, start, end, is_decode)
        plan.budget -= end - start

    def _num_new(self, held: Held, plan: _Plan) -> int:
        """Blocks to be had before its next chunk can be computed; negative: it has more."""
        end = min(len(held.tokens), held.num_computed + plan.budget)
        return -(-end // self.config.block_size) - len(held.blocks)

    def _preempt(self, victim: Held, plan: _Plan) -> None:
        chunk = plan.chunks.pop(victim.asked.request, None)
        if chunk is not None:
            plan.budget += chunk.num_tokens
        self._state.move(victim, State.PREEMPTED)
        self.moves.lost(victim, "preempted")
        plan.preempted.append(victim.asked.request)

    def _duration(self, chunks: Sequence[Chunk]) -> Nanos:
        return self.config.step_time.of(*work_of(chunks))

    # ------------------------------------------------------------------ completing

    def _next_token(self, held: Held) -> TokenOutput:
        asked, tokens = held.asked, held.tokens
        num_outputs = len(tokens) - len(asked.prompt)
        banned = asked.banned_early if num_outputs < asked.min_tokens else _NOTHING
        token = self._tokens.sample(asked, len(tokens), held.blocks, banned)
        tokens.append(token)
        if token == asked.eos_token:
            return self._finish(held, TokenOutput(asked.request, token, Finish.STOP))
        if token in asked.stop_tokens:
            return self._finish(held, TokenOutput(asked.request, token, Finish.STOP, token))
        if num_outputs + 1 >= asked.max_tokens or len(tokens) >= self.config.max_model_len:
            return self._finish(held, TokenOutput(asked.request, token, Finish.LENGTH))
        return TokenOutput(asked.request, token)

    def _finish(self, held: Held, output: TokenOutput) -> TokenOutput:
        self._end(held, "finished")
        return output

    def _end(self, held: Held, why: str) -> None:
        self._state.move(held, State.GONE)
        self.moves.lost(held, why)


def work_of(chunks: Sequence[Chunk]) -> tuple[int, int, int, int, int]:
    """What is in a step, as `StepTime.of` wants to know it."""
    num_decodes = num_prefills = num_context = num_decode_context = num_square = 0
    for chunk in chunks:
        num_context += chunk.end
        if chunk.is_decode:
            num_decodes += 1
            num_decode_context += chunk.end
        else:
            num_prefills += chunk.end - chunk.start
            num_square += chunk.end**2 - chunk.start**2
    return num_prefills, num_decodes, num_context, num_square, num_decode_context


def _status(held: Held) -> RequestStatus:
    state = _STATES[held.state] if not held.is_watched else "leaving"
    return RequestStatus(held.asked, state, len(held.tokens), len(held.blocks))
