"""The port of an agent on another host, over a fake actor: deadlines, silence, death, tickets."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from llx.agent.actor import Desk
from llx.agent.devices import DeviceKind, Inventory
from llx.agent.host_view import HostView
from llx.agent.log_file import LogPart
from llx.agent.processes import ProcessState, ShimRecord
from llx.cluster.ray import agent as ray_agent
from llx.cluster.ray.agent import Problem, RayAgent
from llx.core.model import Term
from llx.errors import ConflictError, NotFoundError, UnreachableError
from llx.specs import EngineKind, InstanceSpec

INSTANCE = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {}, 1, "", "", "")
RECORD = ShimRecord(1, 2, 3, 4, ProcessState.EXITED, 5.0, "mark", exit_code=0)


class Gone(Exception):
    """The fake actor's word for: it has died."""


class FakeNode:
    """A node agent that does what it is told at once."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.has_process = True

    @property
    def place(self) -> "FakeNode":
        return self

    host = "h1"

    def view(self) -> HostView:
        inventory = Inventory(DeviceKind.CPU, [])
        return HostView("h1", "10.0.0.1", "cpu", inventory, {}, {}, 2, 4, 3, 2, "0", "0")

    def start_instance(self, spec: InstanceSpec, needs: object, cores_each: object) -> list[str]:
        if spec.name in self.done:
            raise ConflictError("it runs already", remedy="stop it")
        self.done.append(spec.name)
        return ["cpu:0"]

    def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        self.done.append(f"stop {name}")
        return RECORD if self.has_process else None

    def read_log(self, name: str, offset: object, limit: int, tail: int) -> LogPart:
        raise NotFoundError(f"{name}: no such log")


class FakeActor:
    """Answers, unless it is told to be silent; then what was asked waits until it speaks again."""

    def __init__(self, directory: Path) -> None:
        self.node = FakeNode()
        self.directory = directory
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.waiting: list[tuple[bytes, Future[bytes]]] = []
        self.is_silent = False
        self.error: Exception | None = None
        self.num_asked = 0
        self.num_dropped = 0
        self.killed: list[bool] = []
        self.restart()

    def restart(self) -> None:
        self.desk = Desk(self.node, self.directory, "1d")

    def submit(self, request: bytes, group: str) -> "Future[bytes]":
        self.num_asked += 1
        if self.error is not None:
            raise self.error
        if not self.is_silent:
            return self.pool.submit(self.desk.call, request)
        future: Future[bytes] = Future()
        self.waiting.append((request, future))
        return future

    def speak(self) -> None:
        self.is_silent = False
        for request, future in self.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(self.desk.call(request))
        self.waiting = []

    def drop(self) -> None:
        self.num_dropped += 1
        self.error = None

    def kill(self, *, is_for_good: bool) -> None:
        if self.error is not None:
            raise self.error
        self.killed.append(is_for_good)

    def problem(self, error: Exception) -> Problem | None:
        if isinstance(error, Gone):
            return Problem.DEAD
        return Problem.UNREACHABLE if isinstance(error, OSError) else None


@pytest.fixture
def actor(tmp_path):
    made = FakeActor(tmp_path)
    yield made
    made.pool.shutdown()


@pytest.fixture
async def agent(actor):
    made = RayAgent("h1", actor, Term(1))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Who answers may take its time."""
    monkeypatch.setattr(ray_agent, "_OBSERVE_S", 20.0)
    monkeypatch.setattr(ray_agent, "_KILL_S", 20.0)


@pytest.fixture
def hurried(monkeypatch):
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(ray_agent, "_OBSERVE_S", 0.1)
    monkeypatch.setattr(ray_agent, "_FRESH_S", 0.0)


