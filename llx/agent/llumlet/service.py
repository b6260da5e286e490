"""The llumlet's thread: orders, messages of other llumlets, rulings, and limits."""

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq.asyncio

from llx.agent.endpoint import InstanceEndpoint
from llx.agent.link import InstanceLink, peer_of_process
from llx.agent.llumlet.incoming import Incoming
from llx.agent.llumlet.outgoing import Outgoing
from llx.agent.llumlet.parts import EngineFacts, Parts
from llx.agent.llumlet.picking import Picking
from llx.core.migration.events import Cancelled, HasArrived, IsBroken, IsGone, Ruled
from llx.core.model import Epoch, InstanceId, InstanceLoad, MigrationId, PoolName, RequestId
from llx.curve import KeySource
from llx.ports import EngineSink, Frame, KvTransport, MigratingEngine
from llx.specs import MigrationSpec
from llx.wire import (
    AbortMigration,
    CancelMigration,
    Commit,
    Committed,
    Dropped,
    Extend,
    FromLlumlet,
    Member,
    MigrateOrder,
    MigrationNews,
    MigrationRefused,
    Outputs,
    RequestView,
    Reserve,
    Reserved,
    Ruling,
    Target,
)

log = logging.getLogger(__name__)

_MAX_WAITING = 1024
"""Orders that wait for their turn; more are refused."""
_REMEMBERED = 1024
"""So many migrations that are over are remembered, for messages that come late."""
_IDLE_LINK_S = 60.0
_END_S = 2.0


