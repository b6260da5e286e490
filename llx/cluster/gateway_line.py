"""The scheduler's socket for gateways: who they are, what they report, which instances they use.

Level-triggered: a gateway's heartbeat carries the (term, version) of the list it knows; whoever
knows an older one gets the whole list. Nothing is sent before the first `publish`, so that a head
that has just come back cannot take away instances it has not looked for yet.
"""

import asyncio
import time
from dataclasses import dataclass

import zmq
import zmq.asyncio

from llx.core.model import Term
from llx.curve import Authenticator, ClusterKeys, make_listener
from llx.errors import ConflictError, WireError
from llx.log import get_log
from llx.wire import (
    Decoder,
    GatewayHello,
    GatewayReport,
    Member,
    Members,
    ToScheduler,
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


@dataclass(slots=True)
class GatewayView:
    """What is known of one gateway. `heard_at` is on the monotonic clock."""

    identity: bytes
    hello: GatewayHello
    heard_at: float
    report: GatewayReport | None = None

    @property
    def is_silent(self) -> bool:
        """Whether its heartbeat has stopped."""
        return time.monotonic() - self.heard_at > _SILENT_AFTER_S


class GatewayLine:
    """A ROUTER that gateways dial.

    Args:
        keys: The cluster's keys.
        term: This head's term, on everything it sends.
        rebind_for_s: How long to try for a former address.
    """

    def __init__(self, keys: ClusterKeys, term: Term, rebind_for_s: float = 5.0) -> None:
        self._term = term
        self._rebind_for_s = rebind_for_s
        self._version = 0
        self._members: list[Member] = []
        self._views: dict[str, GatewayView] = {}
        self._decoder: Decoder[ToScheduler] = Decoder(ToScheduler)
        self._context = zmq.asyncio.Context()
        self._authenticator = Authenticator(self._context, keys)
        self._socket = self._context.socket(zmq.ROUTER)
        make_listener(self._socket, keys)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.changed = asyncio.Event()

    async def bind(self, address: str | None) -> str:
        """Listen at that address, as running gateways dial it; None: anywhere on loopback.

        Raises:
            ConflictError: The address is taken by someone else, or not this host's.
        """
        if address is None:
            port = self._socket.bind_to_random_port(f"tcp://{LOOPBACK}", *_PORTS)
            return f"tcp://{LOOPBACK}:{port}"
        end = time.monotonic() + self._rebind_for_s
        while True:
            try:
                self._socket.bind(address)
                return address
            except zmq.ZMQError as error:
                if time.monotonic() >= end:
                    raise ConflictError(
                        f"{address}, where this cluster's gateways look for the head: {error}",
                        remedy="free that port, or run `llx down` and `llx up`",
                    ) from None
            await asyncio.sleep(0.1)

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            frames = await self._socket.recv_multipart()
            try:
                check_frames(frames[1:])
                await self._receive(frames[0], self._decoder.decode(frames[1]))
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
            for view in self._views.values()
            if not view.is_silent
        )

    async def publish(self, members: list[Member]) -> None:
        """Make `members` the list; gateways hear of it if it is another one."""
        if self._version and members == self._members:
            return
        self._members = members
        self._version += 1
        log.info("members.published", version=self._version, instances=_names(members))
        for view in list(self._views.values()):
            await self._send(view.identity)

    def view(self, gateway: str) -> GatewayView | None:
        """What is known of a gateway of that name; None before its first heartbeat."""
        return self._views.get(gateway)

    def drop(self, gateway: str) -> None:
        """Forget a gateway that has ended."""
        self._views.pop(gateway, None)

    async def _receive(self, identity: bytes, message: ToScheduler) -> None:
        now = time.monotonic()
        view = self._views.get(message.gateway)
        match message:
            case GatewayHello(gateway=gateway, term=term, version=version):
                if view is None or view.identity != identity or view.hello.pid != message.pid:
                    if view is None and len(self._views) >= _MAX_GATEWAYS:
                        raise WireError(f"more than {_MAX_GATEWAYS} gateways")
                    view = GatewayView(identity, message, now)
                    self._views[gateway] = view
                    log.info("gateway.joined", gateway=gateway, url=message.url)
                    self.changed.set()
                view.hello, view.heard_at = message, now
                if self._version and (term, version) < (self._term, self._version):
                    await self._send(identity)
            case GatewayReport():
                if view is not None:
                    if view.report is None or view.report.connected != message.connected:
                        self.changed.set()
                    view.report, view.heard_at = message, now

    async def _send(self, identity: bytes) -> None:
        message = Members(self._term, self._version, self._members)
        try:
            await self._socket.send_multipart([identity, encode(message)])
        except zmq.ZMQError as error:
            log.warning("gateway_line.send_failed", peer=identity, error=error)


def _names(members: list[Member]) -> str:
    return ",".join(member.instance for member in members)
