"""How two ranks come to one pair, over a connection of theirs: the one there is, or a new one.

    source                                   target
      PAIR id           ──►                          a pair that both have?
                           ◄── JOINED yes, or unknown: then the source offers a new one
      PAIR id, setup    ──►
      joins                                  joins           both block, seconds at most
      JOINED yes or no  ──►◄── JOINED yes or no

Each says how it went as soon as it knows, and one that is still waiting gives up on a *no*. Only
if both could is there a pair. What is decided is known to both ends, so the connection goes on.
"""

import os
import time
from collections.abc import Callable

from llx.agent.transport.frames import (
    HEADER_BYTES,
    PAIR_ID_BYTES,
    Header,
    Joined,
    Kind,
    decode_header,
    line_of,
)
from llx.agent.transport.pairs import Pair, Pairs
from llx.agent.transport.sockets import SILENCE_S, limit_waits, peek, receive
from llx.agent.transport.source_wire import SourceWire
from llx.agent.transport.target_wire import TargetWire
from llx.errors import EngineError, LlxError, WireError
from llx.ports import DeviceKv

JOIN_WAIT_S = 60.0
"""The other end joins, or waits for another connection that does: above what joining takes."""
_MAKING_S = 50.0
_STANDING_S = 1.0
"""So long a request that stands still waits for a pair; its KV goes by another medium then."""
_LONG_S = 3.0
"""A peer that was joined in vain for so long is left alone, however that ended."""


