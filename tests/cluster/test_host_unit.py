"""What is so about a host, from when it answered and what else is heard of it; its room."""

import asyncio

import pytest

from llx import __version__
from llx.agent.devices import Allocation, Device, DeviceKind, Inventory
from llx.agent.host_view import HostView
from llx.api import HostState
from llx.cluster.fleet.host_unit import HostUnit, HostWatch
from llx.errors import HostError, UnreachableError


def view(gpus: int = 0, version: str = __version__, **held: list[str]) -> HostView:
    kind = DeviceKind.GPU if gpus else DeviceKind.CPU
    devices = tuple(Device(f"g{i}", f"{i}: X", 80000, 60000) for i in range(gpus))
    return HostView(
        host="h", address="a", platform="cpu", inventory=Inventory(kind, devices),
        held={name: Allocation(kind, each) for name, each in held.items()}, processes={},
        cpu_count=4, memory_total_bytes=1, memory_free_bytes=1, disk_free_bytes=1,
        llx_version=version, vllm_version="",
    )  # fmt: skip


class Agent:
    """Answers what it was told."""

    host = "h"

    def __init__(self, *answers: HostView | Exception) -> None:
        self._answers = list(answers)

    async def observe(self) -> HostView:
        if not self._answers:
            await asyncio.sleep(3600)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def host(**values: object) -> HostUnit:
    return HostUnit("h", Agent(), 100.0, **values)


@pytest.mark.parametrize(
    ("answered_at", "now", "is_heard", "state"),
    [
        (None, 101, False, "starting"),
        (None, 159, False, "starting"),
        (None, 161, False, "lost"),
        (None, 101, True, "agent_away"),
        (100, 101, False, "ready"),
        (100, 104, True, "ready"),
        (100, 104.1, True, "agent_away"),
        (100, 104.1, False, "lost"),
        (100, 9999, True, "agent_away"),
    ],
)
def test_state(answered_at: float | None, now: float, is_heard: bool, state: str) -> None:
    found = host(answered_at=answered_at)
    found.judge(now, is_heard=is_heard)
    assert found.state is HostState(state)
    assert not found.judge(now, is_heard=is_heard), "nothing has changed"


def test_words() -> None:
    found = host(answered_at=100.0, problem="the line is cut")
    found.judge(112.0, is_heard=False)
    assert found.detail == "nothing heard for 12 s; the line is cut"
    found.judge(112.0, is_heard=True)
    assert found.detail == "its agent does not answer; the line is cut"
    found.judge(120.0, is_heard=False)
    assert found.detail == "nothing heard for 8 s; the line is cut"
    found.is_leaving, found.answered_at = True, 120.0
    found.judge(121.0, is_heard=False)
    assert (found.state, found.detail) == (HostState.DRAINING, "leaves the cluster")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (view(version="0.0.9"), f"it runs llx 0.0.9, the head llx {__version__}"),
        (HostError("no nvidia-smi", host="h", step="list GPUs"), "h: list GPUs: no nvidia-smi"),
    ],
)
async def test_an_agent_that_cannot_be_used(answer: HostView | Exception, problem: str) -> None:
    found = HostUnit("h", Agent(answer, view(), UnreachableError("gone")), 100.0)
    watch = HostWatch(found, lambda: True, lambda: None)
    await watch._ask()
    assert found.answered_at is not None
    found.judge(found.answered_at, is_heard=True)
    assert (found.state, found.detail) == (HostState.FAILED, problem)
    assert found.room(frozenset()).closed_because
    await watch._ask()
    found.judge(found.answered_at, is_heard=False)
    assert found.state is HostState.READY
    assert not found.room(frozenset()).closed_because
    await watch._ask()
    assert found.problem == "gone"


def test_room_counts_what_others_hold_and_use() -> None:
    room = host(view=view()).room(frozenset())
    assert (room.num_gpus, room.num_cores) == (None, 4)
    found = host(view=view(4, mine=["g0"], stray=["g1"]))
    assert found.room(frozenset({"mine"})).num_gpus == 1, "g1 is a stray's, g2 and g3 are busy"
    found.is_cordoned = True
    assert found.room(frozenset()).closed_because == "is cordoned"
