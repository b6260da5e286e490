"""The scheduler's socket for gateways: who they are, what they report, which instances they use.

Level-triggered: a gateway's heartbeat carries the (term, version) of the list it knows; whoever
knows an older one gets the whole list. Nothing is sent before the first `publish`, so that a head
that has just come back cannot take away instances it has not looked for yet.

Two gateways of one name may be there at once: the one of a host that was given up and has come
back, and the one that was started in its place. Only that on the expected host is heard.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from llx.agent.socket_reader import Conversation
from llx.core.model import PoolName, RequestId, Term
from llx.curve import Authenticator, ClusterKeys, KeySource, make_listener
from llx.errors import ConflictError, WireError
from llx.log import get_log
from llx.specs import ApiKeySpec
from llx.wire import (
    Change,
    Changed,
    Decoder,
    GatewayHello,
    GatewayReport,
    Member,
    Members,
    MoveSeen,
    Place,
    PlacementAnswer,
    PoolOffer,
    ToScheduler,
    Withdraw,
    check_frames,
    encode,
)

log = get_log(__name__)

# Below the range from which systems take ports for outgoing connections: a head that comes back
# must find its port free, as gateways know no other.
_PORTS = (20000, 32000)
LOOPBACK = "127.0.0.1"
_SILENT_AFTER_S = 5.0
_MAX_GATEWAYS = 256
_LOOK_FOR_KEYS_S = 1.0
_BIND_AGAIN_S = 0.02
_COMPLAIN_EVERY = 250

HostOf = Callable[[str], str]
"""Gateway → name of the host where it is to be; empty: nowhere."""
OnChanged = Callable[[bytes, Changed], None]
"""Gets what a gateway process, by its identity, says of a change that was asked of it."""
OnMoves = Callable[[Sequence[MoveSeen]], None]
"""Gets what a gateway saw of migrations, much of it not for the first time."""


class PlacementEvents(Protocol):
    """Who places gateways' requests; called on the event loop, must not block.

    A gateway is the identity of its process.
    """

    def place(self, gateway: bytes, ask: Place) -> None:
        """It wants an instance for a request."""

    def withdraw(self, gateway: bytes, request: RequestId) -> None:
        """It wants none for it any longer."""

    def forget(self, gateway: bytes) -> None:
        """It is gone, or has been silent."""


@dataclass(slots=True)
class GatewayView:
    """What is known of one gateway. `heard_at` is on the monotonic clock."""

    identity: bytes
    hello: GatewayHello
    heard_at: float
    report: GatewayReport | None = None
    is_forgotten: bool = False
    """It was silent, so that its requests are no longer waited for."""

    @property
    def is_silent(self) -> bool:
        """Whether its heartbeat has stopped."""
        return time.monotonic() - self.heard_at > _SILENT_AFTER_S


class GatewayLine:
    """A ROUTER that gateways dial.

    Args:
        keys: The cluster's keys. When they are replaced it listens with the others, and gateways
            dial anew.
        term: This head's term, on everything it sends.
        rebind_for_s: How long to try for a former address.
    """

    def __init__(self, keys: KeySource, term: Term, rebind_for_s: float = 5.0) -> None:
        self._term = term
        self._rebind_for_s = rebind_for_s
        self._version = 0
        self._list = Members(term, 0, [])
        self._views: dict[str, GatewayView] = {}
        self._host_of: HostOf | None = None
        self._on_moves: OnMoves | None = None
        self._placement: PlacementEvents | None = None
        self._on_changed: OnChanged | None = None
        self._names: dict[bytes, str] = {}
        self._ignored: set[bytes] = set()
        self._decoder: Decoder[ToScheduler] = Decoder(ToScheduler)
        self._context = zmq.asyncio.Context()
        self._keys = keys
        self._address = ""
        self.listens_with: ClusterKeys = keys.ring()[0]
        self._authenticator = Authenticator(self._context, self.listens_with)
        self._socket = self._context.socket(zmq.ROUTER)
        make_listener(self._socket, self.listens_with)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._conversation = Conversation(self._socket)
        self.changed = asyncio.Event()

    def expect(self, host_of: HostOf) -> None:
        """Hear a gateway only if it runs where `host_of` says at that moment.

        Until this is called every gateway is heard.
        """
        self._host_of = host_of

    def tell_moves(self, on_moves: OnMoves) -> None:
        """Tell `on_moves` of every report from now on that names any."""
        self._on_moves = on_moves

    def tell_placement(self, events: PlacementEvents) -> None:
        """Tell `events` of requests to be placed from now on."""
        self._placement = events

    def tell_changed(self, on_changed: OnChanged) -> None:
        """Tell `on_changed` what gateways say of changes, from now on."""
        self._on_changed = on_changed

    def present(self) -> dict[bytes, str]:
        """The gateways that are heard of now: identity and name."""
        views = [each for each in self._expected() if not each.is_silent]
        return {view.identity: view.hello.gateway for view in views}

    def tell(self, gateway: bytes, answer: PlacementAnswer | Change) -> None:
        """Tell a gateway something; dropped if it does not take it, and then it asks again."""
        # A ROUTER never waits: whom it cannot send to it drops.
        self._conversation.send(gateway, encode(answer))

    def sweep(self) -> None:
        """Forget the requests of gateways that have fallen silent."""
        for view in self._views.values():
            if view.is_silent and not view.is_forgotten:
                view.is_forgotten = True
                self._forget(view.identity)

    async def bind(self, address: str | None) -> str:
        """Listen at that address, as running gateways dial it; None: anywhere on loopback.

        Raises:
            ConflictError: The address is taken by someone else, or not this host's.
        """
        if address is None:
            port = self._socket.bind_to_random_port(f"tcp://{LOOPBACK}", *_PORTS)
            self._address = f"tcp://{LOOPBACK}:{port}"
            return self._address
        end = time.monotonic() + self._rebind_for_s
        while True:
            try:
                self._socket.bind(address)
                self._address = address
                return address
            except zmq.ZMQError as error:
                if time.monotonic() >= end:
                    raise ConflictError(
                        f"{address}, where this cluster's gateways look for the head: {error}",
                        remedy="free that port, or run `llx down` and `llx up`",
                    ) from None
            await asyncio.sleep(0.1)

    async def run(self) -> None:
        """Receive until cancelled, with the keys of any moment."""
        following = asyncio.create_task(self._follow_keys(), name="line-keys")
        try:
            await self._conversation.read_all(self._take)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow_keys(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_FOR_KEYS_S)
            keys = self._keys.ring()[0]
            if keys == self.listens_with or not self._address:
                continue
            with contextlib.suppress(zmq.ZMQError):  # it does not listen there any more
                self._socket.unbind(self._address)  # which ends all its connections
            self._authenticator.admit(keys)
            make_listener(self._socket, keys)
            await self._bind_again()
            self.listens_with = keys
            log.info("gateway_line.rekeyed")

    async def _bind_again(self) -> None:
        """The port is free as soon as libzmq's own thread has closed it."""
        for attempt in itertools.count(1):
            try:
                self._socket.bind(self._address)
                self._conversation.look_soon()
                return
            except zmq.ZMQError as error:
                if attempt % _COMPLAIN_EVERY == 0:
                    log.warning("gateway_line.cannot_listen", address=self._address, error=error)
            await asyncio.sleep(_BIND_AGAIN_S)

    def _take(self, frames: list[bytes]) -> None:
        try:
            check_frames(frames[1:])
            self._receive(frames[0], self._decoder.decode(frames[1]))
        except WireError as error:
            log.warning("gateway_line.bad_message", peer=frames[0][:64], error=error)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._authenticator.stop()
        self._context.destroy(linger=0)

    @property
    def version(self) -> int:
        """Of the list; 0 before the first."""
        return self._version

    def is_known(self, version: int) -> bool:
        """Whether every gateway that is heard of has the list of that version, or a later one."""
        return all(
            (view.hello.term, view.hello.version) >= (self._term, version)
            for view in self._expected()
            if not view.is_silent
        )

    def publish(
        self,
        members: list[Member],
        by_prefix: Iterable[PoolName] = (),
        pools: Sequence[PoolOffer] = (),
        api_keys: list[ApiKeySpec] | None = None,
    ) -> None:
        """Make `members` the list; gateways hear of it if it is another one.

        `by_prefix`, `pools`, `api_keys`: see `Members`.
        """
        message = Members(
            self._term, self._version, members, sorted(by_prefix), list(pools), api_keys
        )
        if self._version and message == self._list:
            return
        self._list = msgspec.structs.replace(message, version=self._version + 1)
        self._version += 1
        log.info("members.published", version=self._version, instances=_names(members))
        for view in list(self._expected()):
            self._send(view.identity)

    def view(self, gateway: str) -> GatewayView | None:
        """What is known of a gateway of that name; None before its first heartbeat."""
        view = self._views.get(gateway)
        return view if view is not None and self._is_expected(view.hello) else None

    def drop(self, gateway: str) -> None:
        """Forget a gateway that has ended."""
        view = self._views.pop(gateway, None)
        if view is not None:
            self._leave(view.identity)

    def _receive(self, identity: bytes, message: ToScheduler) -> None:
        now = time.monotonic()
        match message:
            case Place() | Withdraw() | Changed():
                self._pass_on(identity, message)
                return
            case _:
                view = self._views.get(message.gateway)
        match message:
            case GatewayHello(term=term, version=version):
                if not self._is_expected(message):
                    self._ignore(identity, message)
                    return
                if view is None or view.identity != identity:
                    view = self._join(identity, message, now)
                view.hello, view.heard_at, view.is_forgotten = message, now, False
                if self._version and (term, version) < (self._term, self._version):
                    self._send(identity)
            case GatewayReport():
                if view is not None and view.identity == identity:
                    if view.report is None or _serves(view.report) != _serves(message):
                        self.changed.set()
                    view.report, view.heard_at = message, now
                    if message.moves and self._on_moves is not None:
                        self._on_moves(message.moves)

    def _join(self, identity: bytes, hello: GatewayHello, now: float) -> GatewayView:
        if hello.gateway not in self._views and len(self._views) >= _MAX_GATEWAYS:
            raise WireError(f"more than {_MAX_GATEWAYS} gateways")
        if (former := self._views.get(hello.gateway)) is not None:
            self._leave(former.identity)
        view = self._views[hello.gateway] = GatewayView(identity, hello, now)
        self._names[identity] = hello.gateway
        log.info("gateway.joined", gateway=hello.gateway, host=hello.host, url=hello.url)
        self.changed.set()
        return view

    def _pass_on(self, identity: bytes, message: Place | Withdraw | Changed) -> None:
        """Of those that have presented themselves; others do so soon, and ask again."""
        if identity not in self._names:
            return
        if isinstance(message, Changed):
            if self._on_changed is not None:
                self._on_changed(identity, message)
        elif self._placement is not None:
            if isinstance(message, Place):
                self._placement.place(identity, message)
            else:
                self._placement.withdraw(identity, message.request)

    def _leave(self, identity: bytes) -> None:
        self._names.pop(identity, None)
        self._forget(identity)

    def _forget(self, identity: bytes) -> None:
        if self._placement is not None:
            self._placement.forget(identity)

    def _is_expected(self, hello: GatewayHello) -> bool:
        if self._host_of is None:
            return True
        host = self._host_of(hello.gateway)
        return bool(host) and host == hello.host

    def _expected(self) -> Iterator[GatewayView]:
        return (view for view in self._views.values() if self._is_expected(view.hello))

    def _ignore(self, identity: bytes, hello: GatewayHello) -> None:
        if identity in self._ignored:
            return
        if len(self._ignored) >= _MAX_GATEWAYS:
            self._ignored.clear()
        self._ignored.add(identity)
        log.warning("gateway.not_expected", gateway=hello.gateway, host=hello.host, url=hello.url)

    def _send(self, identity: bytes) -> None:
        try:
            self._conversation.send(identity, encode(self._list))
        except zmq.ZMQError as error:
            log.warning("gateway_line.send_failed", peer=identity, error=error)


def _serves(report: GatewayReport) -> tuple[object, ...]:
    return report.connected, report.open, report.unusable


def _names(members: list[Member]) -> str:
    return ",".join(member.instance for member in members)
