"""KV from GPU to GPU through a pair, in rounds of chunks.

    source                                           target
      its turn to send
      prepare 1, CHUNK 1                       ──►     its turn to receive, blocks checked
      prepare 2, CHUNK 2                       ──►     receive 1, READY
                                       ◄── READY 1     receive 2, READY
      send 1
      send 2                           ◄── READY 2
      finish                                           finish: the last chunk of the round
                                       ◄── FREED       gives its turn back
      gives its turn back

Nothing is launched at the source before the target has launched its part, so that no kernel of
either GPU waits for one that may never come. A rank sends one round at a time, and receives one at
a time, whatever pairs they go through: rounds are short, so that a request that stands still does
not wait for all of another's KV. A turn to receive is taken while its source holds its turn to
send, and never the other way round: there is no cycle.

A fence waits for the round that is under way, or cuts it: the pair is closed then, before the round
counts as left. What fails in a round breaks this migration at both ends and drops the pair at both;
another migration that counts on the pair joins a new one before its next round.
"""

from array import array
from collections.abc import Callable

from llx.agent.transport.choice import Medium
from llx.agent.transport.frames import Header, Kind, Round
from llx.agent.transport.joining import (
    JOIN_WAIT_S,
    NotJoined,
    join_as_source,
    join_as_target,
)
from llx.agent.transport.medium import SourceEnd, TargetEnd
from llx.agent.transport.pairs import Pair, Pairs
from llx.agent.transport.sockets import SILENCE_S
from llx.errors import EngineError, WireError
from llx.ports import PairEnd

ROUND_BYTES = 128 << 20
_SEND_TURN_S = 60.0
_RECEIVE_TURN_S = 20.0
"""Below what the source waits for a READY."""