class NotJoined(Exception):
    """There is no pair, and both ends know it; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def join_as_source(
    wire: SourceWire,
    device: DeviceKv,
    pairs: Pairs,
    peer: bytes,
    is_cancelled: Callable[[], bool],
    is_standing: Callable[[], bool],
) -> Pair:
    """The pair with that rank; to be released. Quick, as far as it can, if a request stands still.

    Raises:
        NotJoined: There is none.
        RemoteError, WireError, OSError: The connection is of no use any more.
    """
    limit_waits(wire.connection, send_s=SILENCE_S, receive_s=JOIN_WAIT_S)
    begun = time.monotonic()

    def is_in_vain() -> bool:
        is_late = time.monotonic() - begun > _STANDING_S
        return is_cancelled() or (is_late and is_standing())

    try:
        return _found_or_new(wire, device, pairs, peer, is_in_vain)
    except EngineError as error:  # others are making one, for longer than it can wait
        wire.send(*_joined(Joined.NO, error.message))
        raise NotJoined(error.message) from None
    finally:
        limit_waits(wire.connection, send_s=SILENCE_S, receive_s=SILENCE_S)


def _found_or_new(
    wire: SourceWire,
    device: DeviceKv,
    pairs: Pairs,
    peer: bytes,
    is_cancelled: Callable[[], bool],
) -> Pair:
    with pairs.making(peer, _MAKING_S, is_cancelled):
        if refusal := pairs.shunned(peer):
            wire.send(*_joined(Joined.NO, refusal))
            raise NotJoined(refusal)
        pair = pairs.find(peer, is_source=True)
        if pair is not None:
            try:
                if _is_known(wire, pair):
                    return pair
            except BaseException:
                pairs.release(pair)
                raise
            pair.drop()
            pairs.release(pair)
        begun = time.monotonic()
        try:
            return _new_as_source(wire, device, pairs, peer, is_cancelled)
        except NotJoined as error:
            pairs.shun(peer, error.reason)
            raise
        except (OSError, LlxError):
            if time.monotonic() - begun > _LONG_S:
                pairs.shun(peer, "joining took longer than a migration could wait")
            raise


def _is_known(wire: SourceWire, pair: Pair) -> bool:
    wire.send(Header(Kind.PAIR, size=PAIR_ID_BYTES), pair.id)
    header = wire.expect(Kind.JOINED)
    receive(wire.connection, header.size)
    if header.mark != Joined.YES:
        return False
    pair.chunk_blocks = _agreed(pair.chunk_blocks, header)
    wire.send(*_joined(Joined.YES))
    return True


def _new_as_source(
    wire: SourceWire,
    device: DeviceKv,
    pairs: Pairs,
    peer: bytes,
    is_cancelled: Callable[[], bool],
) -> Pair:
    try:
        with pairs.room():
            setup, pair_id = device.new_pair(), os.urandom(PAIR_ID_BYTES)
            wire.send(Header(Kind.PAIR, size=len(pair_id) + len(setup)), pair_id + setup)
            mine = _join(device, setup, peer, pair_id, wire, is_cancelled, is_source=True)
            try:
                pair = _settle_as_source(wire, mine)
            except BaseException:
                if isinstance(mine, Pair):
                    mine.drop()
                raise
            pairs.add(pair, is_source=True)
            return pair
    except EngineError as error:  # before anything was offered
        wire.send(*_joined(Joined.NO, error.message))
        raise NotJoined(error.message) from None


def _settle_as_source(wire: SourceWire, mine: "Pair | _Failed") -> Pair:
    if isinstance(mine, _Failed):
        wire.send(*_joined(Joined.NO, mine.reason))
    else:
        wire.send(*_joined(Joined.YES))
    header = wire.expect(Kind.JOINED)
    theirs = receive(wire.connection, header.size).decode(errors="replace")
    if isinstance(mine, _Failed):
        raise NotJoined(theirs if mine.is_told and theirs else mine.reason)
    if header.mark != Joined.YES:
        raise NotJoined(theirs or "the target could not")
    mine.chunk_blocks = _agreed(mine.chunk_blocks, header)
    return mine


def join_as_target(
    wire: TargetWire, device: DeviceKv, pairs: Pairs, peer: bytes, header: Header
) -> Pair:
    """The pair that the source means, whose first frame of it is `header`; to be released.

    Raises:
        NotJoined: There is none.
        RemoteError, WireError, OSError: The connection is of no use any more.
    """
    while True:
        if header.kind is Kind.JOINED:
            raise NotJoined(wire.body(header).decode(errors="replace") or "the source could not")
        if header.kind is not Kind.PAIR:
            raise WireError(f"{header.kind.name} before the pair")
        body = wire.body(header)
        pair_id, setup = body[:PAIR_ID_BYTES], body[PAIR_ID_BYTES:]
        if setup:
            return _new_as_target(wire, device, pairs, peer, pair_id, setup)
        pair = pairs.find(peer, is_source=False, pair_id=pair_id)
        if pair is None:
            wire.send(*_joined(Joined.UNKNOWN))
            header = wire.read()
            continue
        wire.send(*_joined(Joined.YES, num_blocks=pair.chunk_blocks))
        try:
            return _settle_as_target(wire, pairs, pair)
        except BaseException:
            pairs.release(pair)  # others count on it
            raise


def _new_as_target(
    wire: TargetWire, device: DeviceKv, pairs: Pairs, peer: bytes, pair_id: bytes, setup: bytes
) -> Pair:
    try:
        with pairs.room():
            mine = _join(device, setup, peer, pair_id, wire, wire.has_hung_up, is_source=False)
            if isinstance(mine, Pair):
                pairs.add(mine, is_source=False)  # the source may ask for it as soon as it hears
    except EngineError as error:
        mine = _Failed(error.message, is_told=False)
    if isinstance(mine, Pair):
        wire.send(*_joined(Joined.YES, num_blocks=mine.chunk_blocks))
        try:
            return _settle_as_target(wire, pairs, mine)
        except BaseException:
            mine.drop()
            pairs.release(mine)
            raise
    wire.send(*_joined(Joined.NO, mine.reason))
    header = _joined_by_source(wire)
    theirs = wire.body(header).decode(errors="replace")
    reason = theirs if mine.is_told and theirs else mine.reason
    pairs.shun(peer, reason)
    raise NotJoined(reason)


def _settle_as_target(wire: TargetWire, pairs: Pairs, pair: Pair) -> Pair:
    """The source has the last word."""
    header = _joined_by_source(wire)
    theirs = wire.body(header).decode(errors="replace")
    if header.mark != Joined.YES:
        theirs = theirs or "the source could not"
        pairs.shun(pair.peer, theirs)
        raise NotJoined(theirs)
    return pair


def _joined_by_source(wire: TargetWire) -> Header:
    header = wire.read()
    if header.kind is not Kind.JOINED:
        raise WireError(f"{header.kind.name} instead of whether it has joined")
    return header


class _Failed:
    """This end could not; `is_told`: because the other one could not."""

    def __init__(self, reason: str, *, is_told: bool) -> None:
        self.reason, self.is_told = line_of(reason), is_told


def _join(
    device: DeviceKv,
    setup: bytes,
    peer: bytes,
    pair_id: bytes,
    wire: SourceWire | TargetWire,
    is_cancelled: Callable[[], bool],
    *,
    is_source: bool,
) -> "Pair | _Failed":
    is_told = False

    def is_in_vain() -> bool:
        nonlocal is_told
        is_told = is_told or _says_no(peek(wire.connection, HEADER_BYTES))
        return is_told or is_cancelled()

    try:
        end = device.join(setup, is_source=is_source, is_cancelled=is_in_vain)
    except EngineError as error:
        return _Failed(error.message, is_told=is_told)
    return Pair(pair_id, peer, end, end.chunk_blocks)


def _says_no(data: bytes) -> bool:
    if len(data) < HEADER_BYTES:
        return False
    try:
        header = decode_header(data)
    except WireError:
        return True
    return header.kind is Kind.FAILED or (header.kind is Kind.JOINED and header.mark != Joined.YES)


def _agreed(mine: int, header: Header) -> int:
    if header.num_blocks < 1:
        raise WireError("a pair for chunks of no blocks")
    return min(mine, header.num_blocks)


def _joined(mark: Joined, reason: str = "", *, num_blocks: int = 0) -> tuple[Header, bytes]:
    body = line_of(reason).encode()
    return Header(Kind.JOINED, mark, num_blocks=num_blocks, size=len(body)), body
