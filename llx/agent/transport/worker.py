"""A rank's agent in the process of a worker, steered by its engine core over a control socket.

The core is the one process that may join, once; when it goes, the agent ends with it.
"""

import hmac
import queue
import secrets
import socket
import threading
from dataclasses import dataclass
from typing import assert_never

from llx.agent.transport.control import (
    MAX_JOIN_BYTES,
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
from llx.agent.transport.rank import RankAgent
from llx.agent.transport.sockets import hang_up, is_same_user, limit_waits, listen_local
from llx.core.model import MigrationId
from llx.errors import WireError
from llx.log import get_log
from llx.ports import KvStore
from llx.secret import Secret
from llx.specs import MigrationSpec
from llx.wire import Route

log = get_log(__name__)

JOIN_S = 2.0
"""A process that has not shown the secret by then is sent away."""


@dataclass(frozen=True, slots=True)
class RankAddress:
    """Where a rank is steered (an abstract unix socket), with what secret, and its route for KV."""

    control: str
    secret: Secret
    route: Route


def serve_rank(
    store: KvStore,
    spec: MigrationSpec,
    bind_host: str,
    port_range: tuple[int, int] | None = None,
) -> RankAddress:
    """Start this process's rank agent, on threads of its own, and say how the core finds it.

    For a worker, called through the engine; the address goes to `remote.connect_ranks`. The agent
    ends when the core that has joined goes.

    Raises:
        ConflictError: No port of the range is free, or the address is not this host's.
    """
    agent = RankAgent(store, spec, bind_host, port_range)
    listener, name = listen_local("llx-rank")
    secret = Secret(secrets.token_hex(16))
    worker = _Worker(agent, listener, secret)
    threading.Thread(target=worker.serve, name="kv-control", daemon=True).start()
    return RankAddress(name, secret, agent.route)


class _Worker:
    """Carries out what the core says, and reports to it. Its listener for the agent."""

    def __init__(self, agent: RankAgent, listener: socket.socket, secret: Secret) -> None:
        self._agent = agent
        self._listener = listener
        self._secret = secret
        self._reports: queue.SimpleQueue[FromRank | None] = queue.SimpleQueue()

    def serve(self) -> None:
        """The control thread: until the core has come and gone."""
        try:
            with self._listener:
                connection = self._await_core()
            with connection:
                self._attend(connection)
        finally:
            self._agent.stop()

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        """See `llx.ports.KvListener`."""
        self._reports.put(Arrived(migration, stage))

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        """See `llx.ports.KvListener`."""
        self._reports.put(Broken(migration, reason))

    # ------------------------------------------------------------------ control thread

    def _await_core(self) -> socket.socket:
        while True:
            connection, _ = self._listener.accept()
            try:
                if is_same_user(connection) and self._is_core(connection):
                    limit_waits(connection, send_s=0, receive_s=0)
                    return connection
            except (OSError, WireError) as error:
                log.warning("kv.control_refused", reason=error)
            connection.close()

    def _is_core(self, connection: socket.socket) -> bool:
        """One stranger at a time, and for a moment only: nobody but the core knows the name."""
        limit_waits(connection, send_s=JOIN_S, receive_s=JOIN_S)
        message = ControlWire(connection, ToRank).receive(MAX_JOIN_BYTES)
        return isinstance(message, Join) and hmac.compare_digest(
            message.secret.encode(), self._secret.reveal().encode()
        )

    def _attend(self, connection: socket.socket) -> None:
        wire = ControlWire(connection, ToRank)
        self._agent.report_to(self)
        self._reports.put(Joined())
        reporter = threading.Thread(
            target=self._report, args=(wire, connection), name="kv-reports", daemon=True
        )
        reporter.start()
        try:
            while True:
                self._obey(wire.receive())
        except (OSError, WireError) as error:
            log.info("kv.core_gone", reason=error)
        finally:
            self._agent.stop()  # the core takes what was fenced for free once this has hung up
            hang_up(connection)
            self._reports.put(None)
            reporter.join()

    def _obey(self, message: ToRank) -> None:
        agent = self._agent
        match message:
            case Expect():
                agent.expect(message.migration, message.token, message.blocks)
            case Allow():
                agent.allow(message.migration, message.blocks)
            case Fence(migration=migration, call=call):
                agent.fence(migration, lambda: self._reports.put(Done(call, None)))
            case Finish(migration=migration):
                agent.finish(migration)
            case Open():
                agent.open(
                    message.migration,
                    message.route,
                    message.token,
                    is_checked=message.is_checked,
                )
            case Send(call=call):
                agent.send(
                    message.migration,
                    message.stage,
                    message.source,
                    message.target,
                    state_of=message.state_of,
                    done=lambda result: self._reports.put(Done(call, result)),
                )
            case Close(migration=migration):
                agent.close(migration)
            case Join():
                raise WireError("joined already")
            case _:
                assert_never(message)

    # ------------------------------------------------------------------ reporter thread

    def _report(self, wire: ControlWire, connection: socket.socket) -> None:
        try:
            while (report := self._reports.get()) is not None:
                wire.send(report)
        except OSError:
            hang_up(connection)
