"""Other rules on what a cluster has just done: what they would have decided differently.

    recording ──► the rules in force, anew ──► decisions ─┐
              └─► the other rules ───────────► decisions ─┴► what differs

Both are told the same from the beginning of the recording; the other rules hold from the beginning
of the time that is looked at. That the rules in force are asked anew, instead of taking what was
recorded, makes it a fair comparison where the recording begins amid a term: what its beginning does
not tell, neither knows. How often they say again what was recorded says how far to trust it.

It is an open loop. Loads stay those that followed from what was done, so the other rules never see
what would have come of their own decisions. A move or instance that was not ordered in fact
does not come about, and may be asked for again at the next round.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel, ConfigDict

from llx.api import PolicyList
from llx.core.model import InstanceId, Nanos, PoolName, RequestId
from llx.core.scheduler.commands import (
    AddInstances,
    Command,
    Dispatch,
    Hold,
    Move,
    Refuse,
    Terminate,
)
from llx.core.scheduler.config import SECOND, PoolConfig
from llx.core.scheduler.events import (
    Event,
    MoveEnded,
    MoveId,
    MoveOutcome,
    PoolConfigured,
    RequestArrived,
    RequestWithdrawn,
    StartFailed,
)
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import ConfigError
from llx.recording import Entry, Recording, decided

_NUM_SHOWN: Final = 5
_WATCH_EVERY: Final = 1024

Way = tuple[PoolName, InstanceId, InstanceId]
"""Pool, source and target of a move."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decided(_Figures):
    """What was decided in that time.

    `dispatched`: requests that got an instance; `waited`: of those, in a central queue before, on
    average and at most so long. `waiting`: at the end. `moves`: orders by rule.
    """

    dispatched: int
    refused: int
    waiting: int
    waited: int
    waited_mean_s: float
    waited_max_s: float
    moves: dict[str, int]
    instances_added: int
    instances_ended: int


class Elsewhere(_Figures):
    """A request that the other rules would have sent elsewhere: where to, by which figure."""

    request: str
    ago_s: float
    in_force: str
    other: str


class PolicyComparison(_Figures):
    """The rules in force and other ones, on the same events.

    Attributes:
        over_s: How much time was looked at.
        is_all: There was less of it than was asked for.
        events: So many.
        repeated, repeatable: Of the dispatches that were made in fact and that the rules in force
            make again, how many go to the same instance.
        same, elsewhere: Requests that both would have dispatched.
        only_in_force, only_other: That one of them would have.
        recorded: What was decided in fact.
        in_force: By the rules in force, asked anew.
        other: By the other rules.
        examples: The first of `elsewhere`.
    """

    over_s: float
    is_all: bool
    events: int
    repeated: int
    repeatable: int
    same: int
    elsewhere: int
    only_in_force: int
    only_other: int
    recorded: Decided
    in_force: Decided
    other: Decided
    examples: tuple[Elsewhere, ...]


class PolicyForecast(PolicyList):
    """What ``llx policy set --dry-run`` says; `comparison`: None if there is nothing to compare."""

    comparison: PolicyComparison | None = None


def compare_rules(
    recording: Recording,
    policies: Policies,
    change: Callable[[PoolConfig], PoolConfig],
    over_s: float,
    concerns: Callable[[PoolName], bool] = lambda _: True,
    watch: Callable[[int], None] = lambda _: None,
) -> PolicyComparison:
    """What other rules would have decided over the last `over_s` of a recording.

    Args:
        recording: What was.
        policies: That configurations may name.
        change: The other rules of a pool.
        over_s: So long before its end.
        concerns: Only these pools are looked at.
        watch: Told now and then how many events are done.

    Raises:
        ConfigError: The recording cannot be read or is empty, or a policy is not known here.
    """
    first, last = recording.span()
    since = Nanos(max(first, last - round(over_s * SECOND)))
    real, in_force, other = _Ledger(), _Side(policies), _Side(policies)
    orders, count, is_other = _Orders(), 0, False
    for number, entry in enumerate(recording.entries()):
        if number % _WATCH_EVERY == 0:
            watch(number)
        if not _is_of(entry.event, concerns):
            continue
        orders.see(entry)
        is_counted = entry.at >= since and number >= recording.opening
        if is_counted and not is_other:
            other.switch(change, entry.at)
            is_other = True
        count += is_counted
        commands = [each for each in _commands_of(entry) if _is_of(each, concerns)]
        real.take(entry.event, entry.at, commands, is_counted=is_counted)
        in_force.tell(entry.event, entry, orders, is_counted=is_counted)
        event = entry.event
        if is_other and isinstance(event, PoolConfigured):
            event = PoolConfigured(change(event.config))
        other.tell(event, entry, orders, is_counted=is_counted)
    watch(count)
    return _compared(
        (Nanos(last - since), last - first < over_s * SECOND, count, last),
        real,
        in_force.ledger,
        other.ledger,
    )


