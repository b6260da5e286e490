"""The target's connection: what is read from it and said on it. Nothing here moves KV."""

import contextlib
import socket
from array import array

from llx.agent.transport.frames import (
    BLOCK_ID_BYTES,
    HEADER_BYTES,
    MAX_HELLO_BYTES,
    MAX_REASON_BYTES,
    Header,
    Hello,
    Kind,
    decode_blocks,
    decode_header,
    decode_hello,
)
from llx.agent.transport.sockets import (
    SILENCE_S,
    has_hung_up,
    limit_waits,
    receive,
    receive_into,
    tune,
)
from llx.errors import RemoteError, WireError

_DRAIN_S = 1.0


class TargetWire:
    """Reads and says what `frames` describes; one thread. The caller closes the socket.

    Reading raises `WireError` if the source talks nonsense, `RemoteError` if it says that it has
    failed, and OSError if the connection broke.

    Args:
        connection: Just accepted.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._head = memoryview(bytearray(HEADER_BYTES))

    @property
    def is_local(self) -> bool:
        """Whether both ends are on one host."""
        return self.connection.family == socket.AF_UNIX

    def hello(self) -> Hello:
        """What the source says first, in time."""
        self.be_patient(SILENCE_S)
        if not self.is_local:
            tune(self.connection)
        header = self.read()
        if header.kind is not Kind.HELLO:
            raise WireError(f"{header.kind.name} before a hello")
        return decode_hello(receive(self.connection, header.size))

    def be_patient(self, receive_s: float) -> None:
        """How long to wait for what is read; 0: for ever, as between two frames of a stage."""
        limit_waits(self.connection, send_s=SILENCE_S, receive_s=receive_s)

    def read(self) -> Header:
        """The next header."""
        receive_into(self.connection, self._head)
        header = decode_header(self._head)
        if header.kind is Kind.FAILED:
            said = receive(self.connection, header.size).decode(errors="replace")
            raise RemoteError(f"the source has failed: {said}")
        return header

    def body(self, header: Header) -> bytes:
        """What follows a header that is not of a chunk."""
        return bytes(receive(self.connection, header.size))

    def blocks(self, count: int) -> "array[int]":
        """Block ids that follow the header of a chunk."""
        return decode_blocks(receive(self.connection, count * BLOCK_ID_BYTES))

    def send(self, header: Header, body: bytes = b"") -> None:
        """Say something."""
        self.connection.sendall(header.encode() + body)

    def has_hung_up(self) -> bool:
        """Whether either end has; at once."""
        return has_hung_up(self.connection)

    def failure_said(self) -> str:
        """Why the source has hung up, if it said so; for when a chunk without bytes has failed."""
        try:
            limit_waits(self.connection, send_s=_DRAIN_S, receive_s=_DRAIN_S)
            for _ in range(64):  # chunks that it had announced before
                header = self.read()
                size = header.num_blocks * BLOCK_ID_BYTES if header.kind is Kind.CHUNK else 0
                receive(self.connection, min(MAX_HELLO_BYTES, size + header.size))
        except RemoteError as error:
            return error.message
        except (OSError, WireError):
            pass
        return ""

    def say_failed(self, reason: str) -> None:
        """Say why, and read on for a moment: closing over unread bytes would take it back."""
        body = reason.encode()[:MAX_REASON_BYTES]
        with contextlib.suppress(OSError):
            limit_waits(self.connection, send_s=_DRAIN_S, receive_s=_DRAIN_S)
            self.send(Header(Kind.FAILED, size=len(body)), body)
            self.connection.shutdown(socket.SHUT_WR)
            buffer = bytearray(1 << 16)
            for _ in range(1024):
                if not self.connection.recv_into(buffer):
                    return
