"""The target's end of a migration.

    preparing ─ reserve ─► holding ─ commit ─► committing ─ last stage ─► applying ─► owning
                              └──────────── any failure ──────────► fencing ─► ended

The target owns the request from the moment its engine has applied the commit, and never otherwise.
Whatever it refuses it will never own; blocks are freed only when nothing can be written any more.
"""

from enum import Enum
from typing import Final

from llx.core.migration.events import (
    Abandon,
    AbortAsked,
    Apply,
    ArbiterLost,
    AskExtend,
    AskReserve,
    CannotApply,
    CannotReserve,
    CommitAsked,
    Drop,
    ExtendAsked,
    Fence,
    FinishCopy,
    HasApplied,
    HasArrived,
    HasReserved,
    IsBroken,
    IsFenced,
    IsNotReady,
    SendCommitted,
    SendDropped,
    SendRefused,
    SendReserved,
    SetDeadline,
    SourceLost,
    TimedOut,
)
from llx.core.migration.table import Rule, Table, make_table

Event = (
    HasReserved
    | CannotReserve
    | IsNotReady
    | ExtendAsked
    | HasArrived
    | IsBroken
    | CommitAsked
    | HasApplied
    | CannotApply
    | AbortAsked
    | SourceLost
    | ArbiterLost
    | IsFenced
    | TimedOut
)
Command = (
    AskReserve
    | AskExtend
    | SendReserved
    | SendRefused
    | Apply
    | SendCommitted
    | SendDropped
    | FinishCopy
    | Fence
    | Abandon
    | Drop
    | SetDeadline
)

_PREPARE_S = 60.0
_NOT_READY_S = 0.005
_SILENCE_S = 130.0
"""Longer than any stage: a source that is silent for so long has forgotten the migration."""
_NO_ARBITER = "the gateway that holds the stream is not connected here"


class TargetState(Enum):
    """Where the target's end is. `owning`, `dropped` and `ended` are ends.

    `ended`: it never has owned the request and never will, and says so to whoever asks; `dropped`:
    it has, and no word of it may lead the source to think otherwise.
    """

    PREPARING = "preparing"
    HOLDING = "holding"
    EXTENDING = "extending"
    COMMITTING = "committing"
    APPLYING = "applying"
    DROPPING = "dropping"
    OWNING = "owning"
    DROPPED = "dropped"
    FENCING = "fencing"
    ENDED = "ended"


T = TargetState
ENDS: Final = frozenset({T.OWNING, T.DROPPED, T.ENDED})


