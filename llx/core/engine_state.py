"""What an engine holds: requests, their KV blocks, their queues, and the load that follows.

Bookkeeping without decisions: who runs next is `llx.core.engine_model`'s, who leaves or arrives
`llx.core.engine_moves`'. Every request is in one state, and in the queue of that state:

    state       queue              KV blocks   in the load
    WAITING     waiting            none        waiting, with what it demands
    PREEMPTED   waiting            none        waiting, preempted
    ARRIVED     arrived            yes         waiting, demands what it has not
    RUNNING     running            yes         running
    CUT         cut                if it had   running

Blocks reserved for a request that may yet arrive are simply not free.
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, assert_never

from llx.core.fixed import fixed
from llx.core.model import Blocks, ClassLoad, InstanceLoad, Nanos, RequestId, Tokens, blocks_for


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long a step takes: linear terms, and those that a calibrated model needs besides.

    Attributes:
        base_ns: Of any step.
        prefill_token_ns: For each prompt token that is computed.
        decode_ns: For each request that decodes.
        context_ktoken_ns: For a thousand tokens that attention reads.
        prefill_base_ns: Instead of `base_ns`, of a step in which nothing decodes; None: the same.
        prefill_square_ns: For each pair of a prompt token and itself or one before it, twice:
            attention within a prompt of n tokens costs n² of it.
        weights_ns: Reading the weights once; a step's arithmetic hides behind it …
        token_ns: … until it takes longer, so much for each token computed.
        mixed_decode_ns: More for each request that decodes in a step which computes prompts, too …
        mixed_context_ktoken_ns: … and for a thousand tokens that their attention reads: kernels
            made for prompts read single rows slower than those made for them.
    """

    base_ns: int
    prefill_token_ns: int
    decode_ns: int
    context_ktoken_ns: int
    prefill_base_ns: int | None = None
    prefill_square_ns: int = 0
    weights_ns: int = 0
    token_ns: int = 0
    mixed_decode_ns: int = 0
    mixed_context_ktoken_ns: int = 0

    def of(
        self,
        num_prefill_tokens: int,
        num_decodes: int,
        num_context_tokens: int,
        num_square_tokens: int = 0,
        num_decode_context_tokens: int = 0,
    ) -> Nanos:
        """Duration of a step of that many prefill tokens, decodes and tokens of context.

        `num_square_tokens`: over the prefills, the sum of end² - start².
        `num_decode_context_tokens`: what of the context the decodes read; it counts beside
        prefills.
        """
        is_prefill = self.prefill_base_ns is not None and not num_decodes
        base_ns = self.prefill_base_ns if is_prefill else self.base_ns
        assert base_ns is not None
        is_mixed = num_prefill_tokens and num_decodes
        return Nanos(
            base_ns
            + (self._mixed(num_decodes, num_decode_context_tokens) if is_mixed else 0)
            + max(self.weights_ns, self.token_ns * (num_prefill_tokens + num_decodes))
            + self.prefill_token_ns * num_prefill_tokens
            + self.prefill_square_ns * num_square_tokens
            + self.decode_ns * num_decodes
            + self.context_ktoken_ns * num_context_tokens // 1000
        )

    def _mixed(self, num_decodes: int, num_context_tokens: int) -> int:
        growth = self.mixed_context_ktoken_ns * num_context_tokens // 1000
        return self.mixed_decode_ns * num_decodes + growth


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """An engine's size and ways. A request of `max_model_len` tokens must fit in the blocks.

    `is_prefill_first`: as vLLM was at first. Whole prompts are computed in steps of their own, in
    which nobody decodes, whenever one can be admitted; else prompts are cut into chunks that share
    a step with the decodes. `watermark`: blocks that admission leaves free, unless nothing runs.
    """

    num_blocks: Blocks
    block_size: Tokens
    max_num_seqs: int
    max_num_batched_tokens: Tokens
    max_model_len: Tokens
    step_time: StepTime
    is_prefill_first: bool = False
    watermark: Blocks = Blocks(0)

    def __post_init__(self) -> None:
        assert min(self.num_blocks, self.block_size, self.max_num_seqs) > 0, self
        assert self.max_num_batched_tokens > 0, self
        assert blocks_for(self.max_model_len, self.block_size) <= self.num_blocks, (
            f"{self.num_blocks} blocks cannot hold one request of {self.max_model_len} tokens"
        )
        is_whole = self.max_num_batched_tokens >= self.max_model_len
        assert is_whole or not self.is_prefill_first, "a prompt may not fit in a step"


