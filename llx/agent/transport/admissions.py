"""Which migrations may write into a rank's blocks, into which, and from when on no more.

    EXPECTED ── a source comes ──► CONNECTED ── it goes ──► BROKEN
        │                              │
        ├──────────── fence ───────────┴──► FENCED      (from any state)
        └──────────── finish ──────────────► FINISHED

Only a CONNECTED migration writes, and only inside `writing`; a fence waits for the writer that is
in there and nobody else gets in. No bytes move here.
"""

import contextlib
import hmac
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from llx.agent.transport.sockets import hang_up
from llx.core.model import MigrationId
from llx.errors import StillWritingError, WireError
from llx.log import get_log

log = get_log(__name__)

_PATIENCE_S = 1.0
"""How long what the llumlet has been told may take to reach its ranks.

The source's first bytes may overtake it: rank by rank, they go another way.
"""


class _State(Enum):
    EXPECTED = auto()
    CONNECTED = auto()
    BROKEN = auto()
    FENCED = auto()
    FINISHED = auto()


class Fenced(Exception):
    """The migration was fenced or finished here meanwhile: its connection is of no use any more."""


@dataclass(slots=True, eq=False)
class Admission:
    """One migration that this rank is the target of. Fields belong to `Admissions`."""

    migration: MigrationId
    token: bytes = field(repr=False)
    blocks: set[int]
    state: _State = _State.EXPECTED
    connection: socket.socket | None = None
    is_writing: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """Whom to call when the writer that is in there comes out."""


class Admissions:
    """Every migration that this rank is the target of. Any thread."""

    def __init__(self) -> None:
        self._admissions: dict[MigrationId, Admission] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    # ------------------------------------------------------------------ the llumlet's side

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """See `llx.ports.KvTransport.expect`."""
        with self._changed:
            assert migration not in self._admissions, f"{migration} is expected already"
            self._admissions[migration] = Admission(migration, token, set(blocks))
            self._changed.notify_all()

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """See `llx.ports.KvTransport.allow`; nothing if it has been fenced since."""
        with self._changed:
            admission = self._admissions.get(migration)
            if admission is not None:
                admission.blocks.update(blocks)
                self._changed.notify_all()

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """See `llx.ports.KvTransport.fence`; `done` may be called before this returns."""
        with self._changed:
            admission = self._admissions.get(migration)
            if admission is not None:
                self._end(admission, _State.FENCED)
                if admission.is_writing:
                    admission.waiting.append(done)
                    return
                del self._admissions[migration]
        done()

    def finish(self, migration: MigrationId) -> None:
        """See `llx.ports.KvTransport.finish`."""
        with self._changed:
            admission = self._admissions.get(migration)
            if admission is None or admission.state is _State.FENCED:
                return
            admission.state = _State.FINISHED
            if admission.connection is None:
                del self._admissions[migration]

    def close(self) -> None:
        """Fence all, for good."""
        with self._changed:
            self._is_closed = True
            for admission in self._admissions.values():
                self._end(admission, _State.FENCED)
            self._changed.notify_all()

    def _end(self, admission: Admission, state: _State) -> None:
        admission.state = state
        if admission.connection is not None:
            hang_up(admission.connection)
        self._changed.notify_all()

    # ------------------------------------------------------------------ the connections' side

    def admit(self, migration: MigrationId, token: bytes, connection: socket.socket) -> Admission:
        """Let a connection in that knows the token of a migration; one per migration, ever.

        Raises:
            WireError: It does not, or is not the first. Says no more than that.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or migration in self._admissions, _PATIENCE_S
            )
            admission = self._admissions.get(migration)
            if admission is None or not hmac.compare_digest(admission.token, token):
                raise WireError("no migration of that name and token is expected")
            if admission.state is not _State.EXPECTED:
                raise WireError("this migration has had its connection")
            admission.state = _State.CONNECTED
            admission.connection = connection
            return admission

    def leave(self, admission: Admission) -> bool:
        """The connection ends; only after this may it be closed. Whether that is a failure."""
        with self._changed:
            admission.connection = None
            if admission.state is _State.CONNECTED:
                admission.state = _State.BROKEN
                return True
            if admission.state is _State.FINISHED:
                self._admissions.pop(admission.migration, None)
            return False

    @contextlib.contextmanager
    def writing(self, admission: Admission, blocks: "array[int]") -> Iterator[None]:
        """Inside, `blocks` may be written, and what else belongs to the migration.

        A copy that may still write when this is left (`StillWritingError`) is never over: a fence
        waits for ever then, and its blocks are lost rather than overwritten in other hands.

        Raises:
            WireError: Not all of `blocks` were reserved for it.
            Fenced: Nothing may be written any more.
        """
        with self._changed:
            self._await(admission, blocks)
            admission.is_writing = True
        try:
            yield
        except StillWritingError as error:
            log.error("kv.still_writing", migration=admission.migration, reason=error.message)
            raise
        except BaseException:
            self._is_written(admission)
            raise
        self._is_written(admission)

    def _is_written(self, admission: Admission) -> None:
        with self._changed:
            admission.is_writing = False
            waiting, admission.waiting = admission.waiting, []
            if waiting:
                self._admissions.pop(admission.migration, None)
        for done in waiting:
            done()

    def require(self, admission: Admission, blocks: "array[int]") -> None:
        """Inside `writing`: `blocks` may be written as well; raises as it does."""
        with self._changed:
            self._await(admission, blocks)

    def _await(self, admission: Admission, blocks: "array[int]") -> None:
        self._changed.wait_for(
            lambda: admission.state is not _State.CONNECTED or admission.blocks.issuperset(blocks),
            _PATIENCE_S,
        )
        if admission.state is not _State.CONNECTED:
            raise Fenced
        if not admission.blocks.issuperset(blocks):
            raise WireError("blocks that were not reserved for this migration")
