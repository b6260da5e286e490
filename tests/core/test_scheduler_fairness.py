"""Nobody waits for ever, and nobody waits for what will not come."""

from collections.abc import Iterator

import pytest

from llx.core.model import (
    Blocks,
    ClassLoad,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
)
from llx.core.scheduler.commands import Command, Dispatch, Hold, Move, Refuse
from llx.core.scheduler.config import SECOND, PoolConfig, PriorityClass, Rescheduling
from llx.core.scheduler.events import (
    Event,
    InstanceChanged,
    InstanceJoined,
    InstanceState,
    LoadReported,
    MoveEnded,
    MoveOutcome,
    PoolConfigured,
    RequestArrived,
    Ticked,
)
from llx.core.scheduler.scheduler import Scheduler

POOL = PoolName("m")
URGENT, NORMAL = ClassName("urgent"), ClassName("normal")
A, B, C = (InstanceId(name) for name in "abc")
STEP = SECOND // 50
BLOCK = 16


class Rig:
    """A scheduler, and instances whose requests all last two seconds."""

    def __init__(self, sizes: dict[InstanceId, int], config: PoolConfig) -> None:
        self.now = 0
        self.served: dict[str, tuple[InstanceId, int]] = {}
        self.refused: set[str] = set()
        self.nominee: dict[str, str] = {}
        self._scheduler = Scheduler()
        self._sizes = sizes
        self._running: dict[InstanceId, dict[str, tuple[int, int, int]]] = {n: {} for n in sizes}
        self._asked: dict[str, tuple[int, int]] = {}
        self.tell(PoolConfigured(config))
        for name in sizes:
            self.tell(InstanceJoined(POOL, name))
            self.report(name)

    def tell(self, event: Event) -> None:
        for command in self._scheduler.handle(event, Nanos(self.now)):
            self._obey(command)

    def ask(self, name: str, blocks: int, cls: ClassName = NORMAL) -> None:
        self._asked[name] = (blocks, 0 if cls == URGENT else 10)
        tokens = Tokens(blocks * BLOCK - 1)
        self.tell(RequestArrived(POOL, RequestId(name), cls, tokens))

    def hold(self, name: str, blocks: int, priority: int, instance: InstanceId, for_s: int) -> None:
        """Something that runs there already."""
        self._running[instance][name] = (blocks, self.now + for_s * SECOND, priority)
        self.report(instance)

    def report(self, name: InstanceId, covers: tuple[RequestId, ...] = ()) -> None:
        running, classes = self._running[name].values(), dict[int, ClassLoad]()
        for priority in {each[2] for each in running}:
            classes[priority] = ClassLoad(sum(each[2] == priority for each in running))
        used = sum(each[0] for each in running)
        size = self._sizes[name]
        load = InstanceLoad(
            Blocks(size), Blocks(size - used), Tokens(BLOCK), len(running), classes=classes
        )
        self.tell(LoadReported(name, load, covers))

    def go_on(self, until_s: float) -> Iterator[int]:
        """Step by step; gives the number of the step."""
        number = 0
        while self.now < until_s * SECOND:
            self.now += STEP
            number += 1
            for name, running in self._running.items():
                ended = [each for each, (_, ends, _) in running.items() if ends <= self.now]
                for each in ended:
                    del running[each]
                if ended:
                    self.report(name)
            if number % 10 == 0:
                self.tell(Ticked())
            yield number

    def _obey(self, command: Command) -> None:
        match command:
            case Dispatch(request=request, instance=instance):
                blocks, priority = self._asked[request]
                self.served[request] = instance, self.now
                self._running[instance][request] = blocks, self.now + 2 * SECOND, priority
                self.report(instance, (request,))
            case Hold(request=request, decision=decision):
                chosen = decision.chosen if decision else None
                self.nominee[request] = chosen.instance if chosen else ""
            case Move(pool=pool, move=move):  # nobody here can
                self.tell(MoveEnded(pool, move, MoveOutcome.NONE))
            case Refuse(request=request):
                self.refused.add(request)


def config(headroom: int = 0, **more: object) -> PoolConfig:
    classes = (PriorityClass(URGENT, 0, Blocks(headroom)), PriorityClass(NORMAL, 10))
    return PoolConfig(POOL, classes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("headroom", [0, 20])
def test_an_aged_request_is_served_though_urgent_work_never_ends(headroom: int) -> None:
    rig = Rig({A: 200}, config(headroom))
    for number in rig.go_on(40):
        if number % 4 == 0:  # more than fits
            rig.ask(f"u{number}", 10, URGENT)
        if number == 250:
            rig.ask("n", 10)
    assert "n" in rig.served
    assert 30 * SECOND <= rig.served["n"][1] - 250 * STEP <= 33 * SECOND


@pytest.mark.parametrize("steps", [(), ("preempt", "make_room")])
def test_an_urgent_request_waits_where_room_comes(steps: tuple[str, ...]) -> None:
    """Not where one large, less urgent request would have to leave that never does."""
    rig = Rig({A: 100, B: 100}, config(rescheduling=Rescheduling(steps=steps)))
    rig.hold("large", 98, 10, A, for_s=1000)
    for number in range(4):
        rig.hold(f"u{number}", 14, 0, B, for_s=8 + 4 * number)
    rig.ask("urgent", 70, URGENT)
    for number in rig.go_on(60):
        if number % 5 == 0:
            rig.ask(f"n{number}", 19)
    assert rig.served["urgent"][0] == B
    assert rig.served["urgent"][1] <= 24 * SECOND


def test_nobody_waits_behind_one_that_no_instance_here_can_take() -> None:
    rig = Rig({A: 1000, B: 100, C: 100}, config())
    rig.tell(InstanceChanged(A, InstanceState.LOST))
    rig.ask("large", 188)
    for number in rig.go_on(90):
        if number % 50 == 0:
            rig.ask(f"s{number}", 10)
    late = [at for name, (_, at) in rig.served.items() if name != "large"]
    assert len(late) >= 85
    assert max(late) > 85 * SECOND
    rig.tell(InstanceChanged(A, InstanceState.UP))
    rig.report(A)
    assert rig.served["large"][0] == A