@fixed
class EngineRequest:
    """A request as the engine gets it.

    `prompt` may be bytes where nobody cares what its tokens are: the engine then keeps them all in
    bytes. `priority`: lower is more urgent. `arrival` orders requests of one priority. The request
    ends at `max_tokens`, at `eos_token` or at a token of `stop_tokens`; the first `min_tokens` are
    none of `banned_early`.
    """

    request: RequestId
    prompt: tuple[int, ...] | bytes
    max_tokens: int
    arrival: Nanos
    priority: int = 0
    min_tokens: int = 0
    eos_token: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    banned_early: frozenset[int] = frozenset()
    seed: int = 0


@fixed
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


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    PREEMPTED = "preempted"
    ARRIVED = "arrived"
    """Came with its KV and waits for its turn in the batch, ahead of all that wait without."""
    RUNNING = "running"
    CUT = "cut"
    """On its way out: in no batch, its blocks kept as they are."""
    GONE = "gone"


_WAITING: Final = State.WAITING
_PREEMPTED: Final = State.PREEMPTED
_ARRIVED: Final = State.ARRIVED
_RUNNING: Final = State.RUNNING
_CUT: Final = State.CUT
_GONE: Final = State.GONE
"""As names of their own: Python 3.11 takes long to look up an enum's member."""


@dataclass(slots=True, eq=False)
class Held:
    """A request in the engine. Tokens 0 … num_computed have their KV in `blocks`.

    `life` tells apart two requests of one id. `cut_from` is where it was before CUT.
    `is_watched`: it is being moved away.
    """

    asked: EngineRequest
    life: int
    tokens: list[int] | bytearray
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    state: State = State.GONE
    cut_from: State = State.GONE
    is_watched: bool = False

    @property
    def num_outputs(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.asked.prompt)


