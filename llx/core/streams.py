"""The arbiter: which instance owns each stream, and which of its outputs count.

Every stream has one owner and an epoch, raised at each change of owner. An output counts only if
it comes from the owner, under the present epoch, at the offset that comes next. So a token is
delivered once and in order, whatever an instance that has lost a stream still says:

    open  → A, epoch 1      A (1, 0) counts   A (1, 1) counts
    move  → B, epoch 2      A (1, 2) stale    B (2, 2) counts   B (2, 2) again: repeated
                            B (2, 5): tokens 3 and 4 are missing, the stream cannot go on
"""

from dataclasses import dataclass
from enum import Enum

from llx.core.model import Epoch, InstanceId, RequestId


class Verdict(Enum):
    """What becomes of an output."""

    COUNTS = "counts"
    STALE = "stale"
    """Of no stream, not from its owner, or of another epoch: drop it."""
    REPEATED = "repeated"
    """Of tokens that were delivered already: drop it."""
    GAP = "gap"
    """Tokens before it are missing: the stream must end, or be placed anew."""


@dataclass(slots=True)
class Stream:
    """One generation under way."""

    owner: InstanceId
    epoch: Epoch
    num_tokens: int = 0


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
        """Give a stream, new or not, to `owner`; returns the epoch that makes it so."""
        stream = self._streams.get(request)
        if stream is None:
            stream = self._streams[request] = Stream(owner, Epoch(1))
        else:
            stream.owner, stream.epoch = owner, Epoch(stream.epoch + 1)
        return stream.epoch

    def judge(
        self, request: RequestId, sender: InstanceId, epoch: Epoch, offset: int, num_new: int
    ) -> Verdict:
        """Whether an output counts; its tokens are then taken as delivered."""
        stream = self._streams.get(request)
        if stream is None or stream.owner != sender or stream.epoch != epoch:
            return Verdict.STALE
        if offset < stream.num_tokens:
            return Verdict.REPEATED
        if offset > stream.num_tokens:
            return Verdict.GAP
        stream.num_tokens += num_new
        return Verdict.COUNTS

    def end(self, request: RequestId) -> Stream | None:
        """Forget a stream; returns what it was."""
        return self._streams.pop(request, None)

    def owned_by(self, owner: InstanceId) -> list[RequestId]:
        """Requests whose stream `owner` has."""
        return [request for request, stream in self._streams.items() if stream.owner == owner]
