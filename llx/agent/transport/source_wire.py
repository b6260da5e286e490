"""The source's connection: dialled within the host or over TCP, and what is said on it.

A chunk is packed into what `buffer` gives and leaves with `send_chunk`: through the socket, or by
the name of a slot that the target reads. Which of the two is known here alone.
"""

import contextlib
import os
import socket
from array import array

import msgspec

from llx.agent.transport.frames import (
    HEADER_BYTES,
    Header,
    Hello,
    Kind,
    Last,
    decode_header,
    encode_hello,
)
from llx.agent.transport.slots import Slots, make_slots
from llx.agent.transport.sockets import (
    SILENCE_S,
    connect_local,
    connect_tcp,
    host_id,
    limit_waits,
    receive,
)
from llx.errors import RemoteError, UnreachableError, WireError
from llx.log import get_log
from llx.wire import Route

log = get_log(__name__)

NUM_SLOTS = 2
_HELLO_S = 5.0
"""The target answers a hello at once, or within what it waits for its own llumlet's word."""
_DIGEST_BYTES_PER_S = 50 << 20
"""A target that reads everything back is given time for so much."""


def connect(route: Route) -> socket.socket:
    """A connection to a rank: within the host if both ends are on one, else over TCP.

    Raises:
        UnreachableError: Nobody is there.
    """
    if route.local and route.host_id == host_id():
        try:
            return connect_local(route.local)
        except UnreachableError as error:
            log.warning("kv.local_failed", reason=error.message, instead=route.address)
    return connect_tcp(route.address)


class SourceWire:
    """Says what `frames` describes; one thread. The caller closes the socket, after `close`.

    Every method raises `RemoteError` if the target has said why it will not, `WireError` if it
    talks nonsense, and OSError if the connection broke.

    Args:
        connection: As `connect` made it.
        hello: Without slots; they are added here within a host.
    """

    def __init__(self, connection: socket.socket, hello: Hello) -> None:
        self._connection = connection
        self._hello = hello
        self._slots: Slots | None = None
        self._free: list[int] = []
        self._slot = 0
        self._staging = memoryview(b"")
        self.chunk_blocks = 0
        """Most blocks of a chunk, as both ends can; known after `greet`."""

    def greet(self) -> None:
        """Be admitted."""
        connection, hello = self._connection, self._hello
        limit_waits(connection, send_s=SILENCE_S, receive_s=_HELLO_S)
        chunk_bytes = hello.chunk_blocks * hello.block_bytes
        if connection.family == socket.AF_UNIX:
            self._greet_with_slots(hello, chunk_bytes)
        else:
            connection.sendall(encode_hello(hello))
            self._staging = memoryview(bytearray(chunk_bytes))
        self.chunk_blocks = self._await(Kind.ADMITTED).num_blocks
        if not 1 <= self.chunk_blocks <= hello.chunk_blocks:
            raise WireError(f"chunks of {self.chunk_blocks} blocks asked for")
        limit_waits(connection, send_s=SILENCE_S, receive_s=SILENCE_S)

    def _greet_with_slots(self, hello: Hello, chunk_bytes: int) -> None:
        fd, slots = make_slots(chunk_bytes, NUM_SLOTS)
        self._slots, self._free = slots, list(range(NUM_SLOTS))
        hello = msgspec.structs.replace(hello, slot_bytes=slots.slot_bytes, num_slots=NUM_SLOTS)
        frame = encode_hello(hello)
        try:
            # The header alone carries the descriptor: the target reads exactly that with it.
            socket.send_fds(self._connection, [frame[:HEADER_BYTES]], [fd])
        finally:
            os.close(fd)
        self._connection.sendall(frame[HEADER_BYTES:])

    def buffer(self) -> memoryview:
        """Where the next chunk is to be packed; waits for a slot if all are with the target."""
        if self._slots is None:
            self._hear_failure()
            return self._staging
        while not self._free:
            self._take(self._read())
        self._slot = self._free.pop()
        return self._slots[self._slot]

    def send_chunk(self, stage: int, blocks: "array[int]", view: memoryview, crc: int) -> None:
        """Send `view`, the beginning of the last `buffer`, to be unpacked into `blocks`."""
        header = Header(Kind.CHUNK, self._slot, stage, len(blocks), crc, len(view))
        head = header.encode() + blocks.tobytes()
        if self._slots is None:
            self._connection.sendall(head, socket.MSG_MORE)
            self._connection.sendall(view)
        else:
            self._connection.sendall(head)

    def end_stage(self, stage: int, last: Last, num_blocks: int, crc: int, body: bytes) -> None:
        """Send the end of a stage, and wait until the target has all of it in its blocks."""
        header = Header(Kind.END, last, stage, num_blocks, crc, len(body))
        self._connection.sendall(header.encode() + body)
        arrived = self._await(Kind.ARRIVED)
        if arrived.stage != stage:
            raise WireError(f"stage {arrived.stage} reported instead of {stage}")

    def allow_digest(self, size_bytes: int) -> None:
        """The target is about to read that much back before it answers."""
        patience_s = SILENCE_S + size_bytes / _DIGEST_BYTES_PER_S
        limit_waits(self._connection, send_s=SILENCE_S, receive_s=patience_s)

    def failure_said(self) -> str:
        """Why the target has hung up, if it said so; for when sending has failed."""
        try:
            limit_waits(self._connection, send_s=1.0, receive_s=1.0)
            while True:
                self._take(self._read())
        except RemoteError as error:
            return error.message
        except (OSError, WireError):
            return ""

    def close(self) -> None:
        """Give back the shared memory; the socket is the caller's."""
        if self._slots is not None:
            self._slots.close()

    def _hear_failure(self) -> None:
        """What a target has to say between two chunks is that there need be no more."""
        with contextlib.suppress(BlockingIOError):
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            self._take(self._read())

    def _await(self, kind: Kind) -> Header:
        while (header := self._read()).kind is not kind:
            self._take(header)
        return header

    def _take(self, header: Header) -> None:
        if header.kind is not Kind.FREED or self._slots is None:
            raise WireError(f"{header.kind.name} from a target")
        if header.mark >= self._slots.num_slots or header.mark in self._free:
            raise WireError(f"slot {header.mark} given back, which it has not")
        self._free.append(header.mark)

    def _read(self) -> Header:
        header = decode_header(receive(self._connection, HEADER_BYTES))
        if header.kind is Kind.FAILED:
            reason = receive(self._connection, header.size).decode(errors="replace")
            raise RemoteError(reason)
        return header
