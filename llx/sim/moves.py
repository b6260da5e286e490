"""Moves in virtual time: the real machines of both ends, and what they command done in a model.

Nothing breaks here; what can go wrong is that a request ends, loses its blocks or finds no room
while it moves, and that somebody waits for too long. `llx.core.migration` knows the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, assert_never

from llx.core import epochs
from llx.core.engine_state import EngineRequest
from llx.core.migration import Cut, Progress, Reservation, SourceRules
from llx.core.migration import events as e
from llx.core.migration import source as source_end
from llx.core.migration import target as target_end
from llx.core.migration.source import Source, SourceState
from llx.core.migration.target import Target
from llx.core.model import Epoch, MigrationId, Nanos, RequestId
from llx.core.scheduler.commands import Move
from llx.core.scheduler.events import MoveOutcome
from llx.sim.engine import SimEngine
from llx.sim.kernel import Kernel, Timer
from llx.sim.links import Links

_SECOND: Final = 1_000_000_000
_OUTCOMES: Final = {
    SourceState.MOVED: MoveOutcome.MOVED,
    SourceState.KEPT: MoveOutcome.KEPT,
    SourceState.GONE: MoveOutcome.GONE,
}


class Arbiter(Protocol):
    """Whose a request is."""

    def ask(self, request: RequestId, engine: SimEngine, epoch: Epoch) -> tuple[Epoch, bool]:
        """The owner's epoch, and whether it is `engine`."""


@dataclass(frozen=True, slots=True)
class MoveConfig:
    """What a move costs.

    Attributes:
        block_bytes: Of one KV block.
        hop: Of a message, and of a word with an engine.
        rules: Of every source.
    """

    block_bytes: int
    hop: Nanos
    rules: SourceRules


@dataclass(slots=True, eq=False)
class _Moving:
    """One move, seen from both ends."""

    order: Move
    request: EngineRequest
    source: SimEngine
    target: SimEngine
    leaving: Source
    arriving: Target | None = None
    source_deadline: Timer | None = None
    target_deadline: Timer | None = None

    @property
    def migration(self) -> MigrationId:
        return MigrationId(f"{self.order.pool}/{self.order.move}")

    @property
    def epoch(self) -> Epoch:
        """Under which the target gets it."""
        return epochs.next_owner(self.leaving.epoch)


