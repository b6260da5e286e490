"""The source's end of a migration.

    engine      │ decodes ─────────────────────────────► cut │ out of the batch, blocks kept │ free
    copy        │    ├─ stage 0 ─┤├─ 1 ─┤├─ 2 ─┤          ├─ last ─┤
    to target   │ reserve … (extend) …                     │ commit
    arbiter     │                                          │            ruling: moved ────────►│

Until the commit is sent the source is the owner and may give up at any moment; from then on only
the arbiter's word, or the target's word that it will never own the request, lets it go on.
"""

from enum import Enum
from typing import Final

from llx.core import epochs
from llx.core.migration.events import (
    AskArbiter,
    Begin,
    Cancelled,
    CannotBegin,
    CloseCopy,
    Copy,
    CopyFailed,
    CutRequest,
    HasBegun,
    HasCopied,
    HasCut,
    HasProgressed,
    IsGone,
    Look,
    Release,
    Resume,
    Ruled,
    SendAbort,
    SendCommit,
    SendExtend,
    SendReserve,
    SetDeadline,
    TargetCommitted,
    TargetLost,
    TargetRefused,
    TargetReserved,
    TellArbiter,
    TimedOut,
    Unwatch,
)
from llx.core.migration.table import Rule, Table, make_table
from llx.core.migration.values import Cut, Progress, Reservation, SourceRules
from llx.core.model import Epoch, blocks_for

Event = (
    HasBegun
    | CannotBegin
    | HasProgressed
    | IsGone
    | HasCut
    | TargetReserved
    | TargetRefused
    | TargetCommitted
    | TargetLost
    | HasCopied
    | CopyFailed
    | Ruled
    | Cancelled
    | TimedOut
)
Command = (
    Begin
    | Look
    | SendReserve
    | SendExtend
    | Copy
    | CutRequest
    | TellArbiter
    | SendCommit
    | SendAbort
    | AskArbiter
    | Resume
    | Release
    | Unwatch
    | CloseCopy
    | SetDeadline
)

_ANSWER_S = 10.0
"""The engine and the target answer within this."""
_RESERVE_S = 60.0
"""The target may have a grammar to compile."""
_COPY_S = 120.0
"""One stage."""
_CUT_S = 60.0
"""A step in flight may be somebody else's long prefill."""
_RULING_S = 5.0
_FIRST_TOKEN_S = 30.0
"""A target that has it may have a long step under way before the first token."""
_ASK_AGAIN_S = 0.5
_PREFILL_LOOK_S = 0.005
_FEW_BLOCKS = 1
"""The last stage is at most so many full blocks, and the one that is being filled."""


class SourceState(Enum):
    """Where the source's end is. `moved`, `kept` and `gone` are ends."""

    BEGINNING = "beginning"
    RESERVING = "reserving"
    LOOKING = "looking"
    COPYING = "copying"
    EXTENDING = "extending"
    CUTTING = "cutting"
    EXTENDING_LATE = "extending_late"
    COMMITTING = "committing"
    ASKING = "asking"
    MOVED = "moved"
    KEPT = "kept"
    GONE = "gone"


S = SourceState
ENDS: Final = frozenset({S.MOVED, S.KEPT, S.GONE})


