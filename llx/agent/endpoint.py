"""An instance's two sockets: sessions, leases, the allow-list, outputs and load reports.

    gateway ──DEALER──► ROUTER (in)   Hello, Ping, Bye, Add, Abort, Call     input thread
    gateway ◄─DEALER─── ROUTER (out)  Ready, Refused, Outputs, Load, Reply   sender thread

Any number of peers come and go. The engine sees a *peer index* per session and never a socket.
What is decided about an engine lives behind `EngineSink`, not here.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from llx.agent.free_port import bind_within
from llx.agent.prefix_reports import PrefixReports
from llx.agent.rekeying import BACK_S, PART_S, KeyWatch, Rekeying, listen_anew, wait_back
from llx.agent.taken import Taken
from llx.core.model import RequestId, Term
from llx.curve import Authenticator, KeySource, make_listener
from llx.errors import ConflictError, WireError
from llx.ports import EngineSink, Frame, Llumlet
from llx.wire import (
    NO_SESSION,
    Abort,
    AbortMigration,
    Add,
    Bye,
    Call,
    CancelMigration,
    Commit,
    Dead,
    Decoder,
    Extend,
    FromInstance,
    Hello,
    InstanceInfo,
    Load,
    MigrateOrder,
    Outputs,
    Ping,
    Ready,
    Refused,
    Rekey,
    Rekeyed,
    Reply,
    Reserve,
    Ruling,
    ToInstance,
    ToLlumlet,
    check_frames,
    encode,
)

log = logging.getLogger(__name__)

Payload = Callable[[], Sequence[Frame]]
_ROLES: dict[type, str] = {
    Ruling: "gateway",
    MigrateOrder: "scheduler",
    CancelMigration: "scheduler",
    Reserve: "llumlet",
    Extend: "llumlet",
    Commit: "llumlet",
    AbortMigration: "llumlet",
}
"""Who may say what to the llumlet."""
_POLL_MS = 200
_REKEY_POLL_MS = 10
_FLUSH_MS = 2000
_REPORT_AT_LEAST_EVERY_S = 2.0
"""Whatever a peer asks for."""


@dataclass(slots=True)
class _Peer:
    """One session of one peer. Written on the input thread; the sender only reads."""

    index: int
    identity: bytes
    session: int
    expires_at: float
    role: str = ""
    term: Term | None = None
    """Of a scheduler; None: no scheduler."""
    is_gone: bool = False
    report_every_s: float = 0.0
    """How often it wants to hear of the load; no less than the endpoint's own interval."""
    told: int = 0
    """Sender thread only, of a scheduler: which of the requests taken in it was told of last."""
    reported: tuple[Load, int] | None = None
    """Sender thread only: the load and `seen` last sent, …"""
    reported_at: float = 0.0
    """… and when."""


@dataclass(frozen=True, slots=True)
class _Send:
    peer: int
    message: FromInstance
    payload: Payload | None


