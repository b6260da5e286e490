"""The target's end of one connection: a thread that greets, receives, checks and unpacks.

Whether a migration may still write is `admissions`'; which bytes mean what is `frames`'. Whatever a
peer sends, the worst that happens is that its own connection ends.
"""

import contextlib
import hmac
import mmap
import os
import socket
import zlib
from array import array
from collections.abc import Callable

from llx.agent.transport.admissions import Admission, Admissions, Fenced
from llx.agent.transport.digest import digest_of
from llx.agent.transport.frames import (
    BLOCK_ID_BYTES,
    DIGEST_BYTES,
    HEADER_BYTES,
    MAX_REASON_BYTES,
    Header,
    Hello,
    Kind,
    Last,
    decode_blocks,
    decode_header,
    decode_hello,
)
from llx.agent.transport.slots import Slots, map_slots
from llx.agent.transport.sockets import (
    SILENCE_S,
    limit_waits,
    receive,
    receive_into,
    receive_parts,
    tune,
)
from llx.core.model import MigrationId
from llx.errors import WireError
from llx.log import get_log
from llx.ports import KvListener, KvStore

log = get_log(__name__)

_DRAIN_S = 1.0
_MOST_SLOT_BYTES = 1 << 30
"""Most shared memory that is mapped for one connection."""


