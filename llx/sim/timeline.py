"""The course of a run, out of what its scheduler was told and answered.

So it can be made of a run that is being simulated and of a recording of a live cluster alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from llx.core.model import InstanceId, InstanceLoad, Nanos, RequestId
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
from llx.core.scheduler.events import (
    Event,
    InstanceJoined,
    InstanceLeft,
    LoadReported,
    MoveEnded,
    MoveOutcome,
    RequestWithdrawn,
)

_FIRST_STEP: Final = Nanos(250_000_000)
_MOST_SAMPLES: Final = 800


@dataclass(frozen=True, slots=True)
class Sample:
    """The cluster at one time, as its scheduler knew it.

    Attributes:
        at_s: When, from the first event on.
        used: Share of its blocks that each instance holds, by its number in order of joining.
        num_running: On all instances.
        num_waiting: In the queues of instances.
        num_queued: In central queues.
        num_moved: Moves that have come about so far.
    """

    at_s: float
    used: tuple[tuple[int, float], ...]
    num_running: int
    num_waiting: int
    num_queued: int
    num_moved: int


@dataclass(slots=True)
class Timeline:
    """Samples at even steps of time, wider ones the longer it takes; at most some hundreds."""

    samples: list[Sample] = field(default_factory=list)
    instances: list[InstanceId] = field(default_factory=list)
    """In the order of their joining."""
    _present: dict[InstanceId, int] = field(default_factory=dict)
    _loads: dict[InstanceId, InstanceLoad] = field(default_factory=dict)
    _queued: set[RequestId] = field(default_factory=set)
    _num_moved: int = 0
    _begin: Nanos | None = None
    _due: int = 0
    _step: int = _FIRST_STEP

    def observe(self, event: Event, now: Nanos, commands: Sequence[Command]) -> None:
        """Take in what the scheduler was told, and answered."""
        if self._begin is None:
            self._begin, self._due = now, now
        while now >= self._due:
            self._sample(Nanos(self._due - self._begin))
        self._hear(event)
        for each in commands:
            self._follow(each)

    def _hear(self, event: Event) -> None:
        match event:
            case LoadReported(instance=instance, load=load):
                self._loads[instance] = load
            case InstanceJoined(instance=instance):
                self._present[instance] = len(self.instances)
                self.instances.append(instance)
            case InstanceLeft(instance=instance):
                self._present.pop(instance, None)
                self._loads.pop(instance, None)
            case RequestWithdrawn(request=request):
                self._queued.discard(request)
            case MoveEnded(outcome=MoveOutcome.MOVED):
                self._num_moved += 1
            case _:
                pass  # shows in what follows from it

    def _follow(self, command: Command) -> None:
        match command:
            case Hold(request=request):
                self._queued.add(request)
            case Dispatch(request=request) | Refuse(request=request):
                self._queued.discard(request)
            case Move() | AddInstances() | Terminate() | Emptied():
                pass  # counts when it has come about
            case _:
                assert_never(command)

    def _sample(self, at: Nanos) -> None:
        loads = [(number, self._loads.get(name)) for name, number in self._present.items()]
        known = [(number, load) for number, load in loads if load is not None]
        self.samples.append(
            Sample(
                at_s=at / 1e9,
                used=tuple((number, load.used / load.total) for number, load in known),
                num_running=sum(load.num_running for _, load in known),
                num_waiting=sum(load.num_waiting for _, load in known),
                num_queued=len(self._queued),
                num_moved=self._num_moved,
            )
        )
        self._due += self._step
        if len(self.samples) == _MOST_SAMPLES:
            del self.samples[1::2]
            self._step *= 2
            assert self._begin is not None, "there are samples"
            self._due = self._begin + round(self.samples[-1].at_s * 1e9) + self._step
