"""The core's scheduler in real time: events in, commands out, and nobody is waited for.

    gateways    Place, Withdraw ──►┐                      ┌──► Placed, Held, NotPlaced   gateways
    instances   reports ──────────►│ LiveScheduler.tell() │
    driver      members, settings ►┘  └─ core.Scheduler ──┘
    a timer     every `ROUND_S`

Everything happens on one event loop. What is said to a gateway is put on its line and forgotten: if
it is lost the gateway asks again, and if the gateway is gone its requests are.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

from llx.api import QueueStatus
from llx.cluster.metrics.tally import SchedulerTally
from llx.cluster.moves.move_log import Move as Ordered
from llx.cluster.scheduling.decisions import Decisions, words_of
from llx.cluster.scheduling.members import Members, Present
from llx.cluster.scheduling.opening import opening_events
from llx.cluster.scheduling.prefix_book import PrefixBook
from llx.cluster.scheduling.queue_view import Waiting, queue_statuses, waiting_requests
from llx.cluster.scheduling.recordings import Recordings
from llx.core.model import (
    Blocks,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Term,
    Tokens,
)
from llx.core.scheduler.commands import (
    AddInstances,
    Command,
    Dispatch,
    Emptied,
    Hold,
    Move,
    Refuse,
    Terminate,
)
from llx.core.scheduler.config import SECOND, PoolConfig
from llx.core.scheduler.dispatch import ByRequest
from llx.core.scheduler.events import (
    Event,
    InstanceLeft,
    LoadReported,
    MoveEnded,
    Paused,
    PoolConfigured,
    PoolGone,
    RequestArrived,
    RequestWithdrawn,
    Resumed,
    Stepped,
    Ticked,
)
from llx.core.scheduler.events import InstanceState as WantedState
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import NotFoundError
from llx.log import get_log
from llx.wire import Held, Load, NotPlaced, Place, Placed, PlacementAnswer, Prefixes

log = get_log(__name__)

ROUND_S: Final = 0.2
"""Between two rounds; the same as the simulator's."""

