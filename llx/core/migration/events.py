"""What happens to the machines, and what they want done."""

from dataclasses import dataclass

from llx.core.migration.values import Cut, Progress, Reservation
from llx.core.model import Epoch

# ---------------------------------------------------------------------- events at both ends


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The deadline that the machine has set last is over."""


# ---------------------------------------------------------------------- events at the source


@dataclass(frozen=True, slots=True)
class HasBegun:
    """The request is here, and watched from now on."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class CannotBegin:
    """It is not here, or pinned."""

    reason: str


@dataclass(frozen=True, slots=True)
class HasProgressed:
    """Answers `Look`; and `CutRequest`, if the request was not cut as it has grown too much."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class IsGone:
    """The request ended or lost its blocks; nothing of it is held here for the migration."""

    reason: str


@dataclass(frozen=True, slots=True)
class HasCut:
    """The request is out of the batch, and nothing of it is in flight."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class TargetReserved:
    """The target has blocks for it: the answer to `SendReserve` or `SendExtend`."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class TargetRefused:
    """The target has given it up and will never own the request by this migration."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetCommitted:
    """The target says that it goes on with the request; the arbiter has not spoken yet."""


@dataclass(frozen=True, slots=True)
class TargetLost:
    """The session with the target is over, or the target has dropped what it had taken."""

    reason: str


@dataclass(frozen=True, slots=True)
class HasCopied:
    """A stage is in the target's blocks."""

    stage: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CopyFailed:
    """A stage is not, and will not be."""

    stage: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ruled:
    """The arbiter's word: the request is this source's under `epoch`, or it is not."""

    epoch: Epoch
    is_yours: bool


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Someone wants it given up."""

    reason: str


# ---------------------------------------------------------------------- events at the target


@dataclass(frozen=True, slots=True)
class HasReserved:
    """The engine has allocated: the answer to `AskReserve` or `AskExtend`."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class CannotReserve:
    """The engine has no room, or will not."""

    reason: str


@dataclass(frozen=True, slots=True)
class IsNotReady:
    """The engine needs a moment: a grammar is being compiled."""


@dataclass(frozen=True, slots=True)
class ExtendAsked:
    """The source wants blocks for so many tokens in all."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class HasArrived:
    """A stage is in the blocks here, of every rank."""

    stage: int


@dataclass(frozen=True, slots=True)
class IsBroken:
    """The copy has failed; nothing more arrives."""

    reason: str


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """The source has cut the request and gives it away, once `stage` has arrived."""

    stage: int
    outputs: tuple[int, ...]
    num_computed: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class HasApplied:
    """The engine owns it."""


@dataclass(frozen=True, slots=True)
class CannotApply:
    """The engine could not take it in, and holds nothing for it any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """The source gives up."""

    reason: str


@dataclass(frozen=True, slots=True)
class SourceLost:
    """The session with the source is over."""


@dataclass(frozen=True, slots=True)
class ArbiterLost:
    """The gateway that holds the stream has no session here any more."""


@dataclass(frozen=True, slots=True)
class IsFenced:
    """Answers `Fence`."""


# ---------------------------------------------------------------------- commands at both ends


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Say `TimedOut` after so long; replaces the deadline before. None: there is none."""

    after_s: float | None


# ---------------------------------------------------------------------- commands at the source


@dataclass(frozen=True, slots=True)
class Begin:
    """Have the engine watch the request."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the engine how far it is, `after_s` from now."""

    after_s: float


@dataclass(frozen=True, slots=True)
class SendReserve:
    """Have the target allocate; and connect for copying once it has."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class SendExtend:
    """Have the target allocate more."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy blocks `first` … `last - 1` of the request's table, to the same places at the target.

    `is_final`: nothing is copied after it; the sampler's state goes along.
    """

    stage: int
    first: int
    last: int
    is_final: bool


@dataclass(frozen=True, slots=True)
class CutRequest:
    """Take the request out of the batch; if it has more than `max_tokens`, say how far it is.

    `HasCut` answers, or `HasProgressed`: one wait for the engine instead of two.
    """

    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TellArbiter:
    """Let the arbiter know where the request may go on."""


@dataclass(frozen=True, slots=True)
class SendCommit:
    """Give the request away."""

    stage: int
    cut: Cut


@dataclass(frozen=True, slots=True)
class SendAbort:
    """Tell the target that it is off."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskArbiter:
    """Whose is it?"""


@dataclass(frozen=True, slots=True)
class Resume:
    """Put the request back into the batch, if it was cut; watch it no more.

    `epoch` is the arbiter's, None: the one it had.
    """

    epoch: Epoch | None


@dataclass(frozen=True, slots=True)
class Release:
    """Free the request: another instance has it."""


@dataclass(frozen=True, slots=True)
class Unwatch:
    """It stays; it was not cut."""


@dataclass(frozen=True, slots=True)
class CloseCopy:
    """End the connections of the copy."""


# ---------------------------------------------------------------------- commands at the target


@dataclass(frozen=True, slots=True)
class AskReserve:
    """Have the engine allocate, `after_s` from now."""

    num_tokens: int
    after_s: float


@dataclass(frozen=True, slots=True)
class AskExtend:
    """Have the engine allocate more."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class SendReserved:
    """Tell the source; from now on its copy is admitted to these blocks."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class SendRefused:
    """Tell the source that nothing will come of it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Have the engine own the request."""

    commit: CommitAsked


@dataclass(frozen=True, slots=True)
class SendCommitted:
    """Tell the source."""


@dataclass(frozen=True, slots=True)
class SendDropped:
    """Tell the source that the request was owned here and is no more: the arbiter has its word."""

    reason: str


@dataclass(frozen=True, slots=True)
class FinishCopy:
    """The copy's end is no failure any more."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Let nothing more be written, and say `IsFenced` when nothing is."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Free what is reserved."""


@dataclass(frozen=True, slots=True)
class Drop:
    """End the request that was taken in, if it is held under the epoch of this migration still."""
