"""The core's scheduler in real time: events in, commands out, and nobody is waited for.

    gateways    Place, Withdraw ──►┐                      ┌──► Placed, Held, NotPlaced   gateways
    instances   load reports ─────►│ LiveScheduler.tell() │
    driver      members, settings ►┘  └─ core.Scheduler ──┘
    a timer     every `ROUND_S`

Everything happens on one event loop. What is said to a gateway is put on its line and forgotten: if
it is lost the gateway asks again, and if the gateway is gone its requests are.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, assert_never

from llx.cluster.scheduling.members import Members, Present
from llx.core.model import (
    Blocks,
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
from llx.core.scheduler.events import (
    Event,
    LoadReported,
    PoolConfigured,
    RequestArrived,
    RequestWithdrawn,
    Ticked,
)
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.log import get_log
from llx.wire import Held, Load, NotPlaced, Place, Placed, PlacementAnswer

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


class LiveScheduler:
    """Drives the core.

    Args:
        term: On all answers.
        answer: Sends to a gateway; must not block.
        policies: What configurations can name.
    """

    def __init__(self, term: Term, answer: Answer, policies: Policies) -> None:
        self._term = term
        self._answer = answer
        self._scheduler = Scheduler(policies)
        self._members = Members()
        self._configs: dict[PoolName, PoolConfig] = {}
        self._asked: dict[RequestId, _Asked] = {}
        """Those that wait."""
        self._is_open = False

    # ------------------------------------------------------------------ the driver's side

    def open(self) -> None:
        """Answer gateways from now on: all instances are known that there are."""
        self._is_open = True

    async def run(self) -> None:
        """A round now and then, until cancelled."""
        while True:
            await asyncio.sleep(ROUND_S)
            self.tell(Ticked())

    def configure(self, configs: Iterable[PoolConfig]) -> None:
        """Schedule pools by these rules; those that are scheduled so already are left alone."""
        for config in configs:
            if self._configs.get(config.name) != config:
                self.tell(PoolConfigured(config))
                self._configs[config.name] = config
                log.info("scheduler.configured", pool=config.name, dispatch=config.dispatch)

    def follow(self, present: Iterable[Present]) -> None:
        """These instances are there."""
        for event in self._members.follow(present):
            self.tell(event)

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

    def on_down(self, instance: InstanceId) -> None:
        """`LoadEvents`: nothing is heard of it."""
        for event in self._members.lose(instance):
            self.tell(event)

    # ------------------------------------------------------------------ gateways

    def place(self, gateway: GatewayKey, ask: Place) -> None:
        """A gateway wants an instance for a request."""
        if not self._is_open:
            return  # it does without, or asks again
        self._asked[ask.request] = _Asked(gateway, ask.pool, ask.ask)
        self.tell(
            RequestArrived(
                ask.pool,
                ask.request,
                ask.priority_class,
                Tokens(max(0, ask.num_tokens)),
                Nanos(max(0, ask.waited)),
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
        for command in self._scheduler.handle(event, Nanos(time.monotonic_ns())):
            self._obey(command)

    def _obey(self, command: Command) -> None:
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
            case Move() | AddInstances() | Terminate() | Emptied():
                pass
            case _:
                assert_never(command)