class Target:
    """One migration at its target. `handle` is the only way to change it.

    Args:
        num_tokens: What the source wants blocks for.
    """

    def __init__(self, num_tokens: int) -> None:
        self.state = T.PREPARING
        self.reason = ""
        """Why it was refused or given up."""
        self._num_tokens = num_tokens
        self._next_stage = 0
        self._commit: CommitAsked | None = None
        self._commands: list[Command] = []

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing more of its own."""
        return self.state in ENDS

    def start(self) -> list[Command]:
        """The first commands."""
        return [AskReserve(self._num_tokens, 0.0), SetDeadline(_PREPARE_S)]

    def handle(self, event: Event) -> list[Command]:
        """Take an event in; returns what is to be done, in order."""
        rule = TARGET_TABLE.get((self.state, type(event)))
        if rule is None:
            return []
        self._commands = []
        state = rule.act(self, event) or self.state
        assert state in rule.ways(self.state), f"{self.state} may not become {state} by {event}"
        if state in ENDS and state is not self.state:
            self._do(SetDeadline(None))
            self._commit = None  # with every token so far; what is over is remembered for long
        self.state = state
        commands, self._commands = self._commands, []
        return commands

    def _do(self, *commands: Command) -> None:
        self._commands.extend(commands)

    # ------------------------------------------------------------------ blocks

    def _reserved(self, event: HasReserved) -> TargetState:
        self._do(SendReserved(event.reservation), SetDeadline(_SILENCE_S))
        return T.HOLDING

    def _not_reserved(self, event: CannotReserve) -> TargetState:
        self.reason = event.reason
        self._do(SendRefused(event.reason))
        return T.ENDED

    def _not_ready(self, _: IsNotReady) -> None:
        self._do(AskReserve(self._num_tokens, _NOT_READY_S))

    def _extend(self, event: ExtendAsked) -> TargetState:
        self._do(AskExtend(event.num_tokens), SetDeadline(_SILENCE_S))
        return T.EXTENDING

    def _not_extended(self, event: CannotReserve) -> TargetState:
        return self._refuse(event.reason)

    # ------------------------------------------------------------------ copy and commit

    def _arrived(self, event: HasArrived) -> None:
        if event.stage == self._next_stage:
            self._next_stage += 1
            self._do(SetDeadline(_SILENCE_S))

    def _commit_asked(self, event: CommitAsked) -> TargetState:
        self._commit = event
        if event.stage < self._next_stage:
            return self._apply()
        self._do(SetDeadline(_SILENCE_S))
        return T.COMMITTING

    def _arrived_last(self, event: HasArrived) -> TargetState | None:
        self._arrived(event)
        assert self._commit is not None, "the commit came before"
        return self._apply() if self._commit.stage < self._next_stage else None

    def _apply(self) -> TargetState:
        assert self._commit is not None, "the commit came before"
        self._do(Apply(self._commit), FinishCopy(), SetDeadline(None))
        return T.APPLYING

    def _applied(self, _: HasApplied) -> TargetState:
        self._do(SendCommitted())
        return T.OWNING

    def _not_applied(self, event: CannotApply) -> TargetState:
        return self._refuse(event.reason)

    def _committed_again(self, _: CommitAsked) -> None:
        self._do(SendCommitted())

    # ------------------------------------------------------------------ giving up

    def _refuse(self, reason: str) -> TargetState:
        self._do(SendRefused(reason))
        return self._fence(reason)

    def _fence(self, reason: str) -> TargetState:
        self.reason = reason
        self._do(Fence(), SetDeadline(None))
        return T.FENCING

    def _broken(self, event: IsBroken) -> TargetState:
        return self._refuse(event.reason)

    def _aborted(self, event: AbortAsked) -> TargetState:
        return self._fence(event.reason)

    def _source_lost(self, _: SourceLost) -> TargetState:
        return self._fence("the source is lost")

    def _arbiter_lost(self, _: ArbiterLost) -> TargetState:
        return self._refuse(_NO_ARBITER)

    def _timed_out(self, _: TimedOut) -> TargetState:
        return self._refuse(f"the source was silent for too long ({self.state.value})")

    def _refuse_late(self, _: CommitAsked | ExtendAsked) -> None:
        self._do(SendRefused(self.reason or "it was given up"))

    def _drop_when_applied(self, event: AbortAsked) -> TargetState:
        self.reason = event.reason
        return T.DROPPING

    def _orphan_when_applied(self, _: ArbiterLost) -> TargetState:
        self.reason = _NO_ARBITER
        return T.DROPPING

    def _drop(self, event: HasApplied | AbortAsked) -> TargetState:
        if isinstance(event, AbortAsked):
            self.reason = event.reason
        self._do(Drop(), SendDropped(self.reason))
        return T.DROPPED

    def _orphaned(self, _: ArbiterLost) -> TargetState:
        """The engine ends what a lost gateway had there; the source must not wait for it."""
        self.reason = _NO_ARBITER
        self._do(SendDropped(self.reason))
        return T.DROPPED

    def _dropped_before(self, _: CommitAsked) -> None:
        self._do(SendDropped(self.reason))

    def _nothing_to_drop(self, _: CannotApply) -> TargetState:
        return self._fence(self.reason)

    def _fenced(self, _: IsFenced) -> TargetState:
        self._do(Abandon())
        return T.ENDED


_OPEN = (T.PREPARING, T.HOLDING, T.EXTENDING)
_UNAPPLIED = (*_OPEN, T.COMMITTING)

TARGET_TABLE: Final[Table[TargetState, Target]] = make_table(
    [
        Rule((T.PREPARING,), HasReserved, (T.HOLDING,), Target._reserved),
        Rule((T.PREPARING,), CannotReserve, (T.ENDED,), Target._not_reserved),
        Rule((T.PREPARING,), IsNotReady, (), Target._not_ready),
        Rule((T.HOLDING,), ExtendAsked, (T.EXTENDING,), Target._extend),
        Rule((T.EXTENDING,), HasReserved, (T.HOLDING,), Target._reserved),
        Rule((T.EXTENDING,), CannotReserve, (T.FENCING,), Target._not_extended),
        Rule((T.HOLDING, T.EXTENDING), HasArrived, (), Target._arrived),
        Rule((T.HOLDING,), CommitAsked, (T.COMMITTING, T.APPLYING), Target._commit_asked),
        Rule((T.COMMITTING,), HasArrived, (T.COMMITTING, T.APPLYING), Target._arrived_last),
        Rule((T.APPLYING,), HasApplied, (T.OWNING,), Target._applied),
        Rule((T.APPLYING,), CannotApply, (T.FENCING,), Target._not_applied),
        Rule((T.APPLYING,), AbortAsked, (T.DROPPING,), Target._drop_when_applied),
        Rule((T.APPLYING,), ArbiterLost, (T.DROPPING,), Target._orphan_when_applied),
        Rule((T.DROPPING,), HasApplied, (T.DROPPED,), Target._drop),
        Rule((T.DROPPING,), CannotApply, (T.FENCING,), Target._nothing_to_drop),
        Rule((T.OWNING,), CommitAsked, (), Target._committed_again),
        Rule((T.OWNING,), AbortAsked, (T.DROPPED,), Target._drop),
        Rule((T.OWNING,), ArbiterLost, (T.DROPPED,), Target._orphaned),
        Rule((T.DROPPED,), CommitAsked, (), Target._dropped_before),
        Rule(_UNAPPLIED, IsBroken, (T.FENCING,), Target._broken),
        Rule(_UNAPPLIED, AbortAsked, (T.FENCING,), Target._aborted),
        Rule(_OPEN, SourceLost, (T.FENCING,), Target._source_lost),
        Rule(_UNAPPLIED, ArbiterLost, (T.FENCING,), Target._arbiter_lost),
        Rule(_UNAPPLIED, TimedOut, (T.FENCING,), Target._timed_out),
        Rule((T.FENCING, T.ENDED), CommitAsked, (), Target._refuse_late),
        Rule((T.FENCING, T.ENDED), ExtendAsked, (), Target._refuse_late),
        Rule((T.FENCING,), IsFenced, (T.ENDED,), Target._fenced),
    ]
)
"""Every pair that is not here is ignored: it is news of what is over."""
