"""The arbiter: which instance owns each stream, and which of its outputs count.

Every stream has one owner and an epoch, raised at each change of owner (`llx.core.epochs`). An
output counts only if it comes from the owner, under the present epoch, at the offset that comes
next. So a token is delivered once and in order, whatever an instance that has lost a stream says:

    open  → A, epoch 1      A (1, 0) counts   A (1, 1) counts
    lost  → B, a new reign  A (1, 2) stale    B (1000000, 2) counts, again: repeated
                            B (1000000, 5): 3 and 4 are missing, the stream cannot go on

In a live migration the owner itself gives the stream away, under the next epoch; the first output
under it makes the target the owner. Until then the owner may ask for it back, and gets it under a
new reign, which fences whatever the old one has led to:

    A owns, epoch 1         A cuts at token 7 and commits to B under epoch 2
      B (2, 7) arrives      moves: B owns, epoch 2; A hears that it may free its blocks
      B (2, 7), but A (1, 6) is still on its way: early, kept until it is there
      A asks before either  A owns, epoch 1000000; B (2, 7) is stale now, and B is told to drop it
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from llx.core import epochs
from llx.core.model import Epoch, InstanceId, RequestId


class Verdict(Enum):
    """What becomes of an output."""

    COUNTS = "counts"
    MOVES = "moves"
    """It counts, and its sender owns the stream from here on."""
    EARLY = "early"
    """It will, once the tokens before it have arrived: keep it and judge it again."""
    STALE = "stale"
    """Its sender has lost the stream for good: drop it, and have the sender end what it holds under
    that epoch."""
    PAST = "past"
    """From its owner, under an epoch before: drop it. The owner may hold the stream under that
    epoch still, because it has yet to hear of the present one; it must not be told to end it."""
    REPEATED = "repeated"
    """Of tokens that were delivered already: drop it."""
    GAP = "gap"
    """Tokens before it are missing: the stream must end, or be placed anew."""


class Place(Enum):
    """Where an output's tokens would go, against what was delivered."""

    BEFORE = "before"
    NEXT = "next"
    AFTER = "after"


class Claim(Enum):
    """By what right an output comes."""

    OWNER = "owner, present epoch"
    HEIR = "a later epoch of this reign"
    """Given away by the owner, or by whom the owner has given it to."""
    PAST = "owner, an epoch before"
    OTHER = "any other"


VERDICTS: Final[dict[tuple[Claim, Place], Verdict]] = {
    (Claim.OWNER, Place.BEFORE): Verdict.REPEATED,
    (Claim.OWNER, Place.NEXT): Verdict.COUNTS,
    (Claim.OWNER, Place.AFTER): Verdict.GAP,
    (Claim.HEIR, Place.BEFORE): Verdict.STALE,
    (Claim.HEIR, Place.NEXT): Verdict.MOVES,
    (Claim.HEIR, Place.AFTER): Verdict.EARLY,
    (Claim.PAST, Place.BEFORE): Verdict.PAST,
    (Claim.PAST, Place.NEXT): Verdict.PAST,
    (Claim.PAST, Place.AFTER): Verdict.PAST,
    (Claim.OTHER, Place.BEFORE): Verdict.STALE,
    (Claim.OTHER, Place.NEXT): Verdict.STALE,
    (Claim.OTHER, Place.AFTER): Verdict.STALE,
}


# By names of their own: an enum's member costs more to name than what is done with it for a token.
_COUNTS: Final = Verdict.COUNTS
_MOVES: Final = Verdict.MOVES


@dataclass(slots=True)
class Stream:
    """One generation under way.

    `target` is where its owner said it may go on; `taken_back_at` the epoch under which the owner
    asked for it back last.
    """

    owner: InstanceId
    epoch: Epoch
    num_tokens: int = 0
    target: InstanceId | None = None
    taken_back_at: Epoch | None = None


@dataclass(frozen=True, slots=True)
class OwnerIs:
    """The answer to an owner that asks.

    `is_yours`: it has the stream again, under `epoch`. Else whatever it holds under an epoch lower
    than `epoch` is not its own any more.
    """

    epoch: Epoch
    is_yours: bool


