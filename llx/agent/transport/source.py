"""The source's end of one migration: a thread with one connection, through which stages go.

    llumlet's thread     open ─► send ─► send ─► … ─► close
    this thread          connect, greet, agree on a medium, (stage, END, wait for ARRIVED, done)*

What fails is remembered: each `send` gets one answer, and after a failure that failure.
"""

import queue
import socket
import threading
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from llx.agent.transport.budget import Budget
from llx.agent.transport.choice import Medium, offer, reason_of
from llx.agent.transport.digest import digest_of
from llx.agent.transport.frames import (
    MAX_CHUNK_BLOCKS,
    MAX_STATE_BYTES,
    Admitted,
    Hello,
    Last,
)
from llx.agent.transport.joining import NotJoined
from llx.agent.transport.medium import CLOSED, SourceEnd, SourceMedium
from llx.agent.transport.medium_ipc import IpcSource
from llx.agent.transport.medium_nccl import NcclSource
from llx.agent.transport.medium_shm import ShmSource
from llx.agent.transport.medium_tcp import TcpSource
from llx.agent.transport.pairs import Pairs
from llx.agent.transport.sockets import hang_up, in_words
from llx.agent.transport.source_wire import SourceWire, connect
from llx.core.model import MigrationId, RequestId
from llx.errors import EngineError, LlxError, RemoteError, WireError
from llx.log import get_log
from llx.ports import Copied, KvStore
from llx.specs import MigrationSpec
from llx.wire import Route

log = get_log(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one `send` asked for; `source` and `target` are of one length."""

    number: int
    source: "array[int]"
    target: "array[int]"
    state_of: RequestId | None
    done: Callable[[Copied | str], None]


class SourceLink:
    """One migration away from this rank.

    Args:
        migration: Which.
        route: Where its target's rank is.
        token: Admits there.
        is_checked: Compare all blocks at the end.
        store: Where blocks are read.
        spec: Chunk size, checksums, the medium that is asked for.
        budget: The rank's.
        pairs: The rank's.
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
        pairs: Pairs,
    ) -> None:
        self._migration = migration
        self._route = route
        self._store = store
        self._budget = budget
        self._pairs = pairs
        block_bytes = store.block_bytes
        self._hello = Hello(
            migration=migration,
            token=token,
            layout=store.layout,
            block_bytes=block_bytes,
            chunk_blocks=min(MAX_CHUNK_BLOCKS, max(1, spec.chunk_bytes // block_bytes)),
            is_checked=is_checked,
            has_crc=spec.checksum,
            asked=spec.transport,
        )
        self._stages: queue.SimpleQueue[Stage | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._is_standing = threading.Event()
        """Its last stage has been asked for: the request is out of the batch."""
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._wire: SourceWire | None = None
        self._medium: SourceMedium | None = None
        self._why = ""
        """Why no better medium."""
        self._failure = ""
        self._sent = array("i")
        """Every block copied so far; kept of a checked migration only."""

    def send(self, stage: Stage) -> None:
        """Copy this next; `stage.done` is called once. Not after `close`."""
        if stage.state_of is not None:
            self._is_standing.set()
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
            stage.done(self._failure or self._copied(stage))
        self._disconnect()

    # ------------------------------------------------------------------ this thread

    def _guarded(self, action: Callable[..., None], *arguments: Stage) -> None:
        """Do it unless something has failed; if it fails, remember why and hang up."""
        if self._failure:
            return
        try:
            action(*arguments)
        except EngineError as error:
            self._failure = self._settle(error.message)
        except LlxError as error:
            self._failure = error.message
        except OSError as error:
            said = self._wire.failure_said() if self._wire else ""
            self._failure = said or f"the connection to the target failed: {in_words(error)}"
        except Exception as error:  # the thread's edge: a failing store ends one migration
            log.exception("kv.source_failed", migration=self._migration)
            self._failure = self._settle(f"{type(error).__name__} at the source: {error}")
        if self._failure:
            if self._closing.is_set():
                self._failure = CLOSED
            log.info("kv.failed", migration=self._migration, reason=self._failure)
            self._disconnect()

    def _settle(self, reason: str) -> str:
        """Something failed here: because it did at the target, which has said so, or it is told."""
        wire = self._wire
        if wire is None or self._closing.is_set():
            return reason
        if wire.has_hung_up():
            return wire.failure_said() or f"the connection to the target failed: {reason}"
        wire.say_failed(reason)
        return reason

    def _connect(self) -> None:
        connection = connect(self._route, is_local=self._hello.asked != Medium.TCP)
        with self._lock:
            self._connection = connection
            if self._closing.is_set():
                hang_up(connection)
        is_local = connection.family == socket.AF_UNIX
        hello = offer(self._hello, self._store, self._pairs, is_local=is_local)
        wire = self._wire = SourceWire(connection, hello)
        admitted = wire.greet()
        self._medium = self._agree(wire, admitted)
        log.info(
            "kv.connected",
            migration=self._migration,
            medium=self._medium.medium.value,
            why=self._why,
        )

    def _agree(self, wire: SourceWire, admitted: Admitted) -> SourceMedium:
        """This end of the medium that the target has chosen, or of what both fall back to."""
        end = SourceEnd(wire, self._store, self._budget, self._closing)
        why_not, medium = dict(admitted.why_not), admitted.medium
        if medium == Medium.NCCL and self._store.device is not None:
            try:
                return NcclSource(end, self._pairs, admitted.rank, self._is_standing.is_set)
            except NotJoined as error:
                why_not[Medium.NCCL] = error.reason
                medium = Medium.SHM if wire.is_local else Medium.TCP
                if self._hello.asked == Medium.NCCL:
                    raise RemoteError(f"nccl is asked for, but {error.reason}") from None
            finally:
                self._why = reason_of(why_not)
        self._why = reason_of(why_not)
        if medium == Medium.CUDA_IPC and wire.hello.shared:
            return IpcSource(end)
        if medium == Medium.SHM and wire.is_local:
            return ShmSource(end)
        if medium == Medium.TCP:
            return TcpSource(end)
        raise WireError(f"the target chose {medium}, which was not offered")

    def _copied(self, stage: Stage) -> Copied:
        assert self._medium is not None, "else it has failed"
        size = len(stage.source) * self._hello.block_bytes
        return Copied(size, self._medium.medium.value, self._why)

    def _copy(self, stage: Stage) -> None:
        wire, medium = self._wire, self._medium
        assert wire is not None, "copying without a connection"
        assert medium is not None, "copying without a medium"
        is_final = stage.state_of is not None
        medium.copy(stage.number, stage.source, stage.target, is_final=is_final)
        if self._hello.is_checked:
            self._sent.extend(stage.source)
        last, body = self._last_words(wire, stage)
        crc = zlib.crc32(body) if self._hello.has_crc else 0
        wire.end_stage(stage.number, last, len(stage.source), crc, body)

    def _last_words(self, wire: SourceWire, stage: Stage) -> tuple[Last, bytes]:
        if stage.state_of is None:
            return Last.NO, b""
        state = self._store.sampler_state(stage.state_of)
        if len(state) > MAX_STATE_BYTES:
            raise EngineError(f"sampler state of {len(state)} bytes")
        if not self._hello.is_checked:
            return Last.STATE, state
        wire.allow_digest(len(self._sent) * self._hello.block_bytes)
        return Last.CHECKED, state + digest_of(self._store, self._sent, wire.chunk_blocks)

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        self._wire = None
        if self._medium is not None:
            self._medium.close()
            self._medium = None
        if connection is not None:
            connection.close()