GatewayKey = bytes
"""Which gateway process: its identity on the line."""
Answer = Callable[[GatewayKey, PlacementAnswer], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is to hear of a request, and what the answer has to quote."""

    gateway: GatewayKey
    pool: PoolName
    ask: int
    name: str
    priority_class: ClassName
    since: Nanos
    """When it came to its gateway, by this clock."""
    was_held: bool


class MoveOrders(Protocol):
    """Carries moves out."""

    def order(self, move: Move) -> MoveEnded | None:
        """Order a move; if that is not possible, how it has ended at once."""

    def ended(self, move: Ordered) -> MoveEnded | None:
        """A move is over, by whomever ordered: one of these, or None."""

    def why(self, move: Ordered) -> str:
        """Why a move was ordered that is not over."""


class ScalingOrders(Protocol):
    """Starts and ends instances."""

    def grow(self, order: AddInstances) -> None:
        """Start so many more, soon; one that does not come is told as `StartFailed`."""

    def shrink(self, order: Terminate) -> None:
        """Begin to empty an instance, and end it then."""


class LiveScheduler:
    """Drives the core.

    Args:
        term: On all answers.
        answer: Sends to a gateway; must not block.
        moves: Orders moves; must not block.
        policies: What configurations can name.
        recordings: Writes down what the core is told and answers; None: nobody does.
    """

    def __init__(
        self,
        term: Term,
        answer: Answer,
        moves: MoveOrders,
        policies: Policies,
        recordings: Recordings | None = None,
    ) -> None:
        self._term = term
        self._answer = answer
        self._moves = moves
        self._recordings = recordings
        self._policies = policies
        self._scheduler = Scheduler(policies)
        self._prefixes = PrefixBook()
        self._members = Members()
        self._configs: dict[PoolName, PoolConfig] = {}
        self._wanted: set[PoolName] = set()
        self._scaling: ScalingOrders | None = None
        self._asked: dict[RequestId, _Asked] = {}
        """Those that wait."""
        self._paused: set[PoolName] = set()
        self.decisions = Decisions()
        self.tally = SchedulerTally()
        self._events: deque[Event] = deque()
        """Being told, and to be told next."""
        self._is_open = False
        self._failure: Exception | None = None

    # ------------------------------------------------------------------ the driver's side

    def open(self) -> None:
        """Answer gateways from now on: all instances are known that there are."""
        self._is_open = True

    async def run(self) -> None:
        """A round now and then, until cancelled.

        Raises:
            Exception: The core has failed. A new head begins with a new one; gateways go on alone.
        """
        try:
            while True:
                await asyncio.sleep(ROUND_S)
                if self._failure is not None:
                    raise self._failure
                self.tell(Ticked())
                self.decisions.log_all()
                self._write_recordings()
        finally:
            self.decisions.log_all()
            if self._recordings is not None:
                self._recordings.close()
                self._recordings = None

    def _write_recordings(self) -> None:
        if self._recordings is None:
            return
        self._recordings.flush()
        now = Nanos(time.monotonic_ns())
        if self._recordings.is_part_over(now):
            self._recordings.begin_part(opening_events(self._scheduler.pools.values(), now), now)

    def recording(self, last_s: float | None) -> Iterator[bytes]:
        """What was told and answered lately, or (None) in this term, in pieces; see `Recordings`.

        Raises:
            NotFoundError: Nothing is recorded.
            OSError: The disk refuses.
        """
        if self._recordings is None:
            raise NotFoundError("the scheduler is not recorded: its head's log tells why")
        if last_s is None:
            return self._recordings.of_term()
        return self._recordings.recent(last_s, Nanos(time.monotonic_ns()))

    def configure(self, configs: Iterable[PoolConfig]) -> None:
        """Schedule these pools, by these rules; what is scheduled so already is left alone."""
        wanted = list(configs)
        self._wanted = {config.name for config in wanted}
        for config in wanted:
            if self._configs.get(config.name) != config:
                self.tell(PoolConfigured(config))
                self._configs[config.name] = config
                log.info("scheduler.configured", pool=config.name, dispatch=config.dispatch)
        self._prefixes.keep(self._looked_into())

    def _looked_into(self) -> list[PoolName]:
        return [name for name in self._configs if self._looks_at_requests(name)]

    @property
    def by_prefix(self) -> frozenset[PoolName]:
        """Pools for which it matters what is in instances' prefix caches."""
        return self._prefixes.pools

    def _looks_at_requests(self, pool: PoolName) -> bool:
        return isinstance(self._policies.dispatch[self._configs[pool].dispatch], ByRequest)

    def pause(self, paused: Iterable[PoolName]) -> None:
        """Nothing of these pools is moved by rule; of all others it is."""
        wanted = set(paused)
        for pool in self._configs:
            if (pool in wanted) is not (pool in self._paused):
                self.tell(Paused(pool) if pool in wanted else Resumed(pool))
        self._paused = wanted

    def step(self, pool: PoolName) -> None:
        """One round of moves by rule, also of a paused pool."""
        self.tell(Stepped(pool))

    def queues(self, name: PoolName) -> list[QueueStatus]:
        """A pool's queues, the most urgent class first."""
        pool = self._scheduler.pools.get(name)
        return [] if pool is None else queue_statuses(pool, Nanos(time.monotonic_ns()))

    def waiting(self) -> list[Waiting]:
        """All that wait in the central queues; by pool and class, the next to be served first."""
        now = Nanos(time.monotonic_ns())
        pools = self._scheduler.pools.values()
        found = [each for pool in pools for each in waiting_requests(pool, now)]
        return [replace(each, name=self._asked[each.request].name) for each in found]

    def follow(self, present: Iterable[Present]) -> None:
        """These instances are there. Pools that are not configured any more go with their last."""
        for event in self._members.follow(present):
            if isinstance(event, InstanceLeft):
                self._prefixes.forget(event.instance)
            self.tell(event)
        for pool in [each for each in self._configs if each not in self._wanted]:
            if not self._scheduler.pools[pool].instances:
                self._drop(pool)

    def _drop(self, pool: PoolName) -> None:
        del self._configs[pool]
        self._paused.discard(pool)
        self._prefixes.keep(self._looked_into())
        self.tell(PoolGone(pool))
        log.info("scheduler.dropped", pool=pool)

    # ------------------------------------------------------------------ scaling

    def tell_scaling(self, orders: ScalingOrders) -> None:
        """Who carries out what scaling rules want."""
        self._scaling = orders

    def starting(self, name: PoolName) -> int:
        """Instances that the rules have asked for and that have not joined."""
        pool = self._scheduler.pools.get(name)
        return 0 if pool is None else pool.scaling.starting

    def in_use(self, name: PoolName) -> frozenset[InstanceId]:
        """Instances that have joined and are to take requests, those that are lost too."""
        pool = self._scheduler.pools.get(name)
        instances = () if pool is None else pool.instances.values()
        return frozenset(each.name for each in instances if each.wanted is WantedState.UP)

    def is_short(self, name: PoolName) -> bool:
        """Whether a pool has fewer instances than its minimum, or is less free than its band."""
        pool = self._scheduler.pools.get(name)
        if pool is None:
            return False
        least = pool.config.scaling.min_instances
        return pool.scaling.low_since is not None or len(self.in_use(name)) < least

    # ------------------------------------------------------------------ instances

    def on_up(self, instance: InstanceId) -> None:
        """`LoadEvents`: its session stands."""
        for event in self._members.find(instance):
            self.tell(event)

    def on_report(self, instance: InstanceId, load: InstanceLoad, report: Load) -> None:
        """`LoadEvents`: it has reported."""
        head = report.queue_head
        covers = tuple(report.covers)
        self.tell(LoadReported(instance, load, covers, None if head is None else Blocks(head)))

    def on_prefixes(self, pool: PoolName, instance: InstanceId, report: Prefixes) -> None:
        """`LoadEvents`: it has said what is in its prefix cache."""
        self._prefixes.hear(pool, instance, report)

    def on_down(self, instance: InstanceId) -> None:
        """`LoadEvents`: nothing is heard of it."""
        self._prefixes.forget(instance)
        for event in self._members.lose(instance):
            self.tell(event)

    def on_move_over(self, move: Ordered) -> None:
        """A move is over, by whomever ordered."""
        if move.request:
            why = f"{move.outcome} from {move.source}, {self._moves.why(move)}"
            self.decisions.note(move.request, "move", move.target, why)
        self._later(self._moves.ended(move))

    # ------------------------------------------------------------------ gateways

    def place(self, gateway: GatewayKey, ask: Place) -> None:
        """A gateway wants an instance for a request."""
        if not self._is_open:
            return  # it does without, or asks again
        hits = self._prefixes.hits(ask)
        self.decisions.meet(ask)
        since = Nanos(time.monotonic_ns() - max(0, ask.waited))
        self._asked[ask.request] = _Asked(
            gateway, ask.pool, ask.ask, ask.name, ask.priority_class, since, ask.held is not None
        )
        self.tell(
            RequestArrived(
                ask.pool,
                ask.request,
                ask.priority_class,
                Tokens(max(0, ask.num_tokens)),
                Nanos(max(0, ask.waited)),
                hits,
                None if ask.held is None else Nanos(max(0, ask.held)),
                None if ask.patience is None else Nanos(max(0, ask.patience)),
            )
        )

    def withdraw(self, gateway: GatewayKey, request: RequestId) -> None:
        """A gateway wants none for it any longer, or could not use what it got."""
        asked = self._asked.get(request)
        if asked is not None and asked.gateway == gateway:
            del self._asked[request]
            self.tell(RequestWithdrawn(asked.pool, request))
        elif asked is None:
            for pool in self._configs:
                self.tell(RequestWithdrawn(pool, request))

    def forget(self, gateway: GatewayKey) -> None:
        """A gateway is gone, and what waited there."""
        gone = [each for each, asked in self._asked.items() if asked.gateway == gateway]
        for request in gone:
            self.withdraw(gateway, request)

    # ------------------------------------------------------------------ the core

    def tell(self, event: Event) -> None:
        """Have the core handle an event, and do what it wants."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # what is being done leads to this: it comes after that
        while self._events:
            try:
                self._handle(self._events[0])
            except Exception as error:  # whoever tells may live on without; `run` does not
                self._failure = error
                raise
            finally:
                self._events.popleft()

    def _handle(self, event: Event) -> None:
        now = Nanos(time.monotonic_ns())
        commands = self._scheduler.handle(event, now)
        if isinstance(event, RequestArrived):
            self.tally.arrived(event.pool, time.monotonic_ns() - now)
        if self._recordings is not None:
            self._recordings.record(event, now, commands)
        for command in commands:
            self.tally.count(command, self._asked, now)
            self._obey(command)

    def _later(self, event: Event | None) -> None:
        if event is not None:
            self.tell(event)

    def _obey(self, command: Command) -> None:
        self._note(command)
        match command:
            case Dispatch(request=request, instance=instance):
                asked = self._asked.pop(request)
                placed = Placed(self._term, request, asked.ask, instance)
                self._answer(asked.gateway, placed)
            case Hold(request=request, num_waiting=num_waiting):
                asked = self._asked[request]
                self._answer(asked.gateway, Held(self._term, request, asked.ask, num_waiting))
            case Refuse(request=request, reason=reason, retry_after=after):
                asked = self._asked.pop(request)
                after_s = 0.0 if after is None else after / SECOND
                refusal = NotPlaced(self._term, request, asked.ask, reason.value, after_s)
                self._answer(asked.gateway, refusal)
            case Move():
                self._later(self._moves.order(command))
            case AddInstances():
                if self._scaling is not None:
                    self._scaling.grow(command)
            case Terminate():
                if self._scaling is not None:
                    self._scaling.shrink(command)
            case Emptied():
                pass  # whoever empties it waits for more: that every gateway knows of it
            case _:
                assert_never(command)

    def _note(self, command: Command) -> None:
        """Remember why, for `llx explain`."""
        if isinstance(command, Dispatch | Hold | Refuse):
            self.decisions.note(command.request, *words_of(command))