class Source:
    """One migration at its source. `handle` is the only way to change it.

    Args:
        epoch: Under which the request is owned here; it is given away under the next.
        rules: How it is done.
    """

    def __init__(self, epoch: Epoch, rules: SourceRules) -> None:
        self.state = S.BEGINNING
        self.epoch = epoch
        self._is_taken = False
        self.reason = ""
        """Why it ended as it did."""
        self.num_stages = 0
        self.num_copied = 0
        """Blocks in the target's hands, reused ones included."""
        self.num_reused = 0
        self.size_bytes = 0
        self._rules = rules
        self._reservation: Reservation | None = None
        self._progress = Progress(num_tokens=0, num_prompt=0, num_settled=0, blocks=())
        """The last that is known of the request."""
        self._asked_tokens = 0
        self._cut: Cut | None = None
        self._last_new = 0
        self._num_rounds = 0
        self._commands: list[Command] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ENDS

    @property
    def reservation(self) -> Reservation | None:
        """The target's blocks, to which copies go: the last answer that was taken."""
        return self._reservation

    def start(self) -> list[Command]:
        """The first commands."""
        return [Begin(), SetDeadline(_ANSWER_S)]

    def handle(self, event: Event) -> list[Command]:
        """Take an event in; returns what is to be done, in order."""
        rule = SOURCE_TABLE.get((self.state, type(event)))
        if rule is None:
            return []
        self._commands = []
        state = rule.act(self, event) or self.state
        assert state in rule.ways(self.state), f"{self.state} may not become {state} by {event}"
        self.state = state
        if self.is_over:
            self._do(SetDeadline(None))
        return self._commands

    def _do(self, *commands: Command) -> None:
        self._commands.extend(commands)

    # ------------------------------------------------------------------ before the cut

    def _begun(self, event: HasBegun) -> SourceState:
        progress = self._progress = event.progress
        if not progress.is_waiting:
            self._asked_tokens = self._wanted(progress.num_tokens)
        self._do(SendReserve(self._asked_tokens), SetDeadline(_RESERVE_S))
        return S.RESERVING

    def _not_begun(self, event: CannotBegin) -> SourceState:
        self.reason = event.reason
        return S.KEPT

    def _reserved(self, event: TargetReserved) -> SourceState | None:
        if not self._take(event.reservation):
            return None
        if self._rules.is_blocking:
            return self._go_cut()
        if self._progress.is_decoding and self._num_new > _FEW_BLOCKS:
            return self._copy_round()  # what was full then is full, and stays as it is
        return self._look()

    def _look(self, after_s: float = 0.0) -> SourceState:
        self._do(Look(after_s), SetDeadline(_ANSWER_S))
        return S.LOOKING

    def _progressed(self, event: HasProgressed) -> SourceState:
        progress = self._progress = event.progress
        if progress.is_waiting:
            return self._go_cut()
        if progress.num_outputs == 0 and not self._lacks_room(progress.num_tokens):
            return self._copy() if self._num_new > 0 else self._look(_PREFILL_LOOK_S)
        return self._grown(event)

    def _grown(self, event: HasProgressed) -> SourceState:
        """It decodes: more room, another round, or the cut."""
        self._progress = event.progress
        if self._lacks_room(event.progress.num_tokens):
            return self._extend(event.progress.num_tokens, S.EXTENDING)
        num_new = self._num_new
        if num_new <= _FEW_BLOCKS:
            return self._go_cut()
        if self._is_diverging(num_new):
            if self._rules.aborts_if_diverging:
                return self._keep(f"it grows as fast as it is copied ({num_new} blocks are left)")
            return self._go_cut()
        return self._copy_round()

    def _is_diverging(self, num_new: int) -> bool:
        if self._num_rounds >= self._rules.max_stages:
            return True
        return self._num_rounds >= 2 and num_new >= self._last_new

    def _copy_round(self) -> SourceState:
        self._num_rounds += 1
        self._last_new = self._num_new
        return self._copy()

    def _copy(self) -> SourceState:
        num_full = self._num_full
        self._do(
            Copy(self.num_stages, self.num_copied, num_full, is_final=False), SetDeadline(_COPY_S)
        )
        self.num_copied = num_full
        return S.COPYING

    def _copied(self, event: HasCopied) -> SourceState:
        if not self._counts(event.stage):
            return S.COPYING
        self.num_stages += 1
        self.size_bytes += event.size_bytes
        return self._go_cut(self._cut_limit) if self._progress.is_decoding else self._look()

    def _not_copied(self, event: CopyFailed) -> SourceState:
        return self._keep(event.reason) if self._counts(event.stage) else S.COPYING

    def _extend(self, num_tokens: int, state: SourceState) -> SourceState:
        self._asked_tokens = self._wanted(num_tokens)
        self._do(SendExtend(self._asked_tokens), SetDeadline(_ANSWER_S))
        return state

    def _extended(self, event: TargetReserved) -> SourceState | None:
        return self._look() if self._take(event.reservation) else None

    def _go_cut(self, max_tokens: int | None = None) -> SourceState:
        """With a limit the answer may be how far it has grown, and then it was not cut."""
        self._do(CutRequest(max_tokens), SetDeadline(_CUT_S))
        return S.CUTTING

    # ------------------------------------------------------------------ cut

    def _was_cut(self, event: HasCut) -> SourceState:
        self._cut = event.cut
        if event.cut.num_computed > self._reservation_tokens:
            return self._extend(event.cut.num_computed, S.EXTENDING_LATE)
        return self._commit(event.cut)

    def _extended_late(self, event: TargetReserved) -> SourceState | None:
        assert self._cut is not None, "it was cut before it was extended"
        return self._commit(self._cut) if self._take(event.reservation) else None

    def _commit(self, cut: Cut) -> SourceState:
        """The last copy and the commit travel at the same time: the target waits for both.

        The arbiter hears of it before the target does: should the source die right after the
        commit, the stream waits for the target.
        """
        last = blocks_for(cut.num_computed, self._rules.block_size)
        first = min(self.num_copied, last)
        is_quick = last - first <= _FEW_BLOCKS + 1 and not self._rules.is_checked
        self._do(
            Copy(self.num_stages, first, last, is_final=True),
            TellArbiter(),
            SendCommit(self.num_stages, cut),
            SetDeadline(_RULING_S if is_quick else _COPY_S),
        )
        self.num_copied = last
        return S.COMMITTING

    # ------------------------------------------------------------------ committed

    def _target_has_it(self, _: TargetCommitted) -> None:
        self._is_taken = True
        self._do(SetDeadline(_FIRST_TOKEN_S))

    def _copied_last(self, event: HasCopied) -> SourceState | None:
        if self._counts(event.stage):
            self.num_stages += 1
            self.size_bytes += event.size_bytes
            if self.state is S.COMMITTING and not self._is_taken:
                self._do(SetDeadline(_RULING_S))
        return None

    def _not_copied_last(self, event: CopyFailed) -> SourceState | None:
        if not self._counts(event.stage):
            return None
        self.reason = event.reason
        return self._ask()

    def _refused_commit(self, event: TargetRefused) -> SourceState:
        self.reason = event.reason
        self._do(Resume(None), CloseCopy())
        return S.KEPT

    def _lost_target(self, event: TargetLost) -> SourceState:
        self.reason = event.reason
        return self._ask()

    def _timed_out_commit(self, _: TimedOut) -> SourceState:
        self.reason = self.reason or "nobody said what became of it"
        return self._ask()

    def _ask(self) -> SourceState:
        self._do(AskArbiter(), SetDeadline(_ASK_AGAIN_S))
        return S.ASKING

    def _ask_again(self, _: TimedOut) -> SourceState:
        return self._ask()

    def _ruled(self, event: Ruled) -> SourceState | None:
        if not event.is_yours and event.epoch > self.epoch:
            self.reason = ""
            self._do(CloseCopy(), Release())
            return S.MOVED
        return None

    def _ruled_asked(self, event: Ruled) -> SourceState | None:
        if event.is_yours and event.epoch == epochs.next_reign(self.epoch):
            self._do(SendAbort(self.reason), Resume(event.epoch), CloseCopy())
            return S.KEPT
        return self._ruled(event)

    # ------------------------------------------------------------------ giving up

    def _keep(self, reason: str) -> SourceState:
        """Before the cut: nothing has changed for the request."""
        self.reason = reason
        self._do(SendAbort(reason), Unwatch(), CloseCopy())
        return S.KEPT

    def _keep_cut(self, reason: str) -> SourceState:
        self.reason = reason
        self._do(SendAbort(reason), Resume(None), CloseCopy())
        return S.KEPT

    def _refused(self, event: TargetRefused | TargetLost | Cancelled) -> SourceState:
        return self._keep(event.reason)

    def _refused_cut(self, event: TargetRefused | TargetLost | Cancelled) -> SourceState:
        return self._keep_cut(event.reason)

    def _timed_out(self, _: TimedOut) -> SourceState:
        return self._keep(f"it took too long ({self.state.value})")

    def _timed_out_cut(self, _: TimedOut) -> SourceState:
        return self._keep_cut(f"it took too long ({self.state.value})")

    def _gone(self, event: IsGone) -> SourceState:
        self.reason = event.reason
        self._do(SendAbort(event.reason), CloseCopy())
        return S.GONE

    def _gone_committed(self, event: IsGone) -> SourceState:
        """The gateway ended it here; it has a word with whoever has it now."""
        self.reason = event.reason
        self._do(CloseCopy())
        return S.GONE

    # ------------------------------------------------------------------ leaves

    @property
    def _reservation_tokens(self) -> int:
        return self._reservation.num_tokens if self._reservation is not None else 0

    def _take(self, reservation: Reservation) -> bool:
        """Whether it is what was asked for last; an older answer may come twice, or late."""
        if reservation.num_tokens < self._asked_tokens:
            return False
        if self._reservation is None:
            self.num_reused = reservation.num_reused // self._rules.block_size
            self.num_copied = self.num_reused
        self._reservation = reservation
        return True

    @property
    def _num_full(self) -> int:
        return self._progress.num_settled // self._rules.block_size

    @property
    def _num_new(self) -> int:
        """Full blocks that are yet to be copied, by what is known."""
        return self._num_full - self.num_copied

    @property
    def _cut_limit(self) -> int:
        """With at most so many tokens it needs neither another round nor more room."""
        few = (self.num_copied + _FEW_BLOCKS + 1) * self._rules.block_size
        if self._reservation_tokens >= self._rules.max_model_len:
            return few
        return min(few, self._reservation_tokens - self._rules.block_size)

    def _wanted(self, num_tokens: int) -> int:
        """Room for two blocks more: the last stage must not have to wait for an allocation."""
        return min(num_tokens + 2 * self._rules.block_size, self._rules.max_model_len)

    def _lacks_room(self, num_tokens: int) -> bool:
        needed = min(num_tokens + self._rules.block_size, self._rules.max_model_len)
        return needed > self._reservation_tokens

    def _counts(self, stage: int) -> bool:
        return stage == self.num_stages


