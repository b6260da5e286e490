"""A recording through the scheduler: the same commands, or what other rules would have said."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict

from llx.core.model import Nanos
from llx.core.scheduler.commands import AddInstances, Command, Move
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.events import (
    Event,
    MoveEnded,
    MoveOutcome,
    PoolConfigured,
    StartFailed,
)
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import ConfigError
from llx.recording import Entry, Recording, command_bytes
from llx.sim.cluster import Observer

_NUM_SHOWN: Final = 10
_WATCH_EVERY: Final = 1024


class Difference(BaseModel):
    """The first event whose commands are not those of the recording; commands as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: int
    at_s: float
    event: str
    expected: str
    got: str


class Replayed(BaseModel):
    """What came of a replay.

    `stopped`: why the recording ends before its scheduler did; None if it does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    llx_version: str
    duration_s: float
    events: int
    commands: dict[str, int]
    stopped: str | None
    difference: Difference | None


class Choice(BaseModel):
    """A request that the other rules would have sent elsewhere, and by what figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: str
    at_s: float
    recorded: str
    other: str


class Compared(BaseModel):
    """Dispatches as they were and as other rules would have had them, on the same events.

    `same`, `elsewhere`: requests that both dispatched; `only_recorded`, `only_other`: that one did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    requests: int
    same: int
    elsewhere: int
    only_recorded: int
    only_other: int
    recorded_commands: dict[str, int]
    other_commands: dict[str, int]
    first: tuple[Choice, ...]


def replay(
    recording: Recording,
    policies: Policies,
    watch: Callable[[int], None],
    observe: Observer | None = None,
) -> Replayed:
    """Feed the events to a scheduler and compare every command, byte for byte.

    Args:
        recording: What was.
        policies: That its configurations may name.
        watch: Told now and then how many events are done.
        observe: Told every event, when it was, and what the scheduler answers.

    Raises:
        ConfigError: The recording cannot be read, names an unknown policy, or begins amid a term.
    """
    if recording.opening:
        raise ConfigError(
            f"{recording.path} begins amid its scheduler's life, of which it does not tell all",
            remedy="give --policy or --config to compare rules on it, or take a term-*.jsonl",
        )
    scheduler, count, at = Scheduler(policies), 0, 0
    begin: int | None = None
    commands: Counter[str] = Counter()
    difference = None
    for entry in _watched(recording, watch):
        at, begin = entry.at, entry.at if begin is None else begin
        answer = _handle(scheduler, entry, entry.event, recording)
        got = command_bytes(answer)
        if got != entry.commands:
            difference = _difference(entry, got)
            break
        if observe is not None:
            observe(entry.event, entry.at, answer)
        count += 1
        commands.update(type(each).__name__ for each in answer)
    return Replayed(
        origin=recording.origin,
        llx_version=recording.llx_version,
        duration_s=(at - (begin or 0)) / 1e9,
        events=count,
        commands=dict(sorted(commands.items())),
        stopped=recording.stopped,
        difference=difference,
    )


def compare(
    recording: Recording,
    policies: Policies,
    change: Callable[[PoolConfig], PoolConfig],
    watch: Callable[[int], None],
) -> Compared:
    """What other rules would have decided, told the same.

    The events are those of the recorded rules: loads are what followed from their dispatches, and a
    move or an instance that only the other rules want does not come about. So the further into a
    recording, the less its loads are those that the other rules would have met.

    Args:
        recording: What was.
        policies: That configurations may name.
        change: The other rules of a pool.
        watch: Told now and then how many events are done.

    Raises:
        ConfigError: The recording cannot be read, or a configuration names an unknown policy.
    """
    scheduler, was, other = Scheduler(policies), _Dispatches(), _Dispatches()
    for entry in _watched(recording, watch):
        was.take(entry.at, msgspec.json.decode(entry.commands))
        if isinstance(entry.event, MoveEnded | StartFailed):
            continue  # about what the recorded rules wanted
        event = entry.event
        if isinstance(event, PoolConfigured):
            event = PoolConfigured(change(event.config))
        pending: list[Event] = [event]
        while pending:
            answer = _handle(scheduler, entry, pending.pop(0), recording)
            other.take(entry.at, msgspec.json.decode(command_bytes(answer)))
            pending += filter(None, map(_did_not_happen, answer))
    return _compared(recording.origin, was, other)


@dataclass(slots=True)
class _Dispatches:
    """Where each request was sent first, when, and why; and how many commands there were."""

    where: dict[str, tuple[Nanos, dict[str, Any]]] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)

    def take(self, at: Nanos, commands: list[tuple[str, dict[str, Any]]]) -> None:
        for name, content in commands:
            self.commands[name] += 1
            if name == "Dispatch":
                self.where.setdefault(content["request"], (at, content))


def _watched(recording: Recording, watch: Callable[[int], None]) -> Iterator[Entry]:
    for count, entry in enumerate(recording.entries()):
        if count % _WATCH_EVERY == 0:
            watch(count)
        yield entry


def _handle(
    scheduler: Scheduler, entry: Entry, event: Event, recording: Recording
) -> list[Command]:
    try:
        return scheduler.handle(event, entry.at)
    except ConfigError as error:
        where = f"{recording.path}:{entry.line}"
        raise ConfigError(f"{where}: {error.message}", remedy=error.remedy) from None


def _difference(entry: Entry, got: bytes) -> Difference:
    return Difference(
        line=entry.line,
        at_s=entry.at / 1e9,
        event=type(entry.event).__name__,
        expected=entry.commands.decode(),
        got=got.decode(),
    )


def _did_not_happen(command: Command) -> Event | None:
    match command:
        case Move():
            return MoveEnded(command.pool, command.move, MoveOutcome.NONE)
        case AddInstances():
            return StartFailed(command.pool, command.count)
        case _:
            return None


def _compared(origin: str, was: _Dispatches, other: _Dispatches) -> Compared:
    both = [each for each in was.where if each in other.where]
    elsewhere = [
        each for each in both if was.where[each][1]["instance"] != other.where[each][1]["instance"]
    ]
    first = tuple(
        Choice(
            request=each,
            at_s=was.where[each][0] / 1e9,
            recorded=_said(was.where[each][1]),
            other=_said(other.where[each][1]),
        )
        for each in elsewhere[:_NUM_SHOWN]
    )
    return Compared(
        origin=origin,
        requests=len(was.where.keys() | other.where.keys()),
        same=len(both) - len(elsewhere),
        elsewhere=len(elsewhere),
        only_recorded=len(was.where) - len(both),
        only_other=len(other.where) - len(both),
        recorded_commands=dict(sorted(was.commands.items())),
        other_commands=dict(sorted(other.commands.items())),
        first=first,
    )


def _said(dispatch: dict[str, Any]) -> str:
    """``instance, rule: unit figure``; JSON has no infinite figures."""
    decision = dispatch["decision"]
    chosen = decision["chosen"]
    figure = "" if chosen is None else f": {decision['unit']} {chosen['figure']:.4g}"
    return f"{dispatch['instance']}, {decision['rule']}{figure}"
