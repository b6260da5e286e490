"""The target's end of one connection: a thread that greets, and takes stages.

Whether a migration may still write is `admissions`'; which bytes mean what is `frames`'; how they
get here is the media's. Whatever a peer sends, the worst that happens is that its own connection
ends.
"""

import hmac
import socket
import zlib
from array import array
from collections.abc import Callable

from llx.agent.transport.admissions import Admission, Admissions, Fenced
from llx.agent.transport.choice import Choice, Medium, choose
from llx.agent.transport.digest import digest_of
from llx.agent.transport.frames import (
    DIGEST_BYTES,
    Admitted,
    Header,
    Hello,
    Kind,
    Last,
    encode_admitted,
)
from llx.agent.transport.joining import JOIN_WAIT_S, NotJoined
from llx.agent.transport.medium import TargetEnd, TargetMedium
from llx.agent.transport.medium_ipc import IpcTarget
from llx.agent.transport.medium_nccl import NcclTarget
from llx.agent.transport.medium_shm import ShmTarget
from llx.agent.transport.medium_tcp import TcpTarget
from llx.agent.transport.pairs import Pairs
from llx.agent.transport.sockets import SILENCE_S, in_words
from llx.agent.transport.target_wire import TargetWire
from llx.core.model import MigrationId
from llx.errors import EngineError, LlxError, WireError
from llx.log import get_log
from llx.ports import KvListener, KvStore

log = get_log(__name__)


class TargetConnection:
    """Serves one accepted connection on the calling thread, until it ends.

    Args:
        connection: Just accepted; the caller closes it afterwards.
        store: Where blocks are written.
        chunk_bytes: Staging memory, if chunks come by the socket.
        admissions: Who may write.
        pairs: The rank's.
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
        pairs: Pairs,
        listener: KvListener,
        is_admitted: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._wire = TargetWire(connection)
        self._store = store
        self._admissions = admissions
        self._pairs = pairs
        self._listener = listener
        self._is_admitted = is_admitted
        self._chunk_blocks = max(1, chunk_bytes // store.block_bytes)
        self._medium: TargetMedium | None = None
        self._written: array[int] = array("i")
        """Every block written so far; kept of a checked migration only."""
        self._num_arrived = 0
        """Blocks of the stage that is arriving."""
        self._last_stage = -1
        self._is_last_here = False

    def serve(self) -> None:
        """Until the peer goes, errs or is fenced."""
        admission: Admission | None = None
        try:
            hello = self._wire.hello()
            admission = self._admissions.admit(
                MigrationId(hello.migration), hello.token, self._connection
            )
            self._is_admitted()
            self._agree(hello, admission)
            self._receive_all(admission, hello)
        except Fenced:
            self._end(admission, "", "")
        except EngineError as error:
            reason = error.message
            if self._wire.has_hung_up():
                reason = self._wire.failure_said() or f"the source's connection ended: {reason}"
            self._end(admission, reason, error.message)
        except LlxError as error:
            self._end(admission, error.message, error.message)
        except OSError as error:
            self._end(admission, f"the source's connection failed: {in_words(error)}", "")
        except Exception as error:  # the thread's edge: a store that fails must not end the agent
            log.exception("kv.target_failed", migration=admission and admission.migration)
            reason = f"{type(error).__name__} at the target: {error}"
            self._end(admission, reason, reason)

    # ------------------------------------------------------------------ the greeting

    def _agree(self, hello: Hello, admission: Admission) -> None:
        """Compare, choose a medium, and make this end of it."""
        store, wire = self._store, self._wire
        if (hello.layout, hello.block_bytes) != (store.layout, store.block_bytes):
            raise WireError(
                f"KV of another layout: {hello.layout} with {hello.block_bytes} bytes a block"
                f" there, {store.layout} with {store.block_bytes} here"
            )
        self._chunk_blocks = min(self._chunk_blocks, hello.chunk_blocks)
        choice = choose(hello, store, self._pairs, is_local=wire.is_local)
        try:
            body = encode_admitted(Admitted(choice.medium, self._pairs.identity, choice.why_not))
            wire.send(Header(Kind.ADMITTED, num_blocks=self._chunk_blocks, size=len(body)), body)
        except BaseException:
            if choice.peer is not None:
                choice.peer.close()
            raise
        end = TargetEnd(wire, store, self._admissions, admission, self._chunk_blocks, hello.has_crc)
        self._medium = self._medium_of(choice, hello, end)
        wire.be_patient(0)

    def _medium_of(self, choice: Choice, hello: Hello, end: TargetEnd) -> TargetMedium:
        if choice.peer is not None:
            return IpcTarget(end, choice.peer)
        if choice.medium is Medium.NCCL:
            self._wire.be_patient(JOIN_WAIT_S)
            try:
                return NcclTarget(end, self._pairs, hello.rank, self._wire.read())
            except NotJoined as error:
                if hello.asked == Medium.NCCL:
                    raise WireError(f"nccl is asked for, but {error.reason}") from None
            self._wire.be_patient(SILENCE_S)
        return ShmTarget(end) if end.wire.is_local else TcpTarget(end)

    # ------------------------------------------------------------------ stages

    def _receive_all(self, admission: Admission, hello: Hello) -> None:
        medium, keep = self._medium, self._keep if hello.is_checked else self._count
        assert medium is not None, "one was chosen"
        while True:
            header = self._wire.read()
            if header.kind in {Kind.PAIR, Kind.JOINED} and isinstance(medium, NcclTarget):
                medium.join_anew(header)
                continue
            if header.stage <= self._last_stage or self._is_last_here:
                raise WireError(f"{header.kind.name} of stage {header.stage}, which has ended")
            match header.kind:
                case Kind.CHUNK:
                    medium.take(header, keep)
                case Kind.END:
                    self._end_of_stage(admission, hello, header)
                case _:
                    raise WireError(f"{header.kind.name} from a source")

    def _count(self, blocks: "array[int]") -> None:
        self._num_arrived += len(blocks)

    def _keep(self, blocks: "array[int]") -> None:
        self._num_arrived += len(blocks)
        self._written.extend(blocks)

    def _end_of_stage(self, admission: Admission, hello: Hello, header: Header) -> None:
        body = self._wire.body(header)
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
        self._wire.send(Header(Kind.ARRIVED, stage=header.stage))
        self._listener.on_arrived(admission.migration, header.stage)

    def _compare(self, theirs: bytes) -> None:
        mine = digest_of(self._store, self._written, self._chunk_blocks)
        if not hmac.compare_digest(mine, theirs):
            raise WireError("the copied blocks differ between source and target")

    # ------------------------------------------------------------------ the end

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
            self._wire.say_failed(answer)
        if self._medium is not None:
            self._medium.close()