@dataclass(slots=True)
class _Ledger:
    """What was decided, by whomever, in the time that counts."""

    dispatched: dict[RequestId, tuple[Nanos, Dispatch]] = field(default_factory=dict)
    came: dict[RequestId, Nanos] = field(default_factory=dict)
    """Those that no decision is known of, and those that wait: when they came."""
    held: set[RequestId] = field(default_factory=set)
    waits: list[Nanos] = field(default_factory=list)
    refused: int = 0
    moves: Counter[str] = field(default_factory=Counter)
    added: int = 0
    ended: int = 0

    def take(self, event: Event, now: Nanos, commands: list[Command], *, is_counted: bool) -> None:
        match event:
            case RequestArrived():
                self.came.setdefault(event.request, Nanos(now - event.waited))
                if event.held is not None:
                    self.held.add(event.request)
            case RequestWithdrawn():
                self._settle(event.request)
            case _:
                pass
        for command in commands:
            self._take(command, now, is_counted=is_counted)

    def _take(self, command: Command, now: Nanos, *, is_counted: bool) -> None:
        match command:
            case Dispatch(request=request) | Hold(request=request) | Refuse(request=request) if (
                request not in self.came
            ):
                pass  # of another pool
            case Dispatch(request=request):
                was_held, came = request in self.held, self._settle(request)
                if is_counted and request not in self.dispatched:
                    self.dispatched[request] = (now, command)
                    if was_held:
                        self.waits.append(Nanos(now - came))
            case Hold(request=request):
                self.held.add(request)
            case Refuse(request=request):
                self._settle(request)
                self.refused += is_counted
            case Move():
                self.moves[command.decision.rule] += is_counted
            case AddInstances():
                self.added += command.count if is_counted else 0
            case Terminate():
                self.ended += is_counted
            case _:
                pass

    def _settle(self, request: RequestId) -> Nanos:
        self.held.discard(request)
        return self.came.pop(request, Nanos(0))

    def summary(self) -> Decided:
        """As figures."""
        waits = self.waits
        return Decided(
            dispatched=len(self.dispatched),
            refused=self.refused,
            waiting=len(self.held),
            waited=len(waits),
            waited_mean_s=round(sum(waits) / len(waits) / SECOND, 3) if waits else 0.0,
            waited_max_s=round(max(waits, default=0) / SECOND, 3),
            moves={rule: count for rule, count in sorted(self.moves.items()) if count},
            instances_added=self.added,
            instances_ended=self.ended,
        )


class _Orders:
    """What was ordered in fact and is not over: the same order by other rules ends as it does."""

    def __init__(self) -> None:
        self._ways: dict[tuple[PoolName, MoveId], Way] = {}
        self._starting: Counter[PoolName] = Counter()
        self.over: tuple[Way, MoveOutcome] | None = None
        """The move that is over with this event."""

    def see(self, entry: Entry) -> None:
        """Another event, and what was ordered then."""
        self.over = None
        if isinstance(entry.event, MoveEnded):
            way = self._ways.pop((entry.event.pool, entry.event.move), None)
            self.over = None if way is None else (way, entry.event.outcome)
        for command in _commands_of(entry):
            match command:
                case Move():
                    way = command.pool, command.source, command.target
                    self._ways[command.pool, command.move] = way
                case AddInstances():
                    self._starting[command.pool] += command.count
                case _:
                    pass

    def is_under_way(self, way: Way) -> bool:
        """Whether a move like this was ordered and is not over."""
        return way in self._ways.values()

    def is_starting(self, pool: PoolName) -> bool:
        """Whether instances were asked for at any time."""
        return self._starting[pool] > 0


