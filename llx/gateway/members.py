"""The gateway's line to the scheduler: it learns the members and says what it has in hand.

Level-triggered: the scheduler sends the whole list, the gateway makes its links match. While the
scheduler is away nothing changes; when it is back (with a higher term) the heartbeat below, which
carries the (term, version) the gateway knows, makes it send the list again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
import zmq.asyncio

from llx.agent.dial_turns import DialTurns
from llx.agent.link import InstanceLink, peer_of_process, report_interval_s
from llx.core.model import InstanceId, InstanceLoad, PoolName, Term
from llx.curve import ClusterKeys, KeySource, KeyTurns, make_dialer, make_wide
from llx.errors import WireError
from llx.gateway.changes import Changes
from llx.gateway.placement import Placement
from llx.specs import ApiKeySpec
from llx.wire import (
    CancelRequests,
    Changed,
    Decoder,
    FromLlumlet,
    FromScheduler,
    GatewayHello,
    GatewayReport,
    Member,
    Members,
    Outputs,
    Place,
    ReclassRequests,
    Withdraw,
    check_frames,
    encode,
)

if TYPE_CHECKING:
    from llx.gateway.certificate import Certificate
    from llx.gateway.front_end import FrontEnd
    from llx.gateway.generations import Generations

log = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5
_LOOK_S = 0.02
_REOPEN_AFTER_S = 1.0
_MAX_OPENS = 3
"""So often a front end beside the one that serves is opened in vain before it is given up."""
_LOOK_FOR_MOVE_S = 1.0
_MAX_UNSENT = 4096
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Membership:
    """Makes the rosters of all pools match the scheduler's list.

    It is also the owner of the links: what they report is passed on to the pool they belong to.

    Args:
        name: The gateway's.
        keys: The cluster's keys, of any moment.
        generations: The front ends of all pools.
        placement: Hears the scheduler's answers.
        heartbeat_s: How often the scheduler hears of this gateway.
        on_api_keys: Hears who is to be let in, whenever that changes.
    """

    def __init__(
        self,
        name: str,
        keys: KeySource,
        generations: "Generations",
        placement: Placement,
        heartbeat_s: float = _HEARTBEAT_S,
        on_api_keys: Callable[[list[ApiKeySpec]], None] | None = None,
    ) -> None:
        self._on_api_keys = on_api_keys
        self._api_keys: list[ApiKeySpec] | None = None
        self._placement = placement
        placement.use_line(self.to_scheduler)
        self._heartbeat_s = heartbeat_s
        self._peer = peer_of_process(name)
        self._turns = DialTurns()
        self._keys = keys
        self._key_turns = KeyTurns(keys)
        self._generations = generations
        self._pools = generations.pools
        self._list: Members | None = None
        self._context = zmq.asyncio.Context(io_threads=2)
        make_wide(self._context)
        self._known = (Term(0), 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: zmq.asyncio.Socket | None = None
        self._opening: set[str] = set()
        self._changes = Changes(
            lambda: [pool.client for pool in self._pools.values() if pool.client is not None],
            self.to_scheduler,
        )

    # ------------------------------------------------------------------ the scheduler's line

    async def run(
        self, address: Callable[[], str], hello: GatewayHello, report: "ReportSource"
    ) -> None:
        """Keep the line until cancelled; if it fails, or leads elsewhere, open it anew.

        Args:
            address: The scheduler's, at that moment.
            hello: Who this gateway is; what it knows is filled in.
            report: Gives a `GatewayReport` of this moment.
        """
        while True:
            try:
                await self._keep_line(address, hello, report)
            except Exception:  # the line's edge: without it no news of instances would ever come
                log.exception("members.line_failed")
            await asyncio.sleep(_REOPEN_AFTER_S)

    async def _keep_line(
        self, address: Callable[[], str], hello: GatewayHello, report: "ReportSource"
    ) -> None:
        """Until either direction fails, or the scheduler is somewhere else."""
        socket = self._context.socket(zmq.DEALER)
        keys = self._key_turns.now()
        make_dialer(socket, keys)
        socket.setsockopt(zmq.IDENTITY, self._peer.encode())
        # Nothing is kept for a scheduler that is away: it wants to know what is, not what was.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, _MAX_UNSENT)
        monitor: zmq.asyncio.Socket = socket.get_monitor_socket(_REFUSALS)
        dialled = address()
        socket.connect(dialled)
        self._socket = socket
        tasks = [
            asyncio.create_task(coroutine)
            for coroutine in (
                self._receive(socket),
                self._beat(socket, hello, report),
                _until_moved(dialled, address),
                self._until_refused(monitor, keys),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._socket = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
        for task in done:
            assert not task.cancelled(), "nobody else cancels it"
            task.result()

    async def _until_refused(self, monitor: zmq.asyncio.Socket, keys: ClusterKeys) -> None:
        """The scheduler listens with other keys: those of the ring have their turns."""
        await monitor.recv_multipart()
        self._key_turns.refuse(keys)
        log.info("members.key_refused")

    def to_scheduler(self, message: Place | Withdraw | Changed) -> bool:
        """Send to the scheduler; false if it is not there, or takes no more."""
        if self._socket is None:
            return False
        # Without waiting the outcome is there at once.
        sent: Any = self._socket.send(encode(message), zmq.DONTWAIT)
        return sent.exception() is None

    async def _beat(
        self, socket: zmq.asyncio.Socket, hello: GatewayHello, report: "ReportSource"
    ) -> None:
        while True:
            if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
                # Not waited for: what is sent meanwhile would queue up behind that.
                await asyncio.sleep(_LOOK_S)
                continue
            term, version = self._known
            hello = msgspec.structs.replace(hello, term=term, version=version)
            for message in (hello, report()):
                with contextlib.suppress(zmq.Again):  # it went away since, or does not read
                    await socket.send(encode(message), zmq.DONTWAIT)
            await asyncio.sleep(self._heartbeat_s)

    async def close(self) -> None:
        """Close every link."""
        self._changes.close()
        links = [link for pool in self._pools.values() for link in pool.roster.links()]
        await asyncio.gather(*(link.close() for link in links))
        self._context.destroy(linger=0)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        decoder: Decoder[FromScheduler] = Decoder(FromScheduler)
        while True:
            frames = await socket.recv_multipart()
            try:
                check_frames(frames)
                self._hear(decoder.decode(frames[0]))
            except WireError as error:
                log.warning("members.bad_message error=%s", error)

    def _hear(self, message: FromScheduler) -> None:
        match message:
            case Members():
                self.apply(message)
            case CancelRequests() | ReclassRequests():
                if message.term >= self._known[0]:
                    self._changes.hear(message)
            case _:
                self._placement.hear(message)

    # ------------------------------------------------------------------ applying the list

    def apply(self, members: Members) -> None:
        """Make the links match the list; one of an older (term, version) changes nothing."""
        if (members.term, members.version) <= self._known:
            return
        self._list = members
        self._generations.apply(members.pools, self._follow)
        self._follow()
        if members.api_keys is not None and members.api_keys != self._api_keys:
            self._api_keys = members.api_keys
            if self._on_api_keys is not None:
                self._on_api_keys(members.api_keys)
        self._known = (members.term, members.version)
        self._placement.hear_term(members.term)

    def _follow(self) -> None:
        """Make the links of every front end match the last list."""
        members = self._list
        assert members is not None, "nothing is made before the first"
        for name, pool in self._pools.items():
            wanted = {each.instance: each for each in members.members if each.pool == name}
            self._converge(pool, wanted)
            pool.roster.is_by_prefix = name in members.by_prefix
            self._open_if_due(pool)

    def _converge(self, pool: "FrontEnd", wanted: dict[InstanceId, Member]) -> None:
        for link in pool.roster.links():
            instance = link.member.instance
            new = wanted.get(instance)
            if new is None or _addresses(new) != _addresses(link.member):
                pool.roster.leave(instance)
                self._spawn(link.close())
                log.info("members.left instance=%s", instance)
        for instance, member in wanted.items():
            known = pool.roster.get(instance)
            if known is not None:
                known.member = member
                continue
            link = InstanceLink(
                self._context, self._keys, member, peer=self._peer, role="gateway", events=self,
                turns=self._turns,
            )  # fmt: skip
            pool.roster.join(link)
            link.start()
            log.info("members.joined instance=%s", instance)
        for link in pool.roster.links():
            link.report_every_s = report_interval_s(len(wanted))
        pool.roster.update()  # one may have been cordoned

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ what links report

    def on_ready(self, link: InstanceLink) -> None:
        """The first instance of a pool opens its front end.

        The first load report, before or after this, makes the instance eligible.
        """
        pool = self._pool(link)
        pool.roster.update()
        self._open_if_due(pool)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """Tell the pool, which saves what can be saved."""
        pool = self._pool(link)
        pool.roster.update()
        if pool.client is not None:
            pool.client.on_down(link, reason)

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """Pass on to the pool's client."""
        client = self._pool(link).client
        if client is not None:
            client.on_outputs(link, header, payload)

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        """The first report makes the instance eligible."""
        self._pool(link).roster.update()

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """Pass on to the pool's client."""
        client = self._pool(link).client
        if client is not None:
            client.on_llumlet(link, message)

    def _open_if_due(self, pool: "FrontEnd") -> None:
        key = PoolName(pool.spec.key)
        if pool.is_open or key in self._opening or key in self._generations.unusable:
            return
        if any(link.is_ready for link in pool.roster.links()):
            self._opening.add(key)
            self._spawn(self._open(pool))

    async def _open(self, pool: "FrontEnd") -> None:
        """Open a pool from any connected instance; again if that one goes away meanwhile.

        One that does not open though instances are there is given up after a few times, so that
        the head, which waits for it, hears why.
        """
        num_failed = 0
        try:
            while links := [link for link in pool.roster.links() if link.is_ready]:
                try:
                    await pool.open(links[0].engine_ready)
                except Exception as error:  # until then the pool answers 503
                    log.exception("front_end.failed pool=%s", pool.spec.key)
                    num_failed += 1
                    key = PoolName(pool.spec.key)
                    if num_failed >= _MAX_OPENS and self._generations.fail(key, error):
                        return
                    await asyncio.sleep(_REOPEN_AFTER_S)
                else:
                    self._generations.settle()
                    return
        finally:
            self._opening.discard(pool.spec.key)

    def _pool(self, link: InstanceLink) -> "FrontEnd":
        return self._pools[link.member.pool]