class NcclSource:
    """See `llx.agent.transport.medium.SourceMedium`.

    Args:
        end: What it works with.
        pairs: The rank's.
        peer: Identity of the target's rank.
        is_standing: Whether the request is out of the batch by now.
        round_bytes: Of a round, unless a chunk is larger.

    Raises:
        NotJoined: There is no pair, and the target knows it.
    """

    medium = Medium.NCCL

    def __init__(
        self,
        end: SourceEnd,
        pairs: Pairs,
        peer: bytes,
        is_standing: Callable[[], bool],
        round_bytes: int = ROUND_BYTES,
    ) -> None:
        self._end, self._pairs, self._peer = end, pairs, peer
        self._is_standing = is_standing
        self._round_bytes = round_bytes
        end.wire.on_freed = None
        self._pair = self._join()

    def copy(
        self, stage: int, source: "array[int]", target: "array[int]", *, is_final: bool
    ) -> None:
        """A round at a time; one chunk a round if bandwidth is limited."""
        first = 0
        while first < len(source):
            pair = self._usable_pair(is_final=is_final)
            most = pair.chunk_blocks
            if not self._end.budget.is_limited:
                most *= max(1, self._round_bytes // (most * self._end.block_bytes))
            part = slice(first, first + most)
            self._end.pace(len(source[part]))
            with self._pairs.sending.taken(
                _SEND_TURN_S, self._end.is_cancelled, is_urgent=is_final
            ):
                if pair.is_dropped:
                    continue  # by the one before; the next look joins another, or gives up
                urgent = Round.URGENT if is_final else Round(0)
                self._round(pair, stage, source[part], target[part], urgent)
            first += most

    def close(self) -> None:
        """Leave the pair to others."""
        self._pairs.release(self._pair)

    def _join(self) -> Pair:
        device = self._end.store.device
        assert device is not None, "it has offered one"
        return join_as_source(
            self._end.wire,
            device,
            self._pairs,
            self._peer,
            self._end.is_cancelled,
            self._is_standing,
        )

    def _usable_pair(self, *, is_final: bool) -> Pair:
        """The pair; a new one if a migration beside this one has broken it.

        Raises:
            EngineError: There is none, or making one would hold up a request that stands still.
        """
        if self._pair.is_dropped:
            if is_final:
                raise EngineError("the pair of GPUs broke in another migration")
            try:
                joined = self._join()
            except NotJoined as error:
                raise EngineError(f"no new pair of GPUs: {error.reason}") from None
            self._pairs.release(self._pair)
            self._pair = joined
        return self._pair

    def _round(
        self,
        pair: Pair,
        stage: int,
        source: "array[int]",
        target: "array[int]",
        urgent: Round,
    ) -> None:
        wire, is_cancelled, most = self._end.wire, self._end.is_cancelled, pair.chunk_blocks
        num_unsent = 0
        with pair.used() as end:
            for first in range(0, len(source), most):
                if num_unsent == end.depth:
                    self._send(end)
                    num_unsent -= 1
                end.prepare(source[first : first + most], is_cancelled)
                blocks = target[first : first + most]
                mark = urgent | (Round.LAST if first + most >= len(source) else Round(0))
                wire.send(Header(Kind.CHUNK, mark, stage, num_blocks=len(blocks)), blocks.tobytes())
                num_unsent += 1
            for _ in range(num_unsent):
                self._send(end)
            end.finish(is_cancelled)
            wire.expect(Kind.FREED)

    def _send(self, end: PairEnd) -> None:
        self._end.wire.expect(Kind.READY)
        end.send(self._end.is_cancelled)


class NcclTarget:
    """See `llx.agent.transport.medium.TargetMedium`.

    Args:
        end: What it works with.
        pairs: The rank's.
        peer: Identity of the source's rank.
        header: The source's first frame of a pair.

    Raises:
        NotJoined: There is no pair, and the source knows it.
    """

    def __init__(self, end: TargetEnd, pairs: Pairs, peer: bytes, header: Header) -> None:
        self._end, self._pairs, self._peer = end, pairs, peer
        self._pair = self._join(header)

    def take(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        """A whole round."""
        self._end.wire.be_patient(SILENCE_S)
        self._take_round(header, written)
        self._end.wire.be_patient(0)

    def join_anew(self, header: Header) -> None:
        """The source's pair broke in another migration: join the one of this frame instead.

        Raises:
            EngineError: There is none.
        """
        self._end.wire.be_patient(JOIN_WAIT_S)
        try:
            joined = self._join(header)
        except NotJoined as error:
            raise EngineError(f"no new pair of GPUs: {error.reason}") from None
        self._pairs.release(self._pair)
        self._pair = joined
        self._end.wire.be_patient(0)

    def close(self) -> None:
        """Leave the pair to others."""
        self._pairs.release(self._pair)

    def _join(self, header: Header) -> Pair:
        device = self._end.store.device
        assert device is not None, "it was chosen"
        return join_as_target(self._end.wire, device, self._pairs, self._peer, header)

    def _is_cancelled(self) -> bool:
        return self._pair.is_dropped or self._end.wire.has_hung_up()

    def _take_round(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        blocks = self._blocks(header)
        is_urgent = bool(header.mark & Round.URGENT)
        all_blocks = [blocks]
        # Blocks are written until the last chunk is done, or the end closed: left in that order.
        with (
            self._pairs.receiving.taken(_RECEIVE_TURN_S, self._is_cancelled, is_urgent=is_urgent),
            self._end.admissions.writing(self._end.admission, blocks),
            self._pair.used() as end,
        ):
            while True:
                end.receive(blocks, self._is_cancelled)
                self._end.wire.send(Header(Kind.READY))
                if header.mark & Round.LAST:
                    break
                header = self._next(header)
                blocks = self._blocks(header)
                self._end.admissions.require(self._end.admission, blocks)
                all_blocks.append(blocks)
            end.finish(self._is_cancelled)
        self._end.wire.send(Header(Kind.FREED))
        for each in all_blocks:
            written(each)

    def _next(self, before: Header) -> Header:
        header = self._end.wire.read()
        if header.kind is not Kind.CHUNK or header.stage != before.stage:
            raise WireError(f"{header.kind.name} of stage {header.stage} within a round")
        return header

    def _blocks(self, header: Header) -> "array[int]":
        if header.size or header.num_blocks > self._pair.chunk_blocks:
            raise WireError(f"chunk of {header.num_blocks} blocks and {header.size} bytes")
        return self._end.wire.blocks(header.num_blocks)
