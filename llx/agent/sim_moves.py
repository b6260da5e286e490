"""Live migration of the simulated engine's requests: `llx.core.engine_moves` behind the port.

What is added here is what the model does not know: who owns a request and under which epoch, the
frames of its ADD, and what its front end is still to be told. All on the core thread, but for
`on_core` and `prepare`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llx.agent.engine_codec import EventType, PrefillStats, decode_request, event
from llx.agent.ownership import Ownership
from llx.agent.sim_request import Live, SimRequest, read_request
from llx.core.engine_model import EngineModel, RequestStatus
from llx.core.engine_state import EngineConfig
from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, MigrationId, RequestId
from llx.core.token_model import Vocabulary
from llx.errors import WireError
from llx.ports import IS_LEAVING, NOT_HERE, Frame
from llx.wire import RequestView, Reserve


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that is to arrive, read and found servable."""

    name: str
    payload: tuple[bytes, ...]
    request: SimRequest


class SimMoves:
    """Requests that leave and arrive; implements `llx.ports.MigratingEngine`.

    `watch`'s listener and `cut`'s `done` are never called from within a call of this class.

    Args:
        config: The engine's size.
        model: The engine.
        ownership: Who owns what is held.
        live: What is held; the engine's own table.
        vocabulary: What requests may ask of.
        post: Runs an action on the core thread.
        forget: Ends requests without an output.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: EngineModel,
        ownership: Ownership,
        live: dict[RequestId, Live],
        *,
        block_bytes: int,
        vocabulary: Vocabulary,
        post: Callable[[Callable[[], None]], None],
        forget: Callable[[list[RequestId]], None],
    ) -> None:
        self._config = config
        self._model = model
        self._ownership = ownership
        self._live = live
        self._block_bytes = block_bytes
        self._vocabulary = vocabulary
        self._post = post
        self._forget = forget
        self._arriving: dict[MigrationId, _Prepared] = {}

    def on_core(self, action: Callable[[], None]) -> None:
        """Run `action` on the core thread between two steps, in order; wakes an idle engine."""
        self._post(action)

    def watch(self, listener: Callable[[RequestId, str], None]) -> None:
        """Whom to tell that a watched request is no longer there, and why."""
        self._model.moves.watch(listener)

    def set_priority(self, request: RequestId, priority: int) -> bool:
        """Serve a request by another priority from now on. False: it is not here, or was cut."""
        return self._model.set_priority(request, priority)

    def pin(self, request: RequestId, words: str) -> str:
        """Keep a request from being moved; returns why not, if it cannot be kept."""
        if words and self._model.moves.is_leaving(request):
            return IS_LEAVING
        return "" if self._ownership.pin(request, words) else NOT_HERE

    # ------------------------------------------------------------------ source

    def begin(self, request: RequestId) -> Begun | str:
        """Watch a request that is to leave; a string says why it cannot."""
        if pin := self._ownership.pin_of(request):
            return f"pinned: {pin}"
        progress = self._model.moves.begin(request)
        if isinstance(progress, str):
            return progress
        live, epoch = self._live[request], self._ownership.epoch_of(request)
        assert epoch is not None, f"{request} has no owner"
        return Begun(progress, live.peer, epoch, live.name, live.payload)

    def progress(self, request: RequestId) -> Progress | None:
        """How far it is by now; None if it ended or was preempted since `begin`."""
        return self._model.moves.progress(request)

    def cut(self, request: RequestId, done: Callable[[Cut | None], None]) -> None:
        """Take it out of the batch; `done` is called once its last token has left."""
        self._model.moves.cut(request, done)

    def resume(self, request: RequestId, epoch: Epoch) -> None:
        """Put a request that was cut back into the batch, under that epoch."""
        if self._model.moves.resume(request):
            self._ownership.set_epoch(request, epoch)

    def release(self, request: RequestId) -> None:
        """Free a request that was cut; nothing more is said of it to anybody."""
        if self._model.moves.release(request):
            self._forget([request])

    def unwatch(self, request: RequestId) -> None:
        """It stays after all, and was not cut."""
        self._model.moves.unwatch(request)

    # ------------------------------------------------------------------ target

    def prepare(self, header: Reserve, payload: Sequence[Frame]) -> object | str:
        """Read a request that is to arrive, off the core thread; a string refuses it."""
        frames = tuple(bytes(frame) for frame in payload)
        try:
            message = decode_request(frames)
        except WireError as error:
            return error.message
        if message.request_id != header.request:
            return f"the payload is of {message.request_id!r}"
        request = read_request(
            message, max_model_len=self._config.max_model_len, vocabulary=self._vocabulary
        )
        return request if isinstance(request, str) else _Prepared(header.name, frames, request)

    def reserve(
        self, migration: MigrationId, prepared: object, num_tokens: int, *, reuse_prefix: bool
    ) -> Reservation | str:
        """Blocks for `num_tokens` tokens of it. There is no prefix cache to reuse."""
        assert isinstance(prepared, _Prepared), "prepared by another engine"
        outcome = self._model.moves.reserve(migration, prepared.request.asked, num_tokens)
        if isinstance(outcome, Reservation):
            self._arriving[migration] = prepared
        return outcome

    def extend(self, migration: MigrationId, num_tokens: int) -> Reservation | str:
        """Allocate more; a string refuses, and what was reserved stays."""
        return self._model.moves.extend(migration, num_tokens)

    def commit(
        self,
        migration: MigrationId,
        peer: int,
        epoch: Epoch,
        outputs: Sequence[int],
        num_computed: int,
    ) -> str:
        """Own it: `peer` gets its outputs under `epoch` from here on. A string says why not."""
        prepared = self._arriving.pop(migration, None)
        refusal = self._model.moves.commit(migration, outputs, num_computed)
        if refusal or prepared is None:
            return refusal
        asked = prepared.request.asked
        is_owned = self._ownership.adopt(asked.request, peer, epoch, len(outputs))
        assert is_owned, f"{asked.request} has an owner, yet the engine does not hold it"
        live = Live(peer, prepared.name, prepared.payload, prepared.request.num_logprobs)
        if outputs:
            live.prefill_stats = None  # they went with the first output, at the source
        else:
            live.prefill_stats = PrefillStats(len(asked.prompt), len(asked.prompt))
            live.events.append(event(EventType.QUEUED))
        self._live[asked.request] = live
        return ""

    def abandon(self, migration: MigrationId) -> None:
        """Free what was reserved; nothing if there is nothing."""
        self._arriving.pop(migration, None)
        self._model.moves.abandon(migration)

    # ------------------------------------------------------------------ what is here

    def requests(self) -> list[RequestView]:
        """`MigratingEngine`."""
        return [
            _view(
                each,
                self._live[each.asked.request],
                self._block_bytes,
                self._ownership.pin_of(each.asked.request),
            )
            for each in self._model.requests()
        ]


def _view(status: RequestStatus, live: Live, block_bytes: int, pinned: str) -> RequestView:
    asked = status.asked
    return RequestView(
        id=asked.request,
        name=live.name,
        peer=live.peer,
        priority=asked.priority,
        state=status.state,
        num_prompt=len(asked.prompt),
        num_tokens=status.num_tokens,
        num_blocks=status.num_blocks,
        size_bytes=status.num_blocks * block_bytes,
        arrival=asked.arrival / 1e9,
        pinned=pinned,
    )