class ReportSource:
    """What goes into a `GatewayReport`."""

    def __init__(
        self,
        name: str,
        generations: "Generations",
        num_refused: Any,
        certificate: "Certificate | None" = None,
    ) -> None:
        self._certificate = certificate
        self._name = name
        self._generations = generations
        self._num_refused = num_refused

    def __call__(self) -> GatewayReport:
        """A report of this moment, over all pools."""
        pools = list(self._generations.pools.values())
        clients = [pool.client for pool in pools if pool.client is not None]
        counters = [each for _, _, each in self._generations.counters()]
        return GatewayReport(
            gateway=self._name,
            in_flight=sum(client.num_in_flight for client in clients),
            num_requests=sum(each.num_requests for each in counters),
            num_finished=sum(each.num_finished for each in counters),
            num_failed=sum(each.num_failed for each in counters),
            num_refused=self._num_refused(),
            output_tokens=sum(each.output_tokens for each in counters),
            connected=[
                link.member.instance
                for pool in pools
                for link in pool.roster.links()
                if link.is_ready
            ],
            moves=[move for client in clients for move in client.moves.last()],
            open=self._generations.open(),
            unusable=self._generations.unusable,
            paces={
                name: pace
                for client in clients
                for name, pace in client.paces.told(time.monotonic()).items()
            },
            certificate="" if self._certificate is None else self._certificate.pem,
            certificate_ends_at=0.0 if self._certificate is None else self._certificate.ends_at,
        )


async def _until_moved(dialled: str, address: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(_LOOK_FOR_MOVE_S)
        if (now := address()) != dialled:
            log.info("members.scheduler_moved former=%s now=%s", dialled, now)
            return


def _addresses(member: Member) -> tuple[str, str]:
    return member.address_in, member.address_out