_STAGING = (S.LOOKING, S.COPYING, S.EXTENDING)
_UNCUT = (S.RESERVING, *_STAGING)
_CUT = (S.CUTTING, S.EXTENDING_LATE)
_GIVEN = (S.COMMITTING, S.ASKING)

SOURCE_TABLE: Final[Table[SourceState, Source]] = make_table(
    [
        Rule((S.BEGINNING,), HasBegun, (S.RESERVING,), Source._begun),
        Rule((S.BEGINNING,), CannotBegin, (S.KEPT,), Source._not_begun),
        Rule(
            (S.RESERVING,),
            TargetReserved,
            (S.RESERVING, S.LOOKING, S.COPYING, S.CUTTING),
            Source._reserved,
        ),
        Rule(
            (S.LOOKING,),
            HasProgressed,
            (S.LOOKING, S.COPYING, S.EXTENDING, S.CUTTING, S.KEPT),
            Source._progressed,
        ),
        Rule((S.COPYING,), HasCopied, (S.LOOKING, S.COPYING, S.CUTTING), Source._copied),
        Rule((S.COPYING,), CopyFailed, (S.KEPT, S.COPYING), Source._not_copied),
        Rule((S.EXTENDING,), TargetReserved, (S.EXTENDING, S.LOOKING), Source._extended),
        Rule(
            (S.CUTTING,),
            HasProgressed,
            (S.COPYING, S.EXTENDING, S.CUTTING, S.KEPT),
            Source._grown,
        ),
        Rule((S.CUTTING,), HasCut, (S.COMMITTING, S.EXTENDING_LATE), Source._was_cut),
        Rule(
            (S.EXTENDING_LATE,),
            TargetReserved,
            (S.EXTENDING_LATE, S.COMMITTING),
            Source._extended_late,
        ),
        Rule((S.COMMITTING,), TargetCommitted, (), Source._target_has_it),
        Rule((S.COMMITTING,), TargetRefused, (S.KEPT,), Source._refused_commit),
        Rule((S.COMMITTING,), TargetLost, (S.ASKING,), Source._lost_target),
        Rule((S.COMMITTING,), CopyFailed, (S.COMMITTING, S.ASKING), Source._not_copied_last),
        Rule((S.COMMITTING,), TimedOut, (S.ASKING,), Source._timed_out_commit),
        Rule((S.COMMITTING,), Ruled, (S.COMMITTING, S.MOVED), Source._ruled),
        Rule((S.ASKING,), Ruled, (S.ASKING, S.MOVED, S.KEPT), Source._ruled_asked),
        Rule((S.ASKING,), TimedOut, (), Source._ask_again),
        Rule(_GIVEN, HasCopied, (), Source._copied_last),
        Rule(_GIVEN, IsGone, (S.GONE,), Source._gone_committed),
        Rule((S.BEGINNING, *_UNCUT), Cancelled, (S.KEPT,), Source._refused),
        Rule((S.BEGINNING, *_UNCUT), TimedOut, (S.KEPT,), Source._timed_out),
        Rule(_UNCUT, TargetRefused, (S.KEPT,), Source._refused),
        Rule((S.BEGINNING, *_UNCUT), TargetLost, (S.KEPT,), Source._refused),
        Rule(_CUT, Cancelled, (S.KEPT,), Source._refused_cut),
        Rule(_CUT, TimedOut, (S.KEPT,), Source._timed_out_cut),
        Rule(_CUT, TargetRefused, (S.KEPT,), Source._refused_cut),
        Rule(_CUT, TargetLost, (S.KEPT,), Source._refused_cut),
        # Not in `beginning`: what is gone there was watched by an earlier migration, and what this
        # one is about to watch would be watched for ever.
        Rule((*_UNCUT, *_CUT), IsGone, (S.GONE,), Source._gone),
    ]
)
"""Every pair that is not here is ignored: it is news of what is over."""