class _Side:
    """A scheduler of its own, told what happened."""

    def __init__(self, policies: Policies) -> None:
        self._scheduler = Scheduler(policies)
        self.ledger = _Ledger()
        self._open: dict[MoveId, Way] = {}

    def switch(self, change: Callable[[PoolConfig], PoolConfig], now: Nanos) -> None:
        """Go by other rules from now on."""
        for pool in list(self._scheduler.pools.values()):
            event = PoolConfigured(change(pool.config))
            self.ledger.take(event, now, self._scheduler.handle(event, now), is_counted=True)

    def tell(self, event: Event, entry: Entry, orders: _Orders, *, is_counted: bool) -> None:
        pending: list[Event]
        match event:
            case MoveEnded():  # of the recorded scheduler's number
                pending = self._over(orders)
            case StartFailed():
                pool = self._scheduler.pools.get(event.pool)
                pending = [event] if pool is not None and pool.scaling.starting else []
            case _:
                pending = [event]
        while pending:
            each = pending.pop(0)
            commands = self._scheduler.handle(each, entry.at)
            self.ledger.take(each, entry.at, commands, is_counted=is_counted)
            pending += [one for command in commands for one in self._outcome(command, orders)]

    def _over(self, orders: _Orders) -> list[Event]:
        if orders.over is None:
            return []
        way, outcome = orders.over
        move = next((move for move, each in self._open.items() if each == way), None)
        if move is None:
            return []
        del self._open[move]
        return [MoveEnded(way[0], move, outcome)]

    def _outcome(self, command: Command, orders: _Orders) -> list[Event]:
        match command:
            case Move():
                way = command.pool, command.source, command.target
                if orders.is_under_way(way):
                    self._open[command.move] = way
                    return []
                return [MoveEnded(command.pool, command.move, MoveOutcome.NONE)]
            case AddInstances() if not orders.is_starting(command.pool):
                return [StartFailed(command.pool, command.count)]
            case _:
                return []


def _commands_of(entry: Entry) -> list[Command]:
    try:
        return decided(entry.commands)
    except ConfigError as error:
        raise ConfigError(f"line {entry.line} of the recording: {error.message}") from None


def _is_of(event: Event | Command, concerns: Callable[[PoolName], bool]) -> bool:
    """Whether it is about a pool that is looked at, or says of none."""
    if isinstance(event, PoolConfigured):
        return concerns(event.config.name)
    pool: PoolName | None = getattr(event, "pool", None)
    return pool is None or concerns(pool)


def _compared(
    of: tuple[Nanos, bool, int, Nanos], real: _Ledger, in_force: _Ledger, other: _Ledger
) -> PolicyComparison:
    over, is_all, count, last = of
    here, there = in_force.dispatched, other.dispatched
    both = [each for each in here if each in there]
    elsewhere = [each for each in both if _instance(here, each) != _instance(there, each)]
    again = [each for each in here if each in real.dispatched]
    return PolicyComparison(
        over_s=round(over / SECOND, 3),
        is_all=is_all,
        events=count,
        repeated=sum(_instance(here, each) == _instance(real.dispatched, each) for each in again),
        repeatable=len(again),
        same=len(both) - len(elsewhere),
        elsewhere=len(elsewhere),
        only_in_force=len(here) - len(both),
        only_other=len(there) - len(both),
        recorded=real.summary(),
        in_force=in_force.summary(),
        other=other.summary(),
        examples=tuple(
            Elsewhere(
                request=each,
                ago_s=round((last - here[each][0]) / SECOND, 3),
                in_force=_said(here[each][1]),
                other=_said(there[each][1]),
            )
            for each in elsewhere[:_NUM_SHOWN]
        ),
    )


def _instance(dispatched: dict[RequestId, tuple[Nanos, Dispatch]], request: RequestId) -> str:
    return dispatched[request][1].instance


def _said(dispatch: Dispatch) -> str:
    decision = dispatch.decision
    figure = "" if decision.chosen is None else f", {decision.unit} {decision.chosen.figure:.4g}"
    return f"{dispatch.instance} by {decision.rule}{figure}"
