"""The source's end of one migration: a thread with one connection, through which stages go.

    llumlet's thread     open ─► send ─► send ─► … ─► close
    this thread          connect, greet, (pack, send)*, END, wait for ARRIVED, done

While the kernel sends one chunk out of its own buffer, or the target unpacks one slot, the next is
packed. What fails is remembered: each `send` gets one answer, and after a failure that failure.
"""

import queue
import socket
import threading
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from llx.agent.transport.budget import Budget
from llx.agent.transport.digest import digest_of
from llx.agent.transport.frames import (
    MAX_CHUNK_BLOCKS,
    MAX_STATE_BYTES,
    Hello,
    Last,
)
from llx.agent.transport.sockets import SILENCE_S, hang_up
from llx.agent.transport.source_wire import SourceWire, connect
from llx.core.model import MigrationId, RequestId
from llx.errors import EngineError, LlxError
from llx.log import get_log
from llx.ports import KvStore
from llx.specs import MigrationSpec
from llx.wire import Route

log = get_log(__name__)

CLOSED = "its connection was closed at the source"


@dataclass(frozen=True, slots=True)
class Stage:
    """What one `send` asked for; `source` and `target` are of one length."""

    number: int
    source: "array[int]"
    target: "array[int]"
    state_of: RequestId | None
    done: Callable[[int | str], None]


class SourceLink:
    """One migration away from this rank.

    Args:
        migration: Which.
        route: Where its target's rank is.
        token: Admits there.
        is_checked: Compare all blocks at the end.
        store: Where blocks are read.
        spec: Chunk size, checksums.
        budget: The rank's.
    """

    def __init__(
        self,
        migration: MigrationId,
        route: Route,
        token: bytes,
        *,
        is_checked: bool,
        store: KvStore,
        spec: MigrationSpec,
        budget: Budget,
    ) -> None:
        self._migration = migration
        self._route = route
        self._store = store
        self._budget = budget
        self._is_checked = is_checked
        self._has_crc = spec.checksum
        block_bytes = store.block_bytes
        self._hello = Hello(
            migration=migration,
            token=token,
            layout=store.layout,
            block_bytes=block_bytes,
            chunk_blocks=min(MAX_CHUNK_BLOCKS, max(1, spec.chunk_bytes // block_bytes)),
            is_checked=is_checked,
            has_crc=spec.checksum,
        )
        self._stages: queue.SimpleQueue[Stage | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._wire: SourceWire | None = None
        self._failure = ""
        self._sent = array("i")
        """Every block copied so far; kept of a checked migration only."""

    def send(self, stage: Stage) -> None:
        """Copy this next; `stage.done` is called once. Not after `close`."""
        self._stages.put(stage)

    def close(self) -> None:
        """Stop whatever it is doing; what is not done yet fails with `CLOSED`."""
        self._closing.set()
        self._stages.put(None)
        with self._lock:
            if self._connection is not None:
                hang_up(self._connection)

    def run(self) -> None:
        """The thread: until `close`."""
        self._guarded(self._connect)
        while (stage := self._stages.get()) is not None:
            self._guarded(self._copy, stage)
            stage.done(self._failure or len(stage.source) * self._hello.block_bytes)
        self._disconnect()

    # ------------------------------------------------------------------ this thread

    def _guarded(self, action: Callable[..., None], *arguments: Stage) -> None:
        """Do it unless something has failed; if it fails, remember why and hang up."""
        if self._failure:
            return
        try:
            action(*arguments)
        except LlxError as error:
            self._failure = error.message
        except OSError as error:
            said = self._wire.failure_said() if self._wire else ""
            self._failure = said or f"the connection to the target failed: {_in_words(error)}"
        except Exception as error:  # the thread's edge: a failing store ends one migration
            log.exception("kv.source_failed", migration=self._migration)
            self._failure = f"{type(error).__name__} at the source: {error}"
        if self._failure:
            if self._closing.is_set():
                self._failure = CLOSED
            log.info("kv.failed", migration=self._migration, reason=self._failure)
            self._disconnect()

    def _connect(self) -> None:
        connection = connect(self._route)
        with self._lock:
            self._connection = connection
            if self._closing.is_set():
                hang_up(connection)
        self._wire = SourceWire(connection, self._hello)
        self._wire.greet()

    def _copy(self, stage: Stage) -> None:
        wire = self._wire
        assert wire is not None, "copying without a connection"
        for first in range(0, len(stage.source), wire.chunk_blocks):
            chunk = slice(first, first + wire.chunk_blocks)
            blocks = stage.source[chunk]
            size = len(blocks) * self._hello.block_bytes
            self._budget.take(size, self._closing)
            view = wire.buffer()[:size]
            self._store.pack(blocks, view)
            if self._closing.is_set():
                raise EngineError(CLOSED)
            crc = zlib.crc32(view) if self._has_crc else 0
            wire.send_chunk(stage.number, stage.target[chunk], view, crc)
        if self._is_checked:
            self._sent.extend(stage.source)
        last, body = self._last_words(wire, stage)
        crc = zlib.crc32(body) if self._has_crc else 0
        wire.end_stage(stage.number, last, len(stage.source), crc, body)

    def _last_words(self, wire: SourceWire, stage: Stage) -> tuple[Last, bytes]:
        if stage.state_of is None:
            return Last.NO, b""
        state = self._store.sampler_state(stage.state_of)
        if len(state) > MAX_STATE_BYTES:
            raise EngineError(f"sampler state of {len(state)} bytes")
        if not self._is_checked:
            return Last.STATE, state
        wire.allow_digest(len(self._sent) * self._hello.block_bytes)
        return Last.CHECKED, state + digest_of(self._store, self._sent, wire.chunk_blocks)

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if connection is not None:
            connection.close()


def _in_words(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return f"no progress in {SILENCE_S:g} s"
    return str(error)