class Moves:
    """All moves that are under way.

    Args:
        kernel: The clock.
        links: What copies travel by.
        config: What they cost.
        arbiter: Whose word counts.
        ended: Told of every move that has ended.
    """

    def __init__(
        self,
        kernel: Kernel,
        links: Links,
        config: MoveConfig,
        arbiter: Arbiter,
        ended: Callable[[Move, RequestId, MoveOutcome], None],
    ) -> None:
        self._kernel = kernel
        self._links = links
        self._config = config
        self._arbiter = arbiter
        self._ended = ended
        self._leaving: dict[tuple[str, RequestId], _Moving] = {}
        """By source and request: the source's end is not over."""

    @property
    def num_open(self) -> int:
        """Moves whose source has not ended them."""
        return len(self._leaving)

    def is_leaving(self, source: SimEngine, request: RequestId) -> bool:
        """Whether a move of it from there is not over."""
        return (source.name, request) in self._leaving

    def start(
        self, order: Move, request: EngineRequest, source: SimEngine, target: SimEngine
    ) -> None:
        """Begin to move a request that is held at the source and not leaving it."""
        machine = Source(source.epochs[request.request], self._config.rules)
        moving = _Moving(order, request, source, target, machine)
        self._leaving[source.name, request.request] = moving
        self._do_at_source(moving, machine.start())

    def gone(self, source: SimEngine, request: RequestId, why: str) -> None:
        """A request that is leaving has ended at its source, or was preempted there."""
        moving = self._leaving.get((source.name, request))
        if moving is not None:
            self._tell_source(moving, e.IsGone(why))

    def ruled(self, source: SimEngine, request: RequestId, epoch: Epoch, *, is_yours: bool) -> None:
        """The arbiter has a word for the source of a request."""
        moving = self._leaving.get((source.name, request))
        if moving is not None:
            self._tell_source(moving, e.Ruled(epoch, is_yours))

    # ------------------------------------------------------------------ source

    def _tell_source(self, moving: _Moving, event: source_end.Event) -> None:
        """A hop later: whoever tells has its own work to finish first."""
        self._later(lambda: self._do_at_source(moving, moving.leaving.handle(event)))

    def _do_at_source(self, moving: _Moving, commands: list[source_end.Command]) -> None:
        for command in commands:
            self._at_source(moving, command)
        key = (moving.source.name, moving.request.request)
        if moving.leaving.is_over and key in self._leaving:
            del self._leaving[key]
            outcome = _OUTCOMES[moving.leaving.state]
            self._ended(moving.order, moving.request.request, outcome)

    def _at_source(self, moving: _Moving, command: source_end.Command) -> None:  # noqa: C901 a line per command
        request, source = moving.request.request, moving.source
        match command:
            case e.SetDeadline(after_s=after_s):
                _cancel(moving.source_deadline)
                moving.source_deadline = self._deadline(
                    after_s,
                    lambda: self._do_at_source(moving, moving.leaving.handle(e.TimedOut())),
                )
            case e.Begin():
                self._begin(moving)
            case e.Look(after_s=after_s):
                self._kernel.after(_nanos(after_s), partial(self._look, moving))
            case e.SendReserve(num_tokens=num_tokens):
                self._later(partial(self._arrive, moving, num_tokens))
            case e.SendExtend(num_tokens=num_tokens):
                self._tell_target(moving, e.ExtendAsked(num_tokens))
            case e.Copy():
                self._copy(moving, command)
            case e.CutRequest(max_tokens=max_tokens):
                self._cut(moving, max_tokens)
            case e.SendCommit(stage=stage, cut=cut):
                asked = e.CommitAsked(stage, cut.outputs, cut.num_computed)
                self._tell_target(moving, asked)
            case e.SendAbort(reason=reason):
                self._tell_target(moving, e.AbortAsked(reason))
            case e.AskArbiter():
                self._later(partial(self._ask, moving))
            case e.Resume(epoch=epoch):
                if epoch is not None and request in source.epochs:
                    source.epochs[request] = epoch
                source.act(lambda model: model.moves.resume(request))
            case e.Release():
                source.epochs.pop(request, None)
                source.act(lambda model: model.moves.release(request))
            case e.Unwatch():
                source.act(lambda model: model.moves.unwatch(request))
            case e.TellArbiter() | e.CloseCopy():
                pass  # for when somebody dies
            case _:
                assert_never(command)

    def _begin(self, moving: _Moving) -> None:
        begun = moving.source.act(lambda model: model.moves.begin(moving.request.request))
        self._tell_source(
            moving, e.CannotBegin(begun) if isinstance(begun, str) else e.HasBegun(begun)
        )

    def _look(self, moving: _Moving) -> None:
        request = moving.request.request
        self._has_progressed(
            moving, moving.source.look(lambda model: model.moves.progress(request))
        )

    def _has_progressed(self, moving: _Moving, progress: Progress | None) -> None:
        if progress is None:
            self._tell_source(moving, e.IsGone("it is there no more"))
        else:
            self._tell_source(moving, e.HasProgressed(progress))

    def _cut(self, moving: _Moving, max_tokens: int | None) -> None:
        request, source = moving.request.request, moving.source
        if max_tokens is not None:
            progress = source.look(lambda model: model.moves.progress(request))
            if progress is None or progress.num_tokens > max_tokens:
                self._has_progressed(moving, progress)
                return
        source.act(lambda model: model.moves.cut(request, partial(self._was_cut, moving)))

    def _was_cut(self, moving: _Moving, cut: Cut | None) -> None:
        self._tell_source(
            moving, e.IsGone("it ended before it was cut") if cut is None else e.HasCut(cut)
        )

    def _copy(self, moving: _Moving, copy: e.Copy) -> None:
        size_bytes = (copy.last - copy.first) * self._config.block_bytes
        arrives = self._links.copy(moving.source.name, moving.target.name, size_bytes)
        self._kernel.at(arrives, partial(self._has_arrived, moving, copy.stage, size_bytes))

    def _has_arrived(self, moving: _Moving, stage: int, size_bytes: int) -> None:
        self._tell_source(moving, e.HasCopied(stage, size_bytes))
        self._tell_target(moving, e.HasArrived(stage))

    def _ask(self, moving: _Moving) -> None:
        request = moving.request.request
        epoch, is_yours = self._arbiter.ask(request, moving.source, moving.leaving.epoch)
        self._tell_source(moving, e.Ruled(epoch, is_yours))

    # ------------------------------------------------------------------ target

    def _arrive(self, moving: _Moving, num_tokens: int) -> None:
        moving.arriving = Target(num_tokens)
        self._do_at_target(moving, moving.arriving.start())

    def _tell_target(self, moving: _Moving, event: target_end.Event) -> None:
        self._later(lambda: self._hear_at_target(moving, event))

    def _hear_at_target(self, moving: _Moving, event: target_end.Event) -> None:
        if moving.arriving is not None:
            self._do_at_target(moving, moving.arriving.handle(event))

    def _do_at_target(self, moving: _Moving, commands: list[target_end.Command]) -> None:
        for command in commands:
            self._at_target(moving, command)

    def _at_target(self, moving: _Moving, command: target_end.Command) -> None:
        target, migration = moving.target, moving.migration
        match command:
            case e.SetDeadline(after_s=after_s):
                _cancel(moving.target_deadline)
                moving.target_deadline = self._deadline(
                    after_s, partial(self._hear_at_target, moving, e.TimedOut())
                )
            case e.AskReserve(num_tokens=num_tokens):
                self._answer(
                    moving,
                    target.act(
                        lambda model: model.moves.reserve(migration, moving.request, num_tokens)
                    ),
                )
            case e.AskExtend(num_tokens=num_tokens):
                self._answer(
                    moving, target.act(lambda model: model.moves.extend(migration, num_tokens))
                )
            case e.SendReserved() | e.SendRefused() | e.SendCommitted() | e.SendDropped():
                self._tell_source(moving, _as_heard(command))
            case e.Apply(commit=commit):
                self._apply(moving, commit)
            case e.Fence():
                self._tell_target(moving, e.IsFenced())
            case e.Abandon():
                target.act(lambda model: model.moves.abandon(migration))
            case e.Drop():
                self._drop(moving)
            case e.FinishCopy():
                pass  # for when a connection breaks
            case _:
                assert_never(command)

    def _answer(self, moving: _Moving, answer: Reservation | str) -> None:
        self._tell_target(
            moving,
            e.CannotReserve(answer) if isinstance(answer, str) else e.HasReserved(answer),
        )

    def _apply(self, moving: _Moving, commit: e.CommitAsked) -> None:
        request, target = moving.request.request, moving.target
        refusal = target.act(
            lambda model: model.moves.commit(moving.migration, commit.outputs, commit.num_computed)
        )
        if not refusal:
            target.epochs[request] = moving.epoch
        self._tell_target(moving, e.CannotApply(refusal) if refusal else e.HasApplied())

    def _drop(self, moving: _Moving) -> None:
        request, target = moving.request.request, moving.target
        if target.epochs.get(request) == moving.epoch:
            del target.epochs[request]
            target.act(lambda model: model.abort(request))

    # ------------------------------------------------------------------ time

    def _later(self, action: Callable[[], None]) -> None:
        self._kernel.after(self._config.hop, action)

    def _deadline(self, after_s: float | None, action: Callable[[], None]) -> Timer | None:
        return None if after_s is None else self._kernel.after(_nanos(after_s), action)


def _as_heard(
    said: e.SendReserved | e.SendRefused | e.SendCommitted | e.SendDropped,
) -> source_end.Event:
    """What the target says, at the source."""
    match said:
        case e.SendReserved(reservation=reservation):
            return e.TargetReserved(reservation)
        case e.SendRefused(reason=reason):
            return e.TargetRefused(reason)
        case e.SendCommitted():
            return e.TargetCommitted()
        case e.SendDropped(reason=reason):
            return e.TargetLost(reason)
        case _:
            assert_never(said)


def _cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()


def _nanos(seconds: float) -> Nanos:
    return Nanos(round(seconds * _SECOND))
