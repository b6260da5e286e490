"""The arbiter: which instance owns each stream, and which of its outputs count.

Every stream has one owner and an epoch, raised at each change of owner. An output counts only if
it comes from the owner, under the present epoch, at the offset that comes next. So a token is
delivered once and in order, whatever an instance that has lost a stream still says:

    open  → A, epoch 1      A (1, 0) counts   A (1, 1) counts
    lost  → B, epoch 3      A (1, 2) stale    B (3, 2) counts   B (3, 2) again: repeated
                            B (3, 5): tokens 3 and 4 are missing, the stream cannot go on

In a live migration the owner itself gives the stream away, under the next epoch; the first output
under it makes the target the owner. Until then the owner may ask for it back, and gets it under the
epoch after next, which fences the one in between:

    A owns, epoch 1         A cuts at token 7 and commits to B under epoch 2
      B (2, 7) arrives      moves: B owns, epoch 2; A hears that it may free its blocks
      B (2, 7), but A (1, 6) is still on its way: early, kept until it is there
      A asks before either  A owns, epoch 3; B (2, 7) is stale now, and B is told to drop it
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from llx.core.model import Epoch, InstanceId, RequestId


class Verdict(Enum):
    """What becomes of an output."""

    COUNTS = "counts"
    MOVES = "moves"
    """It counts, and its sender owns the stream from here on."""
    EARLY = "early"
    """It will, once the owner's last tokens have arrived: keep it and judge it again."""
    STALE = "stale"
    """Of no stream, not from its owner, or of another epoch: drop it."""
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
    TARGET = "not the owner, next epoch"
    OTHER = "any other"


VERDICTS: Final[dict[tuple[Claim, Place], Verdict]] = {
    (Claim.OWNER, Place.BEFORE): Verdict.REPEATED,
    (Claim.OWNER, Place.NEXT): Verdict.COUNTS,
    (Claim.OWNER, Place.AFTER): Verdict.GAP,
    (Claim.TARGET, Place.BEFORE): Verdict.STALE,
    (Claim.TARGET, Place.NEXT): Verdict.MOVES,
    (Claim.TARGET, Place.AFTER): Verdict.EARLY,
    (Claim.OTHER, Place.BEFORE): Verdict.STALE,
    (Claim.OTHER, Place.NEXT): Verdict.STALE,
    (Claim.OTHER, Place.AFTER): Verdict.STALE,
}


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
    """The answer to an owner that asks: its own again under `epoch`, or not its own any more."""

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

        It skips one: the former owner may have given away the one in between.
        """
        stream = self._streams.get(request)
        if stream is None:
            stream = self._streams[request] = Stream(owner, Epoch(1))
        else:
            self._give(stream, owner, Epoch(stream.epoch + 2))
        return stream.epoch

    def judge(
        self, request: RequestId, sender: InstanceId, epoch: Epoch, offset: int, num_new: int
    ) -> Verdict:
        """Whether an output counts; its tokens are then taken as delivered."""
        stream = self._streams.get(request)
        if stream is None:
            return Verdict.STALE
        verdict = VERDICTS[_claim(stream, sender, epoch), _place(stream, offset)]
        if verdict is Verdict.MOVES:
            self._give(stream, sender, epoch)
        if verdict in {Verdict.COUNTS, Verdict.MOVES}:
            stream.num_tokens += num_new
        return verdict

    def note_target(
        self, request: RequestId, owner: InstanceId, epoch: Epoch, to: InstanceId
    ) -> None:
        """The owner says that it gives the stream to another, under the next epoch."""
        stream = self._streams.get(request)
        if stream is not None and (stream.owner, stream.epoch) == (owner, epoch):
            stream.target = to

    def ask(self, request: RequestId, sender: InstanceId, epoch: Epoch) -> OwnerIs:
        """`sender` held the stream under `epoch`, gave it away, and does not know what came of it.

        If it still is the owner it gets the stream under ``epoch + 2``; asked again it gets the
        same answer.
        """
        stream = self._streams.get(request)
        if stream is None:
            return OwnerIs(Epoch(epoch + 1), is_yours=False)
        if (stream.owner, stream.epoch) == (sender, epoch):
            self._give(stream, sender, Epoch(epoch + 2))
            stream.taken_back_at = epoch
        is_yours = stream.owner == sender and stream.taken_back_at == epoch
        return OwnerIs(stream.epoch, is_yours=is_yours)

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
    if sender == stream.owner:
        return Claim.OWNER if epoch == stream.epoch else Claim.OTHER
    return Claim.TARGET if epoch == stream.epoch + 1 else Claim.OTHER


def _place(stream: Stream, offset: int) -> Place:
    if offset == stream.num_tokens:
        return Place.NEXT
    return Place.BEFORE if offset < stream.num_tokens else Place.AFTER
