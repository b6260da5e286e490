"""Requests that leave an engine and requests that arrive in it, KV and all.

    leaves    begin ─► progress … ─► cut ─► release                    blocks freed
                                      └───► resume                     goes on as before
    arrives   reserve ─► extend … ─► commit ─► ARRIVED ─► running      with its KV
                              │          └──► WAITING                  without: num_computed == 0
                              └────► abandon                           blocks freed

A cut while a step of the request is open takes effect when that step completes: its token counts.
What arrives with KV goes on like a preempted request whose KV came back: ahead of the waiting ones,
as soon as there is a place in the batch; until then it waits with its blocks.

Nobody is called back in the middle of a call. What is to be told is kept until the driver calls
`EngineMoves.tell`, which it does between two steps, once a step's outputs are out: so the last
token of a request that was cut has left before anybody can go on with it elsewhere.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from llx.core.engine_state import EngineRequest, EngineState, Held, State
from llx.core.migration import Cut, Progress, Reservation
from llx.core.model import MigrationId, RequestId, blocks_for

Lost = Callable[[RequestId, str], None]
Done = Callable[[Cut | None], None]


@dataclass(slots=True)
class _Arriving:
    """A request that may yet come; it is in no queue."""

    asked: EngineRequest
    num_tokens: int = 0
    blocks: list[int] = field(default_factory=list)

    def reservation(self) -> Reservation:
        return Reservation(self.num_tokens, tuple(self.blocks), num_reused=0)


def _ignore(_request: RequestId, _why: str) -> None:
    """Nobody watches."""


class EngineMoves:
    """The moves of one engine; see `llx.ports.MigratingEngine` for what each one means."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._draining: dict[RequestId, Done] = {}
        self._arriving: dict[MigrationId, _Arriving] = {}
        self._news: deque[Callable[[], None]] = deque()
        self._listener: Lost = _ignore

    def watch(self, listener: Lost) -> None:
        """Whom `tell` tells of watched requests that have ended or lost their blocks."""
        self._listener = listener

    def tell(self) -> bool:
        """Call back whoever is to hear something; False if there was nothing to tell."""
        has_news = bool(self._news)
        while self._news:
            self._news.popleft()()
        return has_news

    # ------------------------------------------------------------------ leaving

    def begin(self, request: RequestId) -> Progress | str:
        """Watch a request that is to leave; a string says why it cannot."""
        held = self._state.held.get(request)
        if held is None:
            return "it is not here"
        if held.is_watched:
            return "it is leaving already"
        held.is_watched = True
        return _progress(held)

    def progress(self, request: RequestId) -> Progress | None:
        """How far a watched request is; None if it is watched no more."""
        held = self._watched(request)
        return _progress(held) if held is not None else None

    def cut(self, request: RequestId, done: Done) -> None:
        """Take a watched request out of the batch; `tell` calls `done` when it is out."""
        assert not self.is_cut(request), f"{request} was cut before"
        held = self._watched(request)
        if held is None:
            self._news.append(partial(done, None))
        elif self._state.is_in_flight(held):
            self._draining[request] = done
        else:
            self._take_out(held, done)

    def is_leaving(self, request: RequestId) -> bool:
        """Whether it is being moved away."""
        return self._watched(request) is not None

    def is_cut(self, request: RequestId) -> bool:
        """Whether it is out of the batch, with its blocks still here."""
        held = self._state.held.get(request)
        return held is not None and held.state is State.CUT

    def resume(self, request: RequestId) -> bool:
        """Put a request that was cut back where it was. False if it has ended meanwhile."""
        held = self._watched(request)
        if held is None:
            return False
        self._draining.pop(request, None)
        held.is_watched = False
        if held.state is State.CUT:
            self._state.move(held, held.cut_from)
        return True

    def release(self, request: RequestId) -> bool:
        """Free a request that was cut, and tell nobody. False if it has ended meanwhile."""
        held = self._watched(request)
        if held is None:
            return False
        self._draining.pop(request, None)
        self._state.move(held, State.GONE)
        return True

    def unwatch(self, request: RequestId) -> None:
        """It stays after all, and was not cut."""
        assert not self.is_cut(request), f"{request} was cut: resume or release it"
        self.resume(request)

    # ------------------------------------------------------------------ arriving

    def reserve(
        self, migration: MigrationId, asked: EngineRequest, num_tokens: int
    ) -> Reservation | str:
        """Blocks for `num_tokens` tokens of a request that is in no queue; a string refuses."""
        if migration in self._arriving:
            return "it is reserved for already"
        if asked.request in self._state.held:
            return "still held here"
        if any(each.asked.request == asked.request for each in self._arriving.values()):
            return "it is arriving already, by another migration"
        self._arriving[migration] = _Arriving(asked)
        outcome = self.extend(migration, num_tokens)
        if isinstance(outcome, str):
            del self._arriving[migration]
        return outcome

    def extend(self, migration: MigrationId, num_tokens: int) -> Reservation | str:
        """Blocks for `num_tokens` tokens in all; a string refuses, and what there was stays.

        Those that have blocks are left one block each, and what their prefills still need.
        """
        arriving = self._arriving.get(migration)
        if arriving is None:
            return "nothing is reserved for it"
        config = self._state.config
        if num_tokens > config.max_model_len:
            return f"{num_tokens} tokens are more than {config.max_model_len}"
        num_new = blocks_for(num_tokens, config.block_size) - len(arriving.blocks)
        if num_new > 0:
            num_spare = len(self._state.free) - self._headroom()
            if num_new > num_spare:
                return f"no room: {num_new} blocks wanted, {max(0, num_spare)} to spare"
            arriving.blocks += self._state.take(num_new)
        arriving.num_tokens = max(arriving.num_tokens, num_tokens)
        return arriving.reservation()

    def commit(self, migration: MigrationId, outputs: Sequence[int], num_computed: int) -> str:
        """Take the request in, with the KV of its first `num_computed` tokens in its blocks.

        Returns why that cannot be, and frees what was reserved; else the empty string.
        """
        arriving = self._arriving.pop(migration, None)
        if arriving is None:
            return "nothing is reserved for it"
        if refusal := self._refusal(arriving, len(outputs), num_computed):
            self._state.give_back(arriving.blocks)
            return refusal
        held = self._state.hold(arriving.asked, tuple(outputs))
        held.blocks, held.num_computed = arriving.blocks, num_computed
        self._state.move(held, State.ARRIVED if num_computed else State.WAITING)
        return ""

    def take_over(self, asked: EngineRequest, outputs: Sequence[int]) -> str:
        """Go on with a request that has lost its instance, and its KV, after these outputs.

        Returns why that cannot be; else the empty string.
        """
        refusal = self._refusal(_Arriving(asked), len(outputs), 0)
        if not refusal:
            self._state.move(self._state.hold(asked, tuple(outputs)), State.WAITING)
        return refusal

    def abandon(self, migration: MigrationId) -> None:
        """Free what was reserved; nothing if there is nothing."""
        arriving = self._arriving.pop(migration, None)
        if arriving is not None:
            self._state.give_back(arriving.blocks)

    # ------------------------------------------------------------------ the engine's own calls

    def drained(self) -> None:
        """The open step is complete: what was to be cut out of it is."""
        for request in list(self._draining):
            held = self._state.held[request]
            self._take_out(held, self._draining.pop(request))

    def lost(self, held: Held, why: str) -> None:
        """A request has ended or was preempted."""
        request = held.asked.request
        if held.is_watched:
            held.is_watched = False
            done = self._draining.pop(request, None)
            if done is not None:
                self._news.append(partial(done, None))
            self._news.append(lambda: self._listener(request, why))

    # ------------------------------------------------------------------

    def _watched(self, request: RequestId) -> Held | None:
        held = self._state.held.get(request)
        return held if held is not None and held.is_watched else None

    def _take_out(self, held: Held, done: Done) -> None:
        outputs = tuple(held.tokens[len(held.asked.prompt) :])
        self._state.move(held, State.CUT)
        cut = Cut(outputs, held.num_computed, tuple(held.blocks), held.asked.priority)
        self._news.append(partial(done, cut))

    def _headroom(self) -> int:
        state = self._state
        queues = (state.running, state.arrived, state.cut)
        with_blocks = [held for queue in queues for held in queue if held.blocks]
        prefills = (held for held in with_blocks if held.num_computed < len(held.tokens) - 1)
        return len(with_blocks) + sum(state.demand(held) for held in prefills)

    def _refusal(self, arriving: _Arriving, num_outputs: int, num_computed: int) -> str:
        asked, config = arriving.asked, self._state.config
        num_tokens = len(asked.prompt) + num_outputs
        if asked.request in self._state.held:
            return "still held here"
        if num_outputs >= asked.max_tokens or num_tokens >= config.max_model_len:
            return f"it is at its end, with {num_outputs} tokens of output"
        num_places = min(num_tokens - 1, len(arriving.blocks) * config.block_size)
        if not 0 <= num_computed <= num_places:
            return f"KV of {num_computed} tokens, of {num_places} at most"
        return ""


def _progress(held: Held) -> Progress:
    where = held.cut_from if held.state is State.CUT else held.state
    return Progress(
        num_tokens=len(held.tokens),
        num_prompt=len(held.asked.prompt),
        num_settled=held.num_computed,
        blocks=tuple(held.blocks),
        is_waiting=where in (State.WAITING, State.PREEMPTED),
    )
