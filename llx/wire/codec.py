"""Header frames: made, and read with suspicion."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from llx.core.model import RequestId
from llx.errors import WireError
from llx.wire.line import CancelRequests, Place, ReclassRequests, Withdraw
from llx.wire.message import Message
from llx.wire.moving import (
    AbortMigration,
    CancelMigration,
    Commit,
    Extend,
    MigrateOrder,
    Reserve,
    Ruling,
)
from llx.wire.sessions import Abort, Add, Hello, Load, Outputs

T = TypeVar("T")

WIRE_VERSION = 1
"""Of messages, of the files that a head, its agents and what they start leave each other, and of KV
on its way. Processes of two releases work together if it is the same, as they do in `llx upgrade`:
whoever changes what the release before could not read raises it."""
MAX_HEADER_BYTES = 4 << 20
MAX_FRAMES = 1 << 13
"""vLLM sends a frame per larger tensor: prompt logprobs of a batch are hundreds."""
MAX_MESSAGE_BYTES = 256 << 20
"""Upper bound of one frame; a ZMQ socket drops the connection of a peer that exceeds it."""
MAX_ID_BYTES = 512

_WITHOUT_IDS = (Load, Outputs)
"""By far the most that comes; whoever asked what else each of them may be would do little else."""

_encoder = msgspec.msgpack.Encoder()
_version_byte = bytes([WIRE_VERSION])


def encode(message: Message) -> bytes:
    """The header frame of `message`."""
    return _version_byte + _encoder.encode(message)


class Decoder(Generic[T]):
    """Decodes header frames of one union of messages, for example ``Decoder(ToInstance)``.

    Ids longer than `MAX_ID_BYTES` and frames longer than `MAX_HEADER_BYTES` are refused.
    """

    def __init__(self, union: type[T] | object) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)

    def decode(self, frame: bytes | memoryview) -> T:
        """The message in `frame`.

        Raises:
            WireError: The frame is empty, too long, of another wire version, or not a message of
                this union.
        """
        size = len(frame)
        if not 1 <= size <= MAX_HEADER_BYTES:
            raise WireError(f"header frame of {size} bytes (1 to {MAX_HEADER_BYTES} allowed)")
        if frame[0] != WIRE_VERSION:
            raise WireError(
                f"wire version {frame[0]} (this side speaks {WIRE_VERSION})",
                remedy="run the same llx version on every host",
            )
        try:
            message = self._decoder.decode(memoryview(frame)[1:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"not a message: {error}") from None
        if not isinstance(message, _WITHOUT_IDS):
            _check_ids(message)
        return message


def check_frames(frames: Sequence[bytes | memoryview]) -> None:
    """Refuse a multipart message of an absurd shape.

    Raises:
        WireError: No frame, too many frames, or too many bytes in all.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"message of {len(frames)} frames (1 to {MAX_FRAMES} allowed)")
    total = sum(len(frame) for frame in frames)
    if total > MAX_MESSAGE_BYTES:
        raise WireError(f"message of {total} bytes ({MAX_MESSAGE_BYTES} allowed)")


def _check_ids(message: object) -> None:
    match message:
        case Add(request=request, name=name):
            ids = [request, RequestId(name or "-")]
        case Ruling(request=request) | Withdraw(request=request):
            ids = [request]
        case MigrateOrder(migration=migration, request=request, rule=rule):
            ids = [RequestId(migration), RequestId(request if rule is None else request or "-")]
        case Reserve(migration=migration, request=request, gateway=gateway):
            ids = [RequestId(migration), request, RequestId(gateway)]
        case CancelMigration() | Extend() | Commit() | AbortMigration():
            ids = [RequestId(message.migration)]
        case Abort(requests=requests):
            ids = [request for request, _ in requests]
        case Place(request=request, pool=pool, name=name):
            ids = [request, RequestId(pool), RequestId(name or "-")]
        case CancelRequests(requests=requests) | ReclassRequests(requests=requests):
            ids = requests
        case Hello(peer=peer):
            ids = [RequestId(peer)]
        case _:
            return
    for each in ids:
        if not 0 < len(each) <= MAX_ID_BYTES:
            raise WireError(f"id of {len(each)} characters (1 to {MAX_ID_BYTES} allowed)")
