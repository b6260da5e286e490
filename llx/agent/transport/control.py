"""What an engine core and the process of one of its ranks say to each other.

msgspec structs, each behind its length, on an abstract unix socket of the host. The core shows the
rank's secret first. Nothing here acts on them.
"""

import socket
import struct
from typing import Any

import msgspec

from llx.agent.transport.sockets import receive
from llx.core.model import MigrationId, RequestId
from llx.errors import WireError
from llx.ports import Copied
from llx.wire import Route

MAX_MESSAGE_BYTES = 16 << 20
"""Block tables of a million blocks."""
MAX_JOIN_BYTES = 1 << 10
_LENGTH = struct.Struct("<I")


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all: encoded as an array headed by the class name."""


class Join(_Message, frozen=True):
    """The core's first word. Answered by `Joined`, or by hanging up."""

    secret: str


class Joined(_Message, frozen=True):
    """The core is in."""


class Expect(_Message, frozen=True):
    """See `llx.agent.transport.instance.Rank`, here and below."""

    migration: MigrationId
    token: bytes
    blocks: list[int]


class Allow(_Message, frozen=True):
    """Target."""

    migration: MigrationId
    blocks: list[int]


class Fence(_Message, frozen=True):
    """Target; answered by `Done` of that call."""

    migration: MigrationId
    call: int


class Finish(_Message, frozen=True):
    """Target."""

    migration: MigrationId


class Open(_Message, frozen=True):
    """Source."""

    migration: MigrationId
    route: Route
    token: bytes
    is_checked: bool


class Send(_Message, frozen=True):
    """Source; answered by `Done` of that call."""

    migration: MigrationId
    stage: int
    source: list[int]
    target: list[int]
    state_of: RequestId | None
    call: int


class Close(_Message, frozen=True):
    """Source."""

    migration: MigrationId


class Done(_Message, frozen=True):
    """A call is answered: with what was done, or with what failed. A fence just is."""

    call: int
    result: Copied | str | None


class Arrived(_Message, frozen=True):
    """The rank has a stage."""

    migration: MigrationId
    stage: int


class Broken(_Message, frozen=True):
    """A connection of the rank ended."""

    migration: MigrationId
    reason: str


ToRank = Join | Expect | Allow | Fence | Finish | Open | Send | Close
FromRank = Joined | Done | Arrived | Broken


class ControlWire:
    """Messages over a connected socket; one thread receives, another sends.

    Args:
        connection: The caller's, who closes it.
        union: What may be received.
    """

    def __init__(self, connection: socket.socket, union: object) -> None:
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(union)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: ToRank | FromRank) -> None:
        """Send one; raises OSError if the other end has gone."""
        data = self._encoder.encode(message)
        self._connection.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, limit: int = MAX_MESSAGE_BYTES) -> Any:
        """The next one, of the union.

        Raises:
            WireError: It is none, or longer than `limit`.
            OSError: The other end has gone.
        """
        (size,) = _LENGTH.unpack(receive(self._connection, _LENGTH.size))
        if size > limit:
            raise WireError(f"control message of {size} bytes ({limit} allowed)")
        try:
            return self._decoder.decode(receive(self._connection, size))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"not a control message: {error}") from None
