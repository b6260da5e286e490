"""The KV agent of one rank: its listeners, its connections, its threads.

accept thread        both listeners; strangers that say nothing are shown the door
a thread each        every accepted connection (`target`), every migration away (`source`)
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence

from llx.agent.transport.admissions import Admissions
from llx.agent.transport.budget import Budget
from llx.agent.transport.frames import encode_blocks
from llx.agent.transport.pairs import Pairs
from llx.agent.transport.sockets import (
    address_of,
    hang_up,
    host_id,
    is_same_user,
    listen_local,
    listen_tcp,
)
from llx.agent.transport.source import SourceLink, Stage
from llx.agent.transport.target import TargetConnection
from llx.core.model import MigrationId, RequestId
from llx.errors import ConflictError
from llx.log import get_log
from llx.ports import Copied, KvListener, KvStore
from llx.specs import MigrationSpec
from llx.wire import Route

log = get_log(__name__)

MAX_STRANGERS = 32
"""Connections without a token; the oldest makes room for one more."""
_JOIN_S = 5.0


class RankAgent:
    """Sends and receives KV of one rank's store; serves from construction until `stop`.

    Its methods are those of `llx.agent.transport.instance.Rank`, and return at once.

    Args:
        store: The rank's KV cache.
        spec: Chunk size, checksums, bandwidth.
        bind_host: IP address to listen on, and that others dial.
        port_range: First and last port to listen on; None: as the system chooses.
        stranger_s: A connection that has not shown a token by then is closed.
        pairs: Communicators with other ranks, closed with this; None: as usual.

    Raises:
        ConflictError: No port of the range is free, or the address is not this host's.
    """

    def __init__(
        self,
        store: KvStore,
        spec: MigrationSpec,
        bind_host: str,
        port_range: tuple[int, int] | None = None,
        *,
        stranger_s: float = 3.0,
        pairs: Pairs | None = None,
    ) -> None:
        self._store = store
        self._spec = spec
        self._stranger_s = stranger_s
        self._budget = Budget(spec.bandwidth_bytes_s)
        self._admissions = Admissions()
        self._pairs = Pairs() if pairs is None else pairs
        self._listener: KvListener | None = None
        self._tcp = listen_tcp(bind_host, port_range)
        try:
            self._local, local_name = listen_local("llx-kv")
        except OSError as error:
            self._tcp.close()
            raise ConflictError(f"no unix socket within the host: {error}") from None
        self.route = Route(host_id(), address_of(self._tcp), local_name)
        """How this rank is reached."""
        self._wake_up, self._woken = socket.socketpair()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._links: dict[MigrationId, SourceLink] = {}
        self._connections: dict[socket.socket, float | None] = {}
        """Accepted and open, oldest first, and until when each may stay a stranger."""
        self._threads: set[threading.Thread] = set()
        self._accepting = self._spawn("kv-accept", self._accept_loop)

    def report_to(self, listener: KvListener) -> None:
        """Whom to tell, before the first `expect`."""
        self._listener = listener

    # ------------------------------------------------------------------ target

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """Admit one connection of that migration which knows `token`, to write `blocks`."""
        assert self._listener is not None, "expecting before anybody listens"
        self._admissions.expect(migration, token, blocks)

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """Let it write these blocks too."""
        self._admissions.allow(migration, blocks)

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """Admit nothing more; when `done` is called nothing is written any more."""
        self._admissions.fence(migration, done)

    def finish(self, migration: MigrationId) -> None:
        """It is committed; the end of its connection is no failure."""
        self._admissions.finish(migration)

    # ------------------------------------------------------------------ source

    def open(self, migration: MigrationId, route: Route, token: bytes, *, is_checked: bool) -> None:
        """Connect; what fails is said by the first `send`."""
        link = SourceLink(
            migration,
            route,
            token,
            is_checked=is_checked,
            store=self._store,
            spec=self._spec,
            budget=self._budget,
            pairs=self._pairs,
        )
        with self._lock:
            assert migration not in self._links, f"{migration} is open already"
            assert not self._closing.is_set(), "opening a migration of a stopped rank"
            self._links[migration] = link
        self._spawn("kv-source", link.run)

    def send(
        self,
        migration: MigrationId,
        stage: int,
        source: Sequence[int],
        target: Sequence[int],
        *,
        state_of: RequestId | None,
        done: Callable[[Copied | str], None],
    ) -> None:
        """Copy blocks; see `llx.ports.KvTransport.send`."""
        assert len(source) == len(target), f"{len(source)} blocks to {len(target)}"
        try:
            item = Stage(stage, encode_blocks(source), encode_blocks(target), state_of, done)
        except OverflowError:  # a target's block table is what another process says
            done("block ids out of range")
            return
        with self._lock:
            link = self._links.get(migration)
            if link is not None:
                link.send(item)
                return
        done("it is not open here")

    def close(self, migration: MigrationId) -> None:
        """End its connection; nothing if it is not open."""
        with self._lock:
            link = self._links.pop(migration, None)
        if link is not None:
            link.close()

    def stop(self) -> None:
        """End every connection and thread. Safe to call twice, and not from a listener."""
        with self._lock:
            self._closing.set()
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        self._admissions.close()
        with contextlib.suppress(OSError):
            self._wake_up.send(b"x")
        deadline = time.monotonic() + _JOIN_S
        self._accepting.join(_JOIN_S)
        with self._lock:
            for connection in self._connections:
                hang_up(connection)
            threads = list(self._threads)
        self._pairs.close()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # ------------------------------------------------------------------ threads

    def _spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                target()
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()
        return thread

    def _accept_loop(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._tcp, self._local, self._woken):
                each.setblocking(False)  # who knocked may have gone again before `accept`
                selector.register(each, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in selector.select(self._next_look_s()):
                    if key.fileobj is not self._woken:
                        assert isinstance(key.fileobj, socket.socket)
                        self._accept(key.fileobj)
                if self._pairs.has_idle:
                    self._spawn("kv-pairs", self._pairs.close_idle)
        for each in (self._tcp, self._local, self._woken, self._wake_up):
            each.close()

    def _next_look_s(self) -> float | None:
        next_s = self._end_strangers()
        if self._store.device is None:
            return next_s
        return self._pairs.look_s if next_s is None else min(next_s, self._pairs.look_s)

    def _end_strangers(self) -> float | None:
        """Close those whose time is up; how long until the next one's is."""
        now = time.monotonic()
        with self._lock:
            strangers = [(c, until) for c, until in self._connections.items() if until is not None]
            surplus = len(strangers) - MAX_STRANGERS
            for index, (connection, until) in enumerate(strangers):
                if index < surplus or until <= now:
                    self._connections[connection] = None
                    hang_up(connection)
            rest = [until for until in self._connections.values() if until is not None]
        return max(0.0, min(rest) - now) if rest else None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # the peer has gone again; or no descriptor is left, for a while
            log.warning("kv.accept_failed", reason=error)
            self._closing.wait(0.1)
            return
        if listener is self._local and not is_same_user(connection):
            connection.close()
            return
        with self._lock:
            self._connections[connection] = time.monotonic() + self._stranger_s
        self._spawn("kv-target", lambda: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        listener = self._listener
        try:
            if listener is not None:  # without one, nothing is expected either
                TargetConnection(
                    connection,
                    store=self._store,
                    chunk_bytes=self._spec.chunk_bytes,
                    admissions=self._admissions,
                    pairs=self._pairs,
                    listener=listener,
                    is_admitted=lambda: self._is_no_stranger(connection),
                ).serve()
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _is_no_stranger(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections[connection] = None
