"""The source's connection: dialled within the host or over TCP, and what is said on it.

Which bytes of KV travel how is the media's (`medium_tcp`, `medium_shm`, `medium_ipc`,
`medium_nccl`).
"""

import contextlib
import socket
from collections.abc import Callable

from llx.agent.transport.frames import (
    HEADER_BYTES,
    MAX_REASON_BYTES,
    Admitted,
    Header,
    Hello,
    Kind,
    Last,
    decode_admitted,
    decode_header,
    encode_hello,
)
from llx.agent.transport.sockets import (
    SILENCE_S,
    connect_local,
    connect_tcp,
    has_hung_up,
    host_id,
    limit_waits,
    receive,
)
from llx.errors import RemoteError, UnreachableError, WireError
from llx.log import get_log
from llx.wire import Route

log = get_log(__name__)

_HELLO_S = 10.0
"""The target answers a hello within what it waits for its own llumlet's word and maps a GPU's."""
_DIGEST_BYTES_PER_S = 50 << 20
"""A target that reads everything back is given time for so much."""


def connect(route: Route, *, is_local: bool = True) -> socket.socket:
    """A connection to a rank: within the host if both ends are on one, else over TCP.

    `is_local` false: over TCP in any case.

    Raises:
        UnreachableError: Nobody is there.
    """
    if is_local and route.local and route.host_id == host_id():
        try:
            return connect_local(route.local)
        except UnreachableError as error:
            log.warning("kv.local_failed", reason=error.message, instead=route.address)
    return connect_tcp(route.address)


class SourceWire:
    """Says what `frames` describes; one thread. The caller closes the socket.

    Every method raises `RemoteError` if the target has said why it will not, `WireError` if it
    talks nonsense, and OSError if the connection broke.

    Args:
        connection: As `connect` made it.
        hello: What is said first.
    """

    def __init__(self, connection: socket.socket, hello: Hello) -> None:
        self.connection = connection
        self.hello = hello
        self.on_freed: Callable[[Header], None] | None = None
        """The medium's, if its target gives something back."""
        self.chunk_blocks = 0
        """Most blocks of a chunk of bytes, as both ends can; known after `greet`."""

    @property
    def is_local(self) -> bool:
        """Whether both ends are on one host."""
        return self.connection.family == socket.AF_UNIX

    def greet(self) -> Admitted:
        """Be admitted."""
        limit_waits(self.connection, send_s=SILENCE_S, receive_s=_HELLO_S)
        self.connection.sendall(encode_hello(self.hello))
        header = self.expect(Kind.ADMITTED)
        if not 1 <= header.num_blocks <= self.hello.chunk_blocks:
            raise WireError(f"chunks of {header.num_blocks} blocks asked for")
        self.chunk_blocks = header.num_blocks
        admitted = decode_admitted(receive(self.connection, header.size))
        limit_waits(self.connection, send_s=SILENCE_S, receive_s=SILENCE_S)
        return admitted

    def send(self, header: Header, body: bytes = b"") -> None:
        """Send one frame."""
        self.connection.sendall(header.encode() + body)

    def expect(self, kind: Kind) -> Header:
        """The next header of that kind; what is freed before it goes to the medium."""
        while (header := self._read()).kind is not kind:
            self._take(header)
        return header

    def take_freed(self) -> None:
        """Wait until the target frees something, which goes to the medium."""
        self._take(self._read())

    def end_stage(self, stage: int, last: Last, num_blocks: int, crc: int, body: bytes) -> None:
        """Send the end of a stage, and wait until the target has all of it in its blocks."""
        self.send(Header(Kind.END, last, stage, num_blocks, crc, len(body)), body)
        arrived = self.expect(Kind.ARRIVED)
        if arrived.stage != stage:
            raise WireError(f"stage {arrived.stage} reported instead of {stage}")

    def allow_digest(self, size_bytes: int) -> None:
        """The target is about to read that much back before it answers."""
        patience_s = SILENCE_S + size_bytes / _DIGEST_BYTES_PER_S
        limit_waits(self.connection, send_s=SILENCE_S, receive_s=patience_s)

    def has_hung_up(self) -> bool:
        """Whether either end has; at once."""
        return has_hung_up(self.connection)

    def hear_failure(self) -> None:
        """What a target has to say between two chunks is that there need be no more."""
        with contextlib.suppress(BlockingIOError):
            self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            self.take_freed()

    def failure_said(self) -> str:
        """Why the target has hung up, if it said so; for when sending has failed."""
        try:
            limit_waits(self.connection, send_s=1.0, receive_s=1.0)
            while True:
                header = self._read()
                receive(self.connection, header.size)
        except RemoteError as error:
            return error.message
        except (OSError, WireError):
            return ""

    def say_failed(self, reason: str) -> None:
        """Tell the target why there will be no more; nothing if it cannot be told."""
        body = reason.encode()[:MAX_REASON_BYTES]
        with contextlib.suppress(OSError):
            limit_waits(self.connection, send_s=1.0, receive_s=1.0)
            self.send(Header(Kind.FAILED, size=len(body)), body)

    def _take(self, header: Header) -> None:
        if header.kind is not Kind.FREED or self.on_freed is None:
            raise WireError(f"{header.kind.name} from a target")
        self.on_freed(header)

    def _read(self) -> Header:
        header = decode_header(receive(self.connection, HEADER_BYTES))
        if header.kind is Kind.FAILED:
            reason = receive(self.connection, header.size).decode(errors="replace")
            raise RemoteError(reason)
        return header