@dataclass(slots=True)
class _Tally:
    """What one priority class has here."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_demand: int = 0


def urgency(held: Held) -> tuple[int, int, int]:
    """Sort key: the most urgent first."""
    return (held.asked.priority, held.asked.arrival, held.life)


class EngineState:
    """The requests and blocks of one engine. `waiting` and `arrived` are in order of urgency."""

    def __init__(self, config: EngineConfig) -> None:
        self.config: Final = config
        self.free = list(range(config.num_blocks - 1, -1, -1))
        self.held: dict[RequestId, Held] = {}
        self.running: list[Held] = []
        self.waiting: list[Held] = []
        self.arrived: list[Held] = []
        self.cut: list[Held] = []
        self.in_flight: Mapping[RequestId, Chunk] = {}
        """What the open step computes."""
        self._tallies: dict[int, _Tally] = {}
        self._waiting_demand = 0
        self._waiting_tokens = 0
        self._num_preempted = 0
        self._next_life = 0

    def hold(self, asked: EngineRequest, outputs: tuple[int, ...] = ()) -> Held:
        """Take a request in; its state is still to be set by `move`."""
        assert asked.request not in self.held, f"{asked.request} is held already"
        assert 1 <= len(asked.prompt) < self.config.max_model_len, "prompt does not fit"
        assert asked.max_tokens >= 1, "a request asks for one token at least"
        prompt = asked.prompt
        tokens = bytearray(prompt) if isinstance(prompt, bytes) else list(prompt)
        tokens.extend(outputs)
        held = Held(asked, self._next_life, tokens)
        self._next_life += 1
        self.held[asked.request] = held
        return held

    def move(self, held: Held, to: State) -> None:
        """Bring a request into another state; into one without blocks, it gives its blocks back."""
        self._leave(held)
        if to is _GONE or to is _WAITING or to is _PREEMPTED:
            self.give_back(held.blocks)
            held.blocks = []
            held.num_computed = 0
        elif to is _CUT:
            held.cut_from = held.state
        held.state = to
        self._enter(held)

    def reclass(self, held: Held, priority: int) -> None:
        """Give a request another priority, and in a queue the place that goes with it."""
        asked = replace(held.asked, priority=priority)
        if held.state in (State.RUNNING, State.CUT):  # there it keeps its place
            self._count(held, -1)
            held.asked = asked
            self._count(held, 1)
        else:
            self._leave(held)
            held.asked = asked
            self._enter(held)

    def take(self, count: int) -> list[int]:
        """Blocks off the free ones."""
        if count == 1:
            return [self.free.pop()]
        taken = self.free[: -count - 1 : -1]
        del self.free[len(self.free) - count :]
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Blocks become free again."""
        self.free.extend(reversed(blocks))

    def is_in_flight(self, held: Held) -> bool:
        """Whether the open step computes for it."""
        chunk = self.in_flight.get(held.asked.request)
        return chunk is not None and chunk.life == held.life

    def demand(self, held: Held) -> int:
        """Blocks that its tokens so far need beyond those it has."""
        return max(0, blocks_for(len(held.tokens), self.config.block_size) - len(held.blocks))

    @property
    def num_slots_taken(self) -> int:
        """Places in the batch: a request that was cut out of it keeps its own, to come back to."""
        num_cut = sum(held.cut_from is State.RUNNING for held in self.cut) if self.cut else 0
        return len(self.running) + num_cut

    @property
    def num_reserved(self) -> int:
        """Blocks that are neither free nor any request's. Costs O(requests)."""
        num_held = sum(len(held.blocks) for held in self.held.values())
        return self.config.num_blocks - len(self.free) - num_held

    def load(self, num_free: Blocks, num_prefill: Tokens = Tokens(0)) -> InstanceLoad:
        """The load; costs O(priority classes).

        Args:
            num_free: Free blocks.
            num_prefill: Tokens of running requests that are to be computed before their next one.
        """
        return InstanceLoad(
            total=self.config.num_blocks,
            free=num_free,
            block_size=self.config.block_size,
            num_running=len(self.running) + len(self.cut),
            num_waiting=len(self.waiting) + len(self.arrived),
            waiting_demand=Blocks(self._waiting_demand),
            waiting_tokens=Tokens(self._waiting_tokens + num_prefill),
            num_preempted=self._num_preempted,
            classes={
                priority: ClassLoad(t.num_running, t.num_waiting, Blocks(t.waiting_demand))
                for priority, t in self._tallies.items()
            },
        )

    # ------------------------------------------------------------------ queues

    def _enter(self, held: Held) -> None:
        state = held.state
        if state is _RUNNING:
            self.running.append(held)
        elif state is _GONE:
            del self.held[held.asked.request]
            return
        elif state is _WAITING or state is _PREEMPTED:
            bisect.insort(self.waiting, held, key=urgency)
        elif state is _ARRIVED:
            bisect.insort(self.arrived, held, key=urgency)
        elif state is _CUT:
            self.cut.append(held)
        else:
            assert_never(state)
        self._count(held, 1)

    def _leave(self, held: Held) -> None:
        state = held.state
        if state is _GONE:
            return  # it has only just been taken in
        if state is _RUNNING:
            self.running.remove(held)
        elif state is _WAITING or state is _PREEMPTED:
            _take_out(self.waiting, held)
        elif state is _ARRIVED:
            _take_out(self.arrived, held)
        elif state is _CUT:
            self.cut.remove(held)
        else:
            assert_never(state)
        self._count(held, -1)

    def _count(self, held: Held, sign: int) -> None:
        priority, state = held.asked.priority, held.state
        tally = self._tallies.get(priority)
        if tally is None:
            tally = self._tallies[priority] = _Tally()
        if state is _RUNNING or state is _CUT:
            tally.num_running += sign
        else:
            tally.num_waiting += sign
            demand = sign * self.demand(held)
            tally.waiting_demand += demand
            self._waiting_demand += demand
            self._waiting_tokens += sign * (len(held.tokens) - held.num_computed)
            self._num_preempted += sign * (state is _PREEMPTED)
        if not tally.num_running and not tally.num_waiting:
            del self._tallies[priority]


def _take_out(queue: list[Held], held: Held) -> None:
    index = bisect.bisect_left(queue, urgency(held), key=urgency)
    assert queue.pop(index) is held, "the queue is out of order"