class MigrationService:
    """Serves one instance; implements `llx.ports.Llumlet` and `llx.ports.KvListener`.

    Args:
        keys: The cluster's keys.
        pool: Whose instance it is.
        facts: What the engine is.
        spec: How to move.
        engine: The engine.
        sink: The same engine, as the endpoint sees it.
    """

    def __init__(
        self,
        keys: KeySource,
        pool: PoolName,
        facts: EngineFacts,
        spec: MigrationSpec,
        engine: MigratingEngine,
        sink: EngineSink,
    ) -> None:
        self._keys = keys
        self._pool = pool
        self._facts = facts
        self._spec = spec
        self._engine = engine
        self._sink = sink
        self._peer = peer_of_process(f"llumlet-{facts.instance}")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llumlet", daemon=True)
        self._parts: Parts
        self._waiting: deque[MigrateOrder] = deque()
        self._picking = Picking()
        self._out: dict[RequestId, Outgoing] = {}
        self._in: OrderedDict[MigrationId, Incoming] = OrderedDict()
        self._ended: OrderedDict[MigrationId, None] = OrderedDict()
        self._links: dict[InstanceId, InstanceLink] = {}
        self._idle: dict[InstanceId, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ any thread

    def start(self, endpoint: InstanceEndpoint, transport: KvTransport) -> None:
        """Begin to serve, before the endpoint does."""
        self._parts = Parts(
            self._loop,
            self._facts,
            self._spec,
            self._engine,
            self._sink,
            transport,
            endpoint,
        )
        self._engine.watch(lambda request, why: self._post(self._gone, request, why))
        self._thread.start()

    def receive(self, peer: int, message: object, payload: Sequence[Frame]) -> None:
        """A message of `llx.wire.ToLlumlet`."""
        self._post(self._receive, peer, message, payload)

    def drop_peer(self, peer: int) -> None:
        """A session is over."""
        self._post(self._drop_peer, peer)

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        """A stage is in the blocks of every rank."""
        self._post(self._tell_incoming, migration, HasArrived(stage))

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        """A copy to here has failed."""
        self._post(self._tell_incoming, migration, IsBroken(reason))

    def close(self) -> None:
        """End; migrations under way are left to the other ends."""
        self._post(self._end)
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _post(self, action: Callable[..., None], *arguments: object) -> None:
        self._parts.post(action, *arguments)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._context = zmq.asyncio.Context()
        try:
            self._loop.run_forever()
        finally:
            self._context.destroy(linger=0)
            self._loop.close()

    def _end(self) -> None:
        self._waiting.clear()
        for instance in list(self._links):
            self._close_link(instance)
        ending = self._loop.create_task(self._end_links())
        ending.add_done_callback(lambda _: self._loop.stop())

    async def _end_links(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing, timeout=_END_S / 2)

    # ------------------------------------------------------------------ messages

    def _receive(self, peer: int, message: object, payload: Sequence[Frame]) -> None:
        match message:
            case MigrateOrder(rule=None):
                self._order(message)
            case MigrateOrder():
                self._parts.ask(self._engine.requests, partial(self._order_by_rule, message))
            case CancelMigration(migration=migration):
                self._cancel(migration)
            case Ruling(request=request, epoch=epoch, is_yours=is_yours):
                if (outgoing := self._out.get(request)) is not None:
                    outgoing.handle(Ruled(epoch, is_yours))
            case Reserve():
                self._reserve(peer, message, payload)
            case Extend() | Commit() | AbortMigration():
                self._pass_to_incoming(message)
            case _:
                log.warning("llumlet.unknown_message type=%s", type(message).__name__)

    def _drop_peer(self, peer: int) -> None:
        for incoming in list(self._in.values()):
            incoming.drop_peer(peer)

    def _gone(self, request: RequestId, why: str) -> None:
        if (outgoing := self._out.get(request)) is not None:
            outgoing.handle(IsGone(why))

    # ------------------------------------------------------------------ away from here

    def _order_by_rule(self, order: MigrateOrder, views: Sequence[RequestView]) -> None:
        assert order.rule is not None, "it goes by a rule"
        leaving = {*self._out, *(each.request for each in self._waiting)}
        found = self._picking.pick(order.rule, views, leaving)
        if isinstance(found, str):
            self._refuse_order(order, found, "none")
        else:
            self._order(msgspec.structs.replace(order, request=found.request, rule=None))

    def _order(self, order: MigrateOrder) -> None:
        if order.request in self._out or any(
            each.request == order.request for each in self._waiting
        ):
            self._refuse_order(order, "it is being moved already")
        elif order.target.instance == self._facts.instance:
            self._refuse_order(order, "it is there already")
        elif len(self._waiting) >= _MAX_WAITING:
            self._refuse_order(order, f"{_MAX_WAITING} moves wait for their turn already")
        else:
            self._waiting.append(order)
            self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and len(self._out) < self._spec.max_out:
            order = self._waiting.popleft()
            link = self._link(order.target)
            outgoing = self._out[order.request] = Outgoing(self._parts, order, link, self._over)
            outgoing.start()

    def _over(self, outgoing: Outgoing) -> None:
        del self._out[outgoing.order.request]
        self._let_idle(outgoing.order.target.instance)
        self._loop.call_soon(self._begin_next)

    def _cancel(self, migration: MigrationId) -> None:
        for order in list(self._waiting):
            if order.migration == migration:
                self._waiting.remove(order)
                self._refuse_order(order, "cancelled")
        for outgoing in list(self._out.values()):
            if outgoing.order.migration == migration:
                outgoing.handle(Cancelled("cancelled"))

    def _refuse_order(self, order: MigrateOrder, reason: str, outcome: str = "kept") -> None:
        news = MigrationNews(
            order.migration,
            order.request,
            "",
            order.target.instance,
            state=outcome,
            epoch=Epoch(0),
            is_over=True,
            outcome=outcome,
            reason=reason,
        )
        for peer in self._parts.endpoint.peers_of("scheduler"):
            self._parts.endpoint.emit(peer, news)

    # ------------------------------------------------------------------ links to targets

    def _link(self, target: Target) -> InstanceLink:
        """The session with a target, dialled if there is none; kept for a while after use."""
        if (timer := self._idle.pop(target.instance, None)) is not None:
            timer.cancel()
        link = self._links.get(target.instance)
        addresses = (target.address_in, target.address_out)
        if link is not None and (link.member.address_in, link.member.address_out) != addresses:
            self._close_link(target.instance)
            link = None
        if link is None:
            member = Member(target.instance, self._pool, *addresses)
            link = self._links[target.instance] = InstanceLink(
                self._context, self._keys, member, peer=self._peer, role="llumlet", events=self
            )
            link.start()
        return link

    def _let_idle(self, instance: InstanceId) -> None:
        if instance not in self._links or any(
            each.order.target.instance == instance for each in self._out.values()
        ):
            return
        if (timer := self._idle.pop(instance, None)) is not None:
            timer.cancel()
        self._idle[instance] = self._loop.call_later(_IDLE_LINK_S, self._close_link, instance)

    def _close_link(self, instance: InstanceId) -> None:
        if (timer := self._idle.pop(instance, None)) is not None:
            timer.cancel()
        link = self._links.pop(instance)
        self._to_target(link, lambda each: each.link_is_down("another runs there by now"))
        task = self._loop.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def on_ready(self, link: InstanceLink) -> None:
        """A session with a target stands."""
        self._to_target(link, Outgoing.link_is_up)

    def on_down(self, link: InstanceLink, reason: str) -> None:
        """A session with a target is over."""
        self._to_target(link, lambda each: each.link_is_down(reason))

    def on_outputs(self, link: InstanceLink, header: Outputs, payload: list[memoryview]) -> None:
        """Nothing of ours runs there under our name."""

    def on_load(self, link: InstanceLink, load: InstanceLoad) -> None:
        """Whom to move where is the scheduler's to know."""

    def on_llumlet(self, link: InstanceLink, message: FromLlumlet) -> None:
        """A target answers."""
        if not isinstance(message, (Reserved, MigrationRefused, Committed, Dropped)):
            return
        for outgoing in list(self._out.values()):
            if outgoing.order.migration == message.migration and outgoing.link is link:
                outgoing.hear(message)

    def _to_target(self, link: InstanceLink, action: Callable[[Outgoing], None]) -> None:
        for outgoing in list(self._out.values()):
            if outgoing.link is link:
                action(outgoing)

    # ------------------------------------------------------------------ to here

    def _reserve(self, peer: int, header: Reserve, payload: Sequence[Frame]) -> None:
        if header.migration in self._in or header.migration in self._ended:
            return
        gateway = self._parts.endpoint.index_of(header.gateway)
        refusal = self._refusal(header, gateway)
        prepared: object = refusal or self._engine.prepare(header, payload)
        if isinstance(prepared, str):
            self._parts.endpoint.emit(peer, MigrationRefused(header.migration, prepared))
            self._remember_ended(header.migration)
            return
        assert gateway is not None, "else it was refused"
        incoming = Incoming(
            self._parts, peer, gateway, header, prepared, self._picking.note_arrival
        )
        self._in[header.migration] = incoming
        self._forget_old()
        incoming.start()

    def _refusal(self, header: Reserve, gateway: int | None) -> str:
        if header.compatibility != self._facts.compatibility:
            return "it serves another model, or the same in another way"
        if gateway is None:
            return f"{header.gateway.partition('#')[0]} is not connected here"
        if sum(not each.is_over for each in self._in.values()) >= self._spec.max_in:
            return f"{self._spec.max_in} requests arrive already"
        return ""

    def _pass_to_incoming(self, message: Extend | Commit | AbortMigration) -> None:
        """Of a migration that is not known nothing is said: this instance may have owned it."""
        incoming = self._in.get(message.migration)
        if incoming is not None:
            incoming.hear(message)
        elif isinstance(message, AbortMigration):
            self._remember_ended(message.migration)

    def _tell_incoming(self, migration: MigrationId, event: HasArrived | IsBroken) -> None:
        if (incoming := self._in.get(migration)) is not None:
            incoming.handle(event)

    def _remember_ended(self, migration: MigrationId) -> None:
        self._ended[migration] = None
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def _forget_old(self) -> None:
        over = [each for each, incoming in self._in.items() if incoming.is_over]
        for migration in over[: max(0, len(over) - _REMEMBERED)]:
            del self._in[migration]
            self._remember_ended(migration)