class TargetConnection:
    """Serves one accepted connection on the calling thread, until it ends.

    Args:
        connection: Just accepted; the caller closes it afterwards.
        store: Where blocks are written.
        chunk_bytes: Staging memory, if chunks come by the socket.
        admissions: Who may write.
        listener: Who is told.
        is_admitted: Called once it has shown its token: it no longer counts among strangers.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        store: KvStore,
        chunk_bytes: int,
        admissions: Admissions,
        listener: KvListener,
        is_admitted: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._store = store
        self._admissions = admissions
        self._listener = listener
        self._is_admitted = is_admitted
        self._block_bytes = store.block_bytes
        self._chunk_blocks = max(1, chunk_bytes // store.block_bytes)
        self._slots: Slots | None = None
        self._staging = memoryview(b"")
        self._written: array[int] = array("i")
        self._num_arrived = 0
        """Blocks of the stage that is arriving."""
        self._last_stage = -1
        self._is_last_here = False

    def serve(self) -> None:
        """Until the peer goes, errs or is fenced."""
        admission: Admission | None = None
        try:
            hello, fds = self._greeting()
            try:
                admission = self._admissions.admit(
                    MigrationId(hello.migration), hello.token, self._connection
                )
                self._is_admitted()
                self._agree(hello, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            self._receive_all(admission, hello)
        except Fenced:
            self._end(admission, "", "")
        except WireError as error:
            self._end(admission, error.message, error.message)
        except OSError as error:
            self._end(admission, f"the source's connection ended: {error}", "")
        except Exception as error:  # the thread's edge: a store that fails must not end the agent
            log.exception("kv.target_failed", migration=admission and admission.migration)
            reason = f"{type(error).__name__} at the target: {error}"
            self._end(admission, reason, reason)

    # ------------------------------------------------------------------ the greeting

    def _greeting(self) -> tuple[Hello, list[int]]:
        """What it says first, and the file descriptors beside it, which the caller closes."""
        limit_waits(self._connection, send_s=SILENCE_S, receive_s=SILENCE_S)
        fds: list[int] = []
        if self._connection.family == socket.AF_UNIX:
            data, fds, _, _ = socket.recv_fds(
                self._connection, HEADER_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        else:
            tune(self._connection)
            data = bytes(receive(self._connection, HEADER_BYTES))
        try:
            header = decode_header(data)
            if header.kind is not Kind.HELLO:
                raise WireError(f"{header.kind.name} before a hello")
            return decode_hello(receive(self._connection, header.size)), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _agree(self, hello: Hello, fds: list[int]) -> None:
        store = self._store
        if (hello.layout, hello.block_bytes) != (store.layout, self._block_bytes):
            raise WireError(
                f"KV of another layout: {hello.layout} with {hello.block_bytes} bytes a block"
                f" there, {store.layout} with {self._block_bytes} here"
            )
        self._chunk_blocks = min(self._chunk_blocks, hello.chunk_blocks)
        most = self._chunk_blocks * self._block_bytes
        if hello.num_slots:
            if len(fds) != 1 or hello.slot_bytes < most:
                raise WireError("slots too small for a chunk, or without their memory")
            if hello.slot_bytes * hello.num_slots > max(_MOST_SLOT_BYTES, 2 * most + mmap.PAGESIZE):
                raise WireError(f"{hello.num_slots} slots of {hello.slot_bytes} bytes")
            self._slots = map_slots(fds[0], hello.slot_bytes, hello.num_slots)
        else:
            self._staging = memoryview(bytearray(most))
        limit_waits(self._connection, send_s=SILENCE_S, receive_s=0)
        self._send(Header(Kind.ADMITTED, num_blocks=self._chunk_blocks))

    # ------------------------------------------------------------------ stages

    def _receive_all(self, admission: Admission, hello: Hello) -> None:
        head = memoryview(bytearray(HEADER_BYTES))
        while True:
            receive_into(self._connection, head)
            header = decode_header(head)
            if header.stage <= self._last_stage or self._is_last_here:
                raise WireError(f"{header.kind.name} of stage {header.stage}, which has ended")
            match header.kind:
                case Kind.CHUNK:
                    self._chunk(admission, hello, header)
                case Kind.END:
                    self._end_of_stage(admission, hello, header)
                case _:
                    raise WireError(f"{header.kind.name} from a source")

    def _chunk(self, admission: Admission, hello: Hello, header: Header) -> None:
        count = header.num_blocks
        if count > self._chunk_blocks or header.size != count * self._block_bytes:
            raise WireError(f"chunk of {count} blocks and {header.size} bytes")
        ids = memoryview(bytearray(count * BLOCK_ID_BYTES))
        if self._slots is None:
            view = self._staging[: header.size]
            receive_parts(self._connection, ids, view)
        else:
            receive_into(self._connection, ids)
            if header.mark >= self._slots.num_slots:
                raise WireError(f"chunk in slot {header.mark} of {self._slots.num_slots}")
            view = self._slots[header.mark][: header.size]
        blocks = decode_blocks(ids)
        if hello.has_crc and zlib.crc32(view) != header.crc:
            raise WireError(f"checksum of a chunk of stage {header.stage} differs")
        with self._admissions.writing(admission, blocks):
            self._store.unpack(blocks, view)
        if self._slots is not None:
            self._send(Header(Kind.FREED, mark=header.mark))
        self._num_arrived += count
        if hello.is_checked:
            self._written.extend(blocks)

    def _end_of_stage(self, admission: Admission, hello: Hello, header: Header) -> None:
        body = bytes(receive(self._connection, header.size))
        if hello.has_crc and zlib.crc32(body) != header.crc:
            raise WireError(f"checksum of the end of stage {header.stage} differs")
        if header.num_blocks != self._num_arrived:
            raise WireError(f"{self._num_arrived} of {header.num_blocks} blocks have come")
        if hello.is_checked and header.mark == Last.STATE:
            raise WireError("the last stage of a checked migration without its digest")
        if header.mark != Last.NO:
            state_bytes = header.size - (DIGEST_BYTES if header.mark == Last.CHECKED else 0)
            if header.mark == Last.CHECKED:
                self._compare(body[state_bytes:])
            with self._admissions.writing(admission, array("i")):
                self._store.keep_sampler_state(admission.migration, body[:state_bytes])
            self._is_last_here = True
        self._num_arrived = 0
        self._last_stage = header.stage
        self._send(Header(Kind.ARRIVED, stage=header.stage))
        self._listener.on_arrived(admission.migration, header.stage)

    def _compare(self, theirs: bytes) -> None:
        mine = digest_of(self._store, self._written, self._chunk_blocks)
        if not hmac.compare_digest(mine, theirs):
            raise WireError("the copied blocks differ between source and target")

    # ------------------------------------------------------------------ the end

    def _send(self, header: Header, body: bytes = b"") -> None:
        self._connection.sendall(header.encode() + body)

    def _end(self, admission: Admission | None, reason: str, answer: str) -> None:
        """Answer the peer if there is something to say, and tell the listener.

        The listener first: the peer may be slow to listen.
        """
        if admission is not None and self._admissions.leave(admission):
            log.info("kv.broken", migration=admission.migration, reason=reason)
            self._listener.on_broken(admission.migration, reason)
        elif answer:
            log.warning("kv.refused", reason=answer)
        if answer:
            with contextlib.suppress(OSError):
                self._say_failed(answer)
        if self._slots is not None:
            self._slots.close()

    def _say_failed(self, answer: str) -> None:
        """Say it, and read on for a moment: closing over unread bytes would take it back."""
        body = answer.encode()[:MAX_REASON_BYTES]
        limit_waits(self._connection, send_s=_DRAIN_S, receive_s=_DRAIN_S)
        self._send(Header(Kind.FAILED, size=len(body)), body)
        self._connection.shutdown(socket.SHUT_WR)
        buffer = bytearray(1 << 16)
        for _ in range(1024):
            if not self._connection.recv_into(buffer):
                return