async def heard(agent):
    """What is observed of one that answers, whatever the deadline is for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_agent, "_OBSERVE_S", 20.0)
        return await agent.observe()


async def reached(actor):
    """A silent actor has been asked something, which is done in a thread."""
    async with asyncio.timeout(20):
        while not actor.waiting:
            await asyncio.sleep(0.01)


class TestAnswers:
    async def test_a_view(self, agent):
        view = await agent.observe()
        assert (view.host, view.address) == ("h1", "10.0.0.1")

    async def test_a_start_right_away_gets_its_ticket_first(self, agent, actor):
        assert await agent.start_instance(INSTANCE, [], None) == ["cpu:0"]
        assert actor.node.done == ["m-0"]

    async def test_a_record_or_nothing(self, agent, actor):
        assert await agent.stop("m-0", 0) == RECORD
        actor.node.has_process = False
        assert await agent.stop("m-0", 0) is None

    async def test_errors_come_through_as_they_are(self, agent):
        await agent.start_instance(INSTANCE, [], None)
        with pytest.raises(ConflictError, match="it runs already"):
            await agent.start_instance(INSTANCE, [], None)
        with pytest.raises(NotFoundError):
            await agent.read_log("m-7", None, 10, 10)

    async def test_a_newer_head_shuts_the_older_one_out(self, agent, actor):
        newer = RayAgent("h1", actor, Term(2))
        await newer.observe()
        with pytest.raises(UnreachableError, match="newer head"):
            await agent.observe()
        newer.close()


@pytest.mark.usefixtures("hurried")
class TestSilence:
    async def test_it_has_a_deadline(self, agent, actor):
        actor.is_silent = True
        with pytest.raises(UnreachableError, match="does not answer"):
            await agent.observe()

    async def test_questions_do_not_pile_up(self, agent, actor):
        actor.is_silent = True
        with pytest.raises(UnreachableError):
            await agent.observe()
        await reached(actor)
        with pytest.raises(UnreachableError):
            await agent.observe()
        with pytest.raises(UnreachableError):
            await agent.start_instance(INSTANCE, [], None)
        assert actor.num_asked == 1

    async def test_nothing_is_carried_out_afterwards(self, agent, actor):
        await heard(agent)
        actor.is_silent = True
        for action in (agent.start_instance(INSTANCE, [], None), agent.stop("m-0", 0)):
            with pytest.raises(UnreachableError):
                await action
        await reached(actor)
        actor.speak()
        assert (await heard(agent)).host == "h1"
        assert actor.node.done == []

    async def test_a_change_that_waited_for_a_new_process_is_refused(
        self, agent, actor, monkeypatch
    ):
        monkeypatch.setattr(ray_agent, "_FRESH_S", 60.0)
        monkeypatch.setattr(ray_agent, "_STOP_MARGIN_S", 60.0)
        await heard(agent)
        actor.is_silent = True
        stopping = asyncio.create_task(agent.stop("m-0", 0))
        await reached(actor)
        actor.restart()
        actor.speak()
        with pytest.raises(UnreachableError, match="came too late"):
            await stopping
        assert actor.node.done == []

    async def test_a_mute_agent_is_killed_so_that_it_starts_anew(self, agent, actor):
        actor.is_silent = True
        for silent_s in (0, 100, 0, 0):
            agent._silent_since -= silent_s
            with pytest.raises(UnreachableError):
                await agent.observe()
        assert actor.killed == [False]

    async def test_whoever_gave_up_leaves_no_trace(self, agent, actor):
        actor.is_silent = True
        waiting = asyncio.create_task(heard(agent))
        await reached(actor)
        waiting.cancel()
        await asyncio.wait([waiting])
        actor.speak()
        assert (await heard(agent)).host == "h1"


class TestTrouble:
    async def test_an_actor_that_is_away_is_unreachable(self, agent, actor):
        actor.error = OSError("restarting\nand more")
        with pytest.raises(UnreachableError, match=r"h1: its node agent: OSError: restarting$"):
            await agent.observe()
        assert actor.num_dropped == 0
        actor.error = None
        assert (await agent.observe()).host == "h1"

    async def test_a_dead_one_is_made_anew(self, agent, actor):
        actor.error = Gone("killed")
        with pytest.raises(UnreachableError):
            await agent.observe()
        assert actor.num_dropped == 1
        assert (await agent.observe()).host == "h1"

    async def test_a_fault_of_the_program_is_not_hidden(self, agent, actor):
        actor.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await agent.observe()

    async def test_the_end_is_for_good_and_never_fails(self, actor):
        await RayAgent("h1", actor, Term(1)).end()
        assert actor.killed == [True]
        actor.error = OSError("away")
        await RayAgent("h1", actor, Term(1)).end()
