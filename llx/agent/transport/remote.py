"""The ranks of an engine that has a process for each: the engine core's end of their steering."""

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import assert_never

from llx.agent.transport.control import (
    Allow,
    Arrived,
    Broken,
    Close,
    ControlWire,
    Done,
    Expect,
    Fence,
    Finish,
    FromRank,
    Join,
    Joined,
    Open,
    Send,
    ToRank,
)
from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.sockets import connect_local, hang_up, limit_waits
from llx.agent.transport.worker import RankAddress
from llx.core.model import MigrationId, RequestId
from llx.errors import UnreachableError, WireError
from llx.log import get_log
from llx.ports import Copied, KvListener
from llx.wire import Route

log = get_log(__name__)

_JOIN_S = 5.0
_JOIN_THREAD_S = 5.0
GONE = "the process of a rank has gone"


def connect_ranks(addresses: Sequence[RankAddress], listener: KvListener) -> InstanceTransport:
    """The transport of an engine whose ranks were started by `worker.serve_rank`.

    Raises:
        UnreachableError: One of them does not answer, or does not take its own secret.
    """
    ranks: list[RemoteRank] = []
    try:
        ranks.extend(RemoteRank(address) for address in addresses)
    except UnreachableError:
        for rank in ranks:
            rank.stop()
        raise
    return InstanceTransport(ranks, listener)


class RemoteRank:
    """A rank in another process of this host, as `llx.agent.transport.instance.Rank`.

    If that process goes, every call that is not answered fails, every fence is done, and every
    migration to it is broken.

    Raises:
        UnreachableError: It does not answer, or does not take its own secret.
    """

    def __init__(self, address: RankAddress) -> None:
        self.route: Route = address.route
        self._connection = connect_local(address.control)
        self._wire = ControlWire(self._connection, FromRank)
        try:
            limit_waits(self._connection, send_s=_JOIN_S, receive_s=_JOIN_S)
            self._wire.send(Join(address.secret.reveal()))
            answer = self._wire.receive()
            limit_waits(self._connection, send_s=0, receive_s=0)
        except (OSError, WireError) as error:
            self._connection.close()
            raise UnreachableError(f"rank {address.control} does not answer: {error}") from None
        if not isinstance(answer, Joined):
            self._connection.close()
            raise UnreachableError(f"rank {address.control} answers with nonsense")
        self._listener: KvListener | None = None
        self._outbox: queue.SimpleQueue[ToRank | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._calls = itertools.count()
        self._waiting: dict[int, Callable[[Copied | str | None], None]] = {}
        self._expected: set[MigrationId] = set()
        self._is_gone = False
        self._threads = [
            threading.Thread(target=self._send_loop, name="kv-steer", daemon=True),
            threading.Thread(target=self._receive_loop, name="kv-hear", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def report_to(self, listener: KvListener) -> None:
        """Whom to tell, before the first `expect`."""
        self._listener = listener

    # ------------------------------------------------------------------ target

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """Admit one connection of that migration which knows `token`, to write `blocks`."""
        with self._lock:
            is_gone = self._is_gone
            if not is_gone:
                self._expected.add(migration)
        if is_gone:
            self._tell_broken(migration)
        else:
            self._outbox.put(Expect(migration, token, list(blocks)))

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """Let it write these blocks too."""
        self._outbox.put(Allow(migration, list(blocks)))

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """Admit nothing more; when `done` is called nothing is written any more."""
        with self._lock:
            self._expected.discard(migration)
        self._call(lambda call: Fence(migration, call), lambda _: done())

    def finish(self, migration: MigrationId) -> None:
        """It is committed; the end of its connection is no failure."""
        with self._lock:
            self._expected.discard(migration)
        self._outbox.put(Finish(migration))

    # ------------------------------------------------------------------ source

    def open(self, migration: MigrationId, route: Route, token: bytes, *, is_checked: bool) -> None:
        """Connect; what fails is said by the first `send`."""
        self._outbox.put(Open(migration, route, token, is_checked))

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
        blocks = list(source), list(target)

        def answer(result: Copied | str | None) -> None:
            done("the rank's process answers with nonsense" if result is None else result)

        self._call(lambda call: Send(migration, stage, *blocks, state_of, call), answer)

    def close(self, migration: MigrationId) -> None:
        """End its connection; nothing if it is not open."""
        self._outbox.put(Close(migration))

    def stop(self) -> None:
        """Leave the rank, which ends its agent."""
        hang_up(self._connection)
        for thread in self._threads:
            thread.join(_JOIN_THREAD_S)

    # ------------------------------------------------------------------ the conversation

    def _call(
        self, make: Callable[[int], ToRank], done: Callable[[Copied | str | None], None]
    ) -> None:
        with self._lock:
            is_gone = self._is_gone
            call = next(self._calls)
            if not is_gone:
                self._waiting[call] = done
        if is_gone:
            done(GONE)
        else:
            self._outbox.put(make(call))

    def _send_loop(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._wire.send(message)
        except OSError:
            hang_up(self._connection)

    def _receive_loop(self) -> None:
        try:
            while True:
                self._hear(self._wire.receive())
        except (OSError, WireError) as error:
            log.info("kv.rank_gone", rank=self.route.address, reason=error)
        with self._lock:
            self._is_gone = True
            waiting, self._waiting = self._waiting, {}
            expected, self._expected = self._expected, set()
        hang_up(self._connection)
        self._outbox.put(None)
        self._threads[0].join()
        self._connection.close()
        for done in waiting.values():
            done(GONE)
        for migration in expected:
            self._tell_broken(migration)

    def _hear(self, message: FromRank) -> None:
        match message:
            case Done(call=call, result=result):
                with self._lock:
                    done = self._waiting.pop(call, None)
                if done is not None:
                    done(result)
            case Arrived(migration=migration, stage=stage):
                if self._listener is not None:
                    self._listener.on_arrived(migration, stage)
            case Broken(migration=migration, reason=reason):
                if self._listener is not None:
                    self._listener.on_broken(migration, reason)
            case Joined():
                raise WireError("joined twice")
            case _:
                assert_never(message)

    def _tell_broken(self, migration: MigrationId) -> None:
        if self._listener is not None:
            self._listener.on_broken(migration, GONE)