class InstanceEndpoint:
    """Serves one engine to its peers.

    Args:
        keys: The cluster's keys; every socket is CURVE and admits their dialer alone. When they are
            replaced the sockets listen with the others, and sessions go on (`rekeying`).
        bind_host: Address to listen on.
        port_range: First and last port to listen on; None: as the system chooses.
        info: What this instance is.
        engine_ready: The engine's own ready message, passed on in `Ready`.
        sink: The engine.
        llumlet: Its migration end, if it can migrate.
        prefixes: Tells what is in its prefix cache, if it can.
        allowed_calls: Utility names that peers may call; all others are refused unread.
        lease_s: A peer silent for longer loses its requests.
        report_interval_s: Least time between two load reports to a peer.
        beat: Called many times a second by the thread that hears peers, as long as it does.
    """

    def __init__(
        self,
        keys: KeySource,
        bind_host: str,
        *,
        info: InstanceInfo,
        engine_ready: bytes,
        sink: EngineSink,
        llumlet: Llumlet | None = None,
        prefixes: PrefixReports | None = None,
        allowed_calls: frozenset[str],
        lease_s: float = 10.0,
        report_interval_s: float = 0.02,
        port_range: tuple[int, int] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._keys = KeyWatch(keys)
        self._rekeying: Rekeying | None = None
        self._bind_host = bind_host
        self._port_range = port_range
        self._info = info
        self._engine_ready = engine_ready
        self._sink = sink
        self._llumlet = llumlet
        self._prefixes = prefixes
        self._allowed_calls = allowed_calls
        self._lease_s = lease_s
        self._interval_s = report_interval_s
        self._beat = beat
        self._peers: dict[bytes, _Peer] = {}
        self._by_index: dict[int, _Peer] = {}
        self._next_index = 0
        self._term = Term(0)
        self._outbox: queue.SimpleQueue[_Send | Rekeying | None] = queue.SimpleQueue()
        self._taken = Taken()
        self._latest: tuple[Load, dict[int, int], int] | None = None
        self._is_report_due = False
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._decoder: Decoder[ToInstance] = Decoder(ToInstance)

    # ------------------------------------------------------------------ any thread

    def start(self) -> tuple[str, str]:
        """Bind and serve. Returns (address_in, address_out).

        Raises:
            ConflictError: No port of the range is free, or the address is not this host's.
        """
        self._context: zmq.Context[Any] = zmq.Context()
        self._authenticator = Authenticator(self._context, self._keys.keys)
        try:
            self._in, address_in = self._bind()
            self._out, address_out = self._bind()
        except ConflictError:
            self._authenticator.stop()
            self._context.destroy(linger=0)
            raise
        self._addresses = address_in, address_out
        for name, target in (("input", self._receive_loop), ("output", self._send_loop)):
            thread = threading.Thread(target=target, name=f"endpoint-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return address_in, address_out

    def emit(self, peer: int, message: FromInstance, payload: Payload | None = None) -> None:
        """Queue a message to a peer; dropped if its session is over.

        `payload` is called on the sender thread, so that encoding overlaps with the next step.
        A `session` field is filled in by the endpoint.
        """
        self._outbox.put(_Send(peer, message, payload))

    def index_of(self, name: str) -> int | None:
        """The session of the peer of that name, if it has one."""
        peer = self._peers.get(name.encode())
        return None if peer is None else peer.index

    def peers_of(self, role: str) -> list[int]:
        """The sessions of that role."""
        return [peer.index for peer in list(self._peers.values()) if peer.role == role]

    def name_of(self, index: int) -> str:
        """The peer whose session that is; empty if it is over."""
        peer = self._by_index.get(index)
        return "" if peer is None else peer.identity.decode(errors="replace")

    def report(self, load: Load, seen: dict[int, int]) -> None:
        """Replace the latest load report; `seen` by peer index. Cheap.

        What it covers is told even so, with the next report that is sent.
        """
        num_taken = self._taken.extend(load.covers)
        self._latest = (msgspec.structs.replace(load, covers=[]), seen, num_taken)
        if not self._is_report_due:
            self._is_report_due = True
            self._outbox.put(None)

    def close(self, reason: str) -> None:
        """Send what is queued, then `Dead`, then stop. Safe to call twice."""
        if self._closing.is_set():
            return
        for index in list(self._by_index):
            self.emit(index, Dead(reason))
        self._closing.set()
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=_FLUSH_MS / 1000 + 1)
        self._authenticator.stop()
        self._context.destroy(linger=0)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until `close` has begun."""
        return self._closing.wait(timeout_s)

    def _bind(self) -> "tuple[zmq.Socket[Any], str]":
        socket: zmq.Socket[Any] = self._context.socket(zmq.ROUTER)
        make_listener(socket, self._keys.keys)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if self._port_range is None:
            socket.bind(f"tcp://{self._bind_host}:*")
        else:
            host = self._bind_host
            bind_within(lambda port: socket.bind(f"tcp://{host}:{port}"), host, self._port_range)
        return socket, str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    # ------------------------------------------------------------------ input thread

    def _receive_loop(self) -> None:
        next_sweep = 0.0
        while not self._closing.is_set():
            is_parting = self._rekeying is not None and not self._rekeying.listens.is_set()
            has_message = self._in.poll(_REKEY_POLL_MS if is_parting else _POLL_MS)
            self._beat()
            now = time.monotonic()
            try:
                if has_message:
                    self._receive_one(now)
                elif now >= next_sweep:  # with nothing left to read: a ping may wait in the socket
                    next_sweep = now + _POLL_MS / 1000
                    self._end_leases(now)
                self._follow_keys(now)
            except WireError as error:
                log.warning("endpoint.bad_message error=%s", error.message)
            except Exception:  # the thread's edge: a failing engine must not cut everyone off
                log.exception("endpoint.sink_failed")
        if self._rekeying is not None:
            self._rekeying.listens.set()
        self._in.close(linger=0)

    def _receive_one(self, now: float) -> None:
        frames = [frame.buffer for frame in self._in.recv_multipart(copy=False)]
        check_frames(frames[1:])
        self._receive(bytes(frames[0]), self._decoder.decode(frames[1]), frames[2:], now)

    def _receive(
        self, identity: bytes, message: ToInstance, payload: list[memoryview], now: float
    ) -> None:
        if isinstance(message, Hello):
            self._hello(identity, message, now)
            return
        peer = self._peers.get(identity)
        if peer is None:
            if isinstance(message, Ping):
                self._refuse(identity, message.session, NO_SESSION, now)
            return
        match message:
            case Ping() | Rekeyed() | Bye():
                if message.session == peer.session:
                    self._about_session(peer, message, now)
            case Add():
                self._sink.add(peer.index, message, payload)
            case Abort(requests=requests):
                self._sink.abort(peer.index, requests)
            case Call():
                self._call(peer, message, payload)
            case _:
                self._pass_on(peer, message, payload)

    def _about_session(self, peer: _Peer, message: Ping | Rekeyed | Bye, now: float) -> None:
        match message:
            case Ping():
                self._renew(peer, message, now)
            case Rekeyed():
                if self._rekeying is not None:
                    self._rekeying.parted.add(peer.index)
            case Bye():
                self._end(peer, "bye")

    def _renew(self, peer: _Peer, ping: Ping, now: float) -> None:
        peer.expires_at = now + self._lease_s
        peer.report_every_s = min(ping.report_every_s, _REPORT_AT_LEAST_EVERY_S)
        if self._prefixes is not None and self._prefixes.ask(peer.index, ping.prefixes):
            self._is_report_due = True
            self._outbox.put(None)

    def _call(self, peer: _Peer, message: Call, payload: list[memoryview]) -> None:
        method = message.method
        if method in self._allowed_calls:
            self._sink.call(peer.index, message, payload)
            return
        log.warning("endpoint.call_refused peer=%s method=%.64r", peer.identity, method)
        self.emit(peer.index, Reply(message.call, f"{method!r} is not an admitted utility"))

    def _pass_on(self, peer: _Peer, message: ToLlumlet, payload: list[memoryview]) -> None:
        """To the llumlet, from those who may."""
        if self._llumlet is None or _ROLES[type(message)] != peer.role:
            raise WireError(f"{type(message).__name__} from a {peer.role}")
        self._llumlet.receive(peer.index, message, payload)

    def _hello(self, identity: bytes, hello: Hello, now: float) -> None:
        peer = self._peers.get(identity)
        if hello.resumes and (peer is None or not self._resume(peer, hello, now)):
            self._refuse(identity, hello.session, NO_SESSION, now)
            return
        if peer is not None and peer.session == hello.session:
            peer.expires_at = now + self._lease_s
        else:
            if reason := self._refusal(identity, hello):
                self._refuse(identity, hello.session, reason, now)
                return
            if peer is not None:
                self._end(peer, "superseded")
            self._end_older_schedulers()
            peer = self._new_peer(identity, hello.session, now)
            peer.role = hello.role
            if hello.role == "scheduler":
                peer.term = hello.term
            self._peers[identity] = peer
            log.info("endpoint.joined peer=%s role=%s", hello.peer, hello.role)
        self.emit(peer.index, Ready(hello.session, self._info, self._engine_ready))
        self._is_report_due = True
        self._outbox.put(None)

    def _resume(self, peer: _Peer, hello: Hello, now: float) -> bool:
        """Whether a session goes on that has parted for a change of keys; it is said repeatedly."""
        rekeying = self._rekeying
        if rekeying is None or peer.session != hello.session:
            return False
        if peer.index not in rekeying.back:
            if not rekeying.may_resume(peer.index, now):
                return False
            rekeying.back.add(peer.index)
        return True

    def _follow_keys(self, now: float) -> None:
        """Listen with other keys when there are; `rekeying` says how."""
        rekeying = self._rekeying
        if rekeying is None or (rekeying.listens.is_set() and now >= rekeying.back_until):
            if (new := self._keys.look(now)) is not None:
                self._rekeying = new
                self._outbox.put(new)
        elif not rekeying.listens.is_set() and rekeying.is_parted(now, self._is_present):
            for peer in [p for p in self._peers.values() if p.index not in rekeying.parted]:
                self._end(peer, "it did not answer to a change of keys")
            sockets = list(zip((self._in, self._out), self._addresses, strict=True))
            listen_anew(sockets, self._authenticator, rekeying.keys, self._closing.is_set)
            self._keys.keys = rekeying.keys
            rekeying.back_until = time.monotonic() + BACK_S
            rekeying.listens.set()
            log.info("endpoint.rekeyed sessions=%d", len(rekeying.parted))

    def _is_present(self, index: int) -> bool:
        return index in self._by_index

    def _new_peer(self, identity: bytes, session: int, now: float) -> _Peer:
        peer = _Peer(self._next_index, identity, session, now + self._lease_s)
        peer.told = self._taken.count
        self._next_index += 1
        self._by_index[peer.index] = peer
        return peer

    def _refuse(self, identity: bytes, session: int, reason: str, now: float) -> None:
        """Answer a peer that gets no session; the index is given back when it is sent."""
        self.emit(
            self._new_peer(identity, session, now).index, Refused(session, reason, self._term)
        )

    def _refusal(self, identity: bytes, hello: Hello) -> str:
        if identity != hello.peer.encode():
            return "peer name and socket identity differ"
        if hello.vllm_version != self._info.vllm_version:
            return (
                f"vLLM {hello.vllm_version} may not join an instance of"
                f" vLLM {self._info.vllm_version}"
            )
        if hello.role == "scheduler":
            if hello.term < self._term:
                return f"term {hello.term} is over: term {self._term} has begun"
            self._term = hello.term
        return ""

    def _end_older_schedulers(self) -> None:
        """They dial again and hear why they may not."""
        for peer in list(self._peers.values()):
            if peer.term is not None and peer.term < self._term:
                self._end(peer, "its term is over")

    def _end_leases(self, now: float) -> None:
        for peer in [p for p in self._peers.values() if p.expires_at < now]:
            self._end(peer, "lease over")

    def _end(self, peer: _Peer, why: str) -> None:
        log.info("endpoint.left peer=%s why=%s", peer.identity.decode(errors="replace"), why)
        peer.is_gone = True
        del self._peers[peer.identity]
        self._by_index.pop(peer.index, None)
        self._sink.drop_peer(peer.index)
        if self._prefixes is not None:
            self._prefixes.leave(peer.index)
        if self._llumlet is not None:
            self._llumlet.drop_peer(peer.index)

    # ------------------------------------------------------------------ sender thread

    def _send_loop(self) -> None:
        report_at = 0.0
        while True:
            item = self._next_item(report_at)
            if isinstance(item, Rekeying):
                self._part(item)
            elif item is not None:
                try:
                    self._send(item)
                except Exception:  # the thread's edge: one bad payload must not end all output
                    log.exception("endpoint.send_failed message=%s", type(item.message).__name__)
            now = time.monotonic()
            if self._is_report_due and now >= report_at:
                self._is_report_due = False
                try:
                    self._send_reports(now)
                except Exception:  # as above: the next report may go
                    log.exception("endpoint.report_failed")
                report_at = now + self._interval_s
            if self._closing.is_set() and self._outbox.empty():
                break
        self._out.close(linger=_FLUSH_MS)

    def _part(self, rekeying: Rekeying) -> None:
        """Say the last word to everybody, and go on when they are back."""
        for peer in list(self._peers.values()):
            last = Rekey(peer.session, rekeying.keys.listener_public)
            self._out.send_multipart([peer.identity, encode(last)])
            rekeying.asked.append(peer.index)
        rekeying.part_until = time.monotonic() + PART_S
        rekeying.told.set()
        rekeying.listens.wait()  # the input thread uses both sockets meanwhile
        if self._closing.is_set():
            return
        self._out.setsockopt(zmq.ROUTER_MANDATORY, 1)
        wait_back(rekeying, self._reach, self._is_present, self._closing.is_set)
        self._out.setsockopt(zmq.ROUTER_MANDATORY, 0)

    def _reach(self, index: int) -> bool:
        """Whether a message to that peer leaves; without a connection there is none."""
        peer = self._by_index.get(index)
        if peer is None:
            return False
        ready = encode(Ready(peer.session, self._info, self._engine_ready))
        try:
            self._out.send_multipart([peer.identity, ready], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _next_item(self, report_at: float) -> _Send | Rekeying | None:
        """The next message; None when woken for a report, or when one has come due."""
        if not self._is_report_due:
            return self._outbox.get()
        try:
            return self._outbox.get(timeout=max(0.0, report_at - time.monotonic()))
        except queue.Empty:
            return None

    def _send(self, item: _Send) -> None:
        peer = self._by_index.get(item.peer)
        if peer is None or peer.is_gone:
            return
        message = item.message
        if isinstance(message, Outputs):
            message = msgspec.structs.replace(message, session=peer.session)
        elif isinstance(message, Refused):
            self._by_index.pop(peer.index, None)
        elif isinstance(message, Ready):
            # A report may have gone out before the peer's second connection stood, and been lost
            # with the first Ready. Behind each Ready comes a report, changed or not.
            peer.reported = None
            self._is_report_due = True
        frames: list[Frame] = [peer.identity, encode(message)]
        if item.payload is not None:
            frames.extend(item.payload())
        self._out.send_multipart(frames, copy=False)

    def _send_reports(self, now: float) -> None:
        if self._latest is None:
            return
        load, seen, num_taken = self._latest
        for peer in list(self._peers.values()):
            if peer.reported is not None and now - peer.reported_at < peer.report_every_s:
                self._is_report_due = True  # for this one, later
                continue
            mark = seen.get(peer.index, 0)
            covers = self._covers(peer, num_taken)
            if self._prefixes is not None:
                self._send_prefixes(self._prefixes, peer, now)
            if not covers and peer.reported is not None and _same(peer.reported, load, mark):
                continue
            peer.reported, peer.reported_at = (load, mark), now
            message = msgspec.structs.replace(load, session=peer.session, seen=mark, covers=covers)
            self._out.send_multipart([peer.identity, encode(message)], copy=False)

    def _send_prefixes(self, prefixes: PrefixReports, peer: _Peer, now: float) -> None:
        if (news := prefixes.next(peer.index, peer.session)) is not None:
            peer.reported_at = now
            self._out.send_multipart([peer.identity, encode(news)], copy=False)

    def _covers(self, peer: _Peer, num_taken: int) -> list[RequestId]:
        """What this report tells a scheduler of for the first time."""
        if peer.role != "scheduler" or num_taken <= peer.told:
            return []
        told, peer.told = peer.told, num_taken
        return self._taken.between(told, num_taken)


def _same(reported: tuple[Load, int], load: Load, mark: int) -> bool:
    """Whether nothing but the time has changed."""
    before, before_mark = reported
    return before_mark == mark and msgspec.structs.replace(before, at=load.at) == load
