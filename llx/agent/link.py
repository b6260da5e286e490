"""A peer's side of an instance's sockets: dial, say hello, renew the lease, notice death, redial.

Used by gateways (which send requests) and by the scheduler (which only listens to load reports).
One asyncio task per link owns its sockets; each attempt is a new *session*, so nothing of an older
one can be mistaken for the present.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Sequence
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from llx import __version__
from llx.agent.dial_turns import DialTurns
from llx.agent.prefix_reports import PrefixFeed
from llx.agent.socket_reader import ReadSocket, read_all
from llx.core.ledger import InFlightLedger
from llx.core.model import Blocks, Epoch, InstanceLoad, RequestId, Term
from llx.curve import KeySource, KeyTurns, make_dialer
from llx.errors import EngineError, RemoteError, UnreachableError, WireError
from llx.pins import VLLM_VERSION
from llx.ports import Frame
from llx.wire import (
    NO_SESSION,
    Abort,
    Add,
    Bye,
    Call,
    Dead,
    Decoder,
    FromInstance,
    FromLlumlet,
    Hello,
    InstanceInfo,
    Load,
    Member,
    Outputs,
    Ping,
    Prefixes,
    Ready,
    Refused,
    Rekey,
    Rekeyed,
    Reply,
    ToInstance,
    ToLlumlet,
    check_frames,
    encode,
)

log = logging.getLogger(__name__)

_HELLO_AFTER_S = 0.05
_HELLO_AT_LEAST_EVERY_S = 1.0
"""Each hello waits twice as long for its answer as the one before: a process that dials a thousand
instances at once, or an instance that a hundred dial, is busy enough."""
_PING_EVERY_S = 1.0
_PING_AT_LEAST_EVERY_S = 3.0
_PING_AFTER_REPORTS = 15
"""Who hears so many instances that each reports seldom pings them less often, too."""
_HEARTBEAT_IN_MS = 5000
"""The other connection, on which the instance speaks, has one each second: it finds a silent host.
With one each second here, too, a head of a thousand has nearly as many of them as load reports."""
_REDIAL_AFTER_S = 0.2
_MOST_REPORTS_PER_S = 5000
_REFUSED_RETRY_S = 5.0
_LAST_WORDS_S = 0.05
"""After a disconnect, what has arrived is read first: last tokens, and why the engine died."""
_BACK_S = 5.0
"""Within this a session goes on with other keys, or it is over; more than the instance waits."""
_RETRY_S = 0.02
_EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def peer_of_process(name: str) -> str:
    """What this process calls itself where it dials: `name`, and what nobody else of it has.

    Peers are processes. Two of one name can run at once: one beyond a partition, and one that was
    started in its place. Neither may be taken for the other.
    """
    return f"{name}#{secrets.token_hex(6)}"


class LinkEvents(Protocol):
    """What a link tells its owner; called on the event loop, must not block."""

    def on_ready(self, link: "InstanceLink") -> None:
        """A session stands; `link.info` is known."""

    def on_down(self, link: "InstanceLink", reason: str) -> None:
        """The session is over. The link redials by itself."""

    def on_outputs(self, link: "InstanceLink", header: Outputs, payload: list[memoryview]) -> None:
        """A step's outputs."""

    def on_load(self, link: "InstanceLink", load: InstanceLoad) -> None:
        """A load report."""

    def on_llumlet(self, link: "InstanceLink", message: FromLlumlet) -> None:
        """What the instance's llumlet says to this peer."""


class _SessionOver(Exception):
    def __init__(self, reason: str, retry_after_s: float = _REDIAL_AFTER_S) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def report_interval_s(num_instances: int) -> float:
    """How often each of so many instances may report to a process that hears all of them."""
    return num_instances / _MOST_REPORTS_PER_S