class Streams:
    """The streams of one gateway and pool, by request id."""

    def __init__(self) -> None:
        self._streams: dict[RequestId, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._streams

    def get(self, request: RequestId) -> Stream | None:
        """The stream of a request, if it is under way."""
        return self._streams.get(request)

    def own(self, request: RequestId, owner: InstanceId) -> Epoch:
        """Give a stream, new or not, to `owner`; returns the epoch that makes it so.

        A stream that there was begins a new reign: the owner before may have given it away.
        """
        stream = self._streams.get(request)
        if stream is None:
            stream = self._streams[request] = Stream(owner, epochs.FIRST)
        else:
            self._give(stream, owner, epochs.next_reign(stream.epoch))
        return stream.epoch

    def judge(
        self, request: RequestId, sender: InstanceId, epoch: Epoch, offset: int, num_new: int
    ) -> Verdict:
        """Whether an output counts; its tokens are then taken as delivered."""
        stream = self._streams.get(request)
        if stream is None:
            return Verdict.STALE
        if offset == stream.num_tokens and epoch == stream.epoch and sender == stream.owner:
            verdict = _COUNTS  # as the table says, for nearly every token
        else:
            verdict = VERDICTS[_claim(stream, sender, epoch), _place(stream, offset)]
        if verdict is _MOVES:
            self._give(stream, sender, epoch)
        if verdict is _COUNTS or verdict is _MOVES:
            stream.num_tokens += num_new
            stream.target = None  # the owner gives nothing out after `Moving`, unless it goes on
        return verdict

    def note_target(
        self, request: RequestId, owner: InstanceId, epoch: Epoch, to: InstanceId
    ) -> None:
        """The owner says that it gives the stream to another, under the next epoch."""
        stream = self._streams.get(request)
        if stream is not None and (stream.owner, stream.epoch) == (owner, epoch):
            stream.target = to

    def ask(self, request: RequestId, sender: InstanceId, epoch: Epoch) -> OwnerIs | None:
        """`sender` held the stream under `epoch`, gave it away, and does not know what came of it.

        If it still is the owner it gets the stream back, under a new reign; asked again it gets the
        same answer. None: this is not decided yet, because the outputs that made it the owner have
        not counted so far; it will ask again.

        A "no" speaks of `epoch` alone: it may be a late answer, and the sender hold the stream
        anew.
        """
        stream = self._streams.get(request)
        if stream is not None:
            if epochs.follows(epoch, stream.epoch):
                return None
            if (stream.owner, stream.epoch) == (sender, epoch):
                self._give(stream, sender, epochs.next_reign(epoch))
                stream.taken_back_at = epoch
            if stream.owner == sender and stream.taken_back_at == epoch:
                return OwnerIs(stream.epoch, is_yours=True)
        return OwnerIs(epochs.next_owner(epoch), is_yours=False)

    def end(self, request: RequestId) -> Stream | None:
        """Forget a stream; returns what it was."""
        return self._streams.pop(request, None)

    def owned_by(self, owner: InstanceId) -> list[RequestId]:
        """Requests whose stream `owner` has."""
        return [request for request, stream in self._streams.items() if stream.owner == owner]

    def _give(self, stream: Stream, owner: InstanceId, epoch: Epoch) -> None:
        stream.owner, stream.epoch = owner, epoch
        stream.target = stream.taken_back_at = None


def _claim(stream: Stream, sender: InstanceId, epoch: Epoch) -> Claim:
    if epochs.follows(epoch, stream.epoch):
        return Claim.HEIR
    if sender != stream.owner or epoch > stream.epoch:
        return Claim.OTHER
    return Claim.OWNER if epoch == stream.epoch else Claim.PAST


def _place(stream: Stream, offset: int) -> Place:
    if offset == stream.num_tokens:
        return Place.NEXT
    return Place.BEFORE if offset < stream.num_tokens else Place.AFTER