class InstanceLink:
    """A connection to one instance that re-establishes itself until closed.

    Args:
        context: Of this process.
        keys: The cluster's keys, of any moment.
        member: The instance.
        peer: This process (`peer_of_process`), the same on each of its links and sessions.
        role: ``gateway``, ``scheduler`` or ``llumlet``.
        events: Who is told.
        term: The scheduler's.
        prefixes: Hears what is in the instance's prefix cache, while it wants to.
        turns: Of all links of this process; None: it dials at once.
        read: How what the instance says is read.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        keys: KeySource,
        member: Member,
        *,
        peer: str,
        role: str,
        events: LinkEvents,
        term: Term | None = None,
        prefixes: PrefixFeed | None = None,
        turns: DialTurns | None = None,
        read: ReadSocket = read_all,
    ) -> None:
        self.member = member
        self.prefixes = prefixes or PrefixFeed(lambda _: None)
        self.info: InstanceInfo | None = None
        self.engine_ready = b""
        self.is_ready = False
        self.refusal = ""
        self.newer_term = Term(0)
        """By which the instance refused this peer's; 0: it did not."""
        self.load: InstanceLoad | None = None
        self.report: Load | None = None
        """What `load` was taken from."""
        self.report_every_s = 0.0
        """How often at most the instance is to report; see `report_interval_s`."""
        self.ledger = InFlightLedger()
        self._context = context
        self._keys = KeyTurns(keys)
        self.listener_public = ""
        """Whom the session stands with, by the key; empty: none has stood yet."""
        self._held: list[list[Frame]] | None = None
        """What waits for the session to go on with other keys; None: it needs not."""
        self._back_until = 0.0
        self._peer = peer
        self._role = role
        self._events = events
        self._term = term if term is not None else Term(0)
        self._turns = turns or DialTurns()
        self._read = read
        self._session = 0
        self._calls: dict[int, asyncio.Future[list[memoryview]]] = {}
        self._call_ids = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._decoder: Decoder[FromInstance] = Decoder(FromInstance)
        self._in: zmq.asyncio.Socket
        self._out: zmq.asyncio.Socket

    # ------------------------------------------------------------------ owner's side

    def start(self) -> None:
        """Begin dialling; needs a running event loop."""
        assert self._task is None, "a link is started once"
        self._task = asyncio.create_task(self._run(), name=f"link-{self.member.instance}")

    async def close(self) -> None:
        """Say goodbye (requests left there are aborted) and stop."""
        if self.is_ready:
            self._send(Bye(self._session))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def add(
        self,
        request: RequestId,
        epoch: Epoch,
        demand: Blocks,
        payload: Sequence[Frame],
        name: str = "",
        outputs: Sequence[int] = (),
    ) -> None:
        """Send a request and charge the ledger; `name` and `outputs`: see `Add`.

        Raises:
            UnreachableError: The session is down.
        """
        self._require_ready()
        seq = self.ledger.charge(demand)
        self._send(Add(request, epoch, seq, name, list(outputs)), payload)

    def abort(self, requests: list[tuple[RequestId, Epoch]]) -> None:
        """End requests; nothing to do if the session is down (its end aborts them)."""
        if self.is_ready and requests:
            self._send(Abort(requests))

    def tell_llumlet(self, message: ToLlumlet, payload: Sequence[Frame] = ()) -> None:
        """Send a message to the instance's llumlet.

        Raises:
            UnreachableError: The session is down.
        """
        self._require_ready()
        self._send(message, payload)

    async def call(
        self, method: str, payload: Sequence[Frame], timeout_s: float
    ) -> list[memoryview]:
        """Call a utility; returns the result's frames.

        Raises:
            UnreachableError: The session is down or goes down meanwhile.
            RemoteError: The instance refused or failed the call.
            TimeoutError: No answer in time.
        """
        self._require_ready()
        call = next(self._call_ids)
        future: asyncio.Future[list[memoryview]] = asyncio.get_running_loop().create_future()
        self._calls[call] = future
        try:
            self._send(Call(call, method), payload)
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._calls.pop(call, None)

    def _require_ready(self) -> None:
        if not self.is_ready:
            raise UnreachableError(f"instance {self.member.instance} is not connected")

    def _send(self, message: ToInstance, payload: Sequence[Frame] = ()) -> None:
        # A DEALER's send only waits at its high-water mark; the future is done at once otherwise.
        frames = [encode(message), *payload]
        if self._held is not None:
            self._held.append(frames)
        else:
            self._in.send_multipart(frames, copy=False)

    async def _offer(self, message: ToInstance) -> None:
        """Send what is repeated anyway; dropped while nobody takes it, lest it pile up."""
        with contextlib.suppress(zmq.Again):
            await self._in.send_multipart([encode(message)], zmq.DONTWAIT)

    # ------------------------------------------------------------------ the task

    async def _run(self) -> None:
        while True:
            reason, retry_after_s = "", _REDIAL_AFTER_S
            try:
                await self._turns.take(self)
                await self._serve_session()
            except _SessionOver as over:
                reason, retry_after_s = str(over), over.retry_after_s
            except (zmq.ZMQError, OSError, WireError) as error:
                reason = f"{type(error).__name__}: {error}"
            except asyncio.CancelledError:
                self._end_session("closed")
                raise
            except Exception as error:  # the task's edge: a dead link must not look alive
                log.exception("link.failed instance=%s", self.member.instance)
                reason = f"{type(error).__name__}: {error}"
            self._end_session(reason)
            await asyncio.sleep(retry_after_s)

    async def _serve_session(self) -> None:
        self._session = secrets.randbits(62)
        self.ledger = InFlightLedger()
        self.load = self.report = None
        self.prefixes.begin_anew()
        while True:
            await self._serve_connections()
            await asyncio.sleep(_RETRY_S)

    async def _serve_connections(self) -> None:
        """Until they end because the instance listens with other keys from now on."""
        self._dialled = self._keys.now()
        self._in, self._out = self._dial(), self._dial()
        # Nothing is queued for who is not there. Not on `_out`: a connection that ends takes along
        # what has arrived there and was not read yet.
        self._in.setsockopt(zmq.IMMEDIATE, 1)
        self._in.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_IN_MS)
        monitors: list[zmq.asyncio.Socket] = [
            socket.get_monitor_socket(_EVENTS) for socket in (self._in, self._out)
        ]
        self._out.connect(self.member.address_out)
        self._in.connect(self.member.address_in)
        tasks = [
            asyncio.create_task(coroutine)
            for coroutine in (self._receive(), self._keep_lease(), *map(self._watch, monitors))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for socket, monitor in zip((self._in, self._out), monitors, strict=True):
                socket.disable_monitor()
                monitor.close(0)
            self._in.close(1000)
            self._out.close(0)

    def _dial(self) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.DEALER)
        make_dialer(socket, self._dialled)
        socket.setsockopt(zmq.IDENTITY, self._peer.encode())
        return socket

    async def _keep_lease(self) -> None:
        hello = Hello(self._peer, self._session, self._role, __version__, VLLM_VERSION, self._term)
        if self._held is not None:
            hello = msgspec.structs.replace(hello, resumes=True)
        pause_s = _HELLO_AFTER_S
        while not self.is_ready or self._held is not None:
            self._require_back()
            await self._offer(hello)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _HELLO_AT_LEAST_EVERY_S)
        while True:
            self._require_back()
            await self._offer(Ping(self._session, self.report_every_s, self.prefixes.ask))
            pause_s = max(_PING_EVERY_S, _PING_AFTER_REPORTS * self.report_every_s)
            await asyncio.sleep(min(pause_s, _PING_AT_LEAST_EVERY_S))

    def _require_back(self) -> None:
        if self._held is not None and asyncio.get_running_loop().time() > self._back_until:
            raise _SessionOver("not back after a change of keys")

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_DISCONNECTED and self.is_ready and self._held is None:
                await asyncio.sleep(_LAST_WORDS_S)
                if self._held is None:
                    raise _SessionOver("disconnected")
            if self._held is not None:
                return  # to dial anew, and again until the instance listens
            if event != zmq.EVENT_DISCONNECTED:
                self._keys.refuse(self._dialled)
                raise _SessionOver("the instance does not accept this cluster's key")

    async def _receive(self) -> None:
        await self._read(self._out, self._take)

    def _take(self, frames: list[bytes]) -> None:
        payload: list[memoryview] = []
        if len(frames) > 1:
            check_frames(frames)
            payload = [memoryview(each) for each in frames[1:]]
        self._handle(self._decoder.decode(frames[0]), payload)

    def _handle(self, message: FromInstance, payload: list[memoryview]) -> None:
        if isinstance(message, (Outputs, Load, Prefixes, Ready, Refused, Rekey)) and (
            message.session != self._session
        ):
            return
        match message:
            case Outputs():
                self._events.on_outputs(self, message, payload)
            case Load(seen=seen):
                self.ledger.settle(seen)
                self.load, self.report = self._load_of(message), message
                self._events.on_load(self, self.load)
            case Prefixes():
                self.prefixes.hear(message)
            case Ready() | Refused() | Rekey():
                self._about_session(message)
            case Reply(call=call, error=error):
                self._resolve(call, error, payload)
            case Dead(reason=reason):
                raise _SessionOver(f"engine dead: {reason}")
            case _:
                if self.is_ready:
                    self._events.on_llumlet(self, message)

    def _load_of(self, report: Load) -> InstanceLoad:
        """Most reports have the classes of the one before: made once, and told by who they are."""
        former, load = self.report, self.load
        if former is not None and load is not None and former.classes == report.classes:
            return report.instance_load(load.classes)
        return report.instance_load()

    def _about_session(self, message: Ready | Refused | Rekey) -> None:
        match message:
            case Rekey(listener_public=public):
                self._part(public)
            case Ready(info=info, engine_ready=engine_ready):
                self.listener_public = self._dialled.listener_public
                if self._held is not None:
                    self._go_on()
                elif not self.is_ready:
                    self._check_identity(info)
                    self.info, self.engine_ready = info, bytes(engine_ready)
                    self.is_ready, self.refusal = True, ""
                    self._turns.give_back(self)
                    log.info("link.ready instance=%s", self.member.instance)
                    self._events.on_ready(self)
            case Refused(reason=reason, term=term):
                self.newer_term = max(self.newer_term, term)
                if reason == NO_SESSION:
                    raise _SessionOver(reason)
                self.refusal = reason
                raise _SessionOver(f"refused: {reason}", _REFUSED_RETRY_S)

    def _part(self, listener_public: str) -> None:
        """The connections are about to end, the session is not: hold back what is to be sent."""
        if not self.is_ready or self._held is not None or not self._keys.take(listener_public):
            return
        self._send(Rekeyed(self._session))
        self._held = []
        self._back_until = asyncio.get_running_loop().time() + _BACK_S

    def _go_on(self) -> None:
        assert self._held is not None, "it has parted"
        held, self._held = self._held, None
        for frames in held:
            self._in.send_multipart(frames, copy=False)
        log.info("link.rekeyed instance=%s", self.member.instance)

    def _check_identity(self, info: InstanceInfo) -> None:
        if info.instance != self.member.instance or info.pool != self.member.pool:
            raise _SessionOver(
                f"{self.member.address_in} is {info.instance}, not {self.member.instance}",
                _REFUSED_RETRY_S,
            )

    def _resolve(self, call: int, error: str, payload: list[memoryview]) -> None:
        future = self._calls.pop(call, None)
        if future is None or future.done():
            return
        if error:
            future.set_exception(RemoteError(f"{self.member.instance}: {error}"))
        else:
            future.set_result(payload)

    def _end_session(self, reason: str) -> None:
        self._turns.give_back(self)
        was_ready, self.is_ready = self.is_ready, False
        self._held = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(UnreachableError(f"{self.member.instance}: {reason}"))
        self._calls.clear()
        if was_ready:
            log.info("link.down instance=%s reason=%s", self.member.instance, reason)
            self._events.on_down(self, reason)


def encode_arguments(*arguments: object) -> list[Frame]:
    """The payload of a `Call` with plain arguments.

    Raises:
        EngineError: An argument cannot be sent.
    """
    try:
        return [msgspec.msgpack.encode(list(arguments))]
    except (TypeError, msgspec.EncodeError) as error:
        raise EngineError(f"a utility's arguments cannot be sent: {error}") from None
