"""Node agents on other hosts: actors of Ray, pinned to their host by its label.

Nothing blocks the event loop: Ray is called in a thread of each agent's own, so that one host's
silence never delays another's, and every wait has a deadline. Towards a silent agent at most one
question is under way; whatever changes something waits for an answer to it first, so that no call
piles up behind a host that is away (see `llx.agent.actor_calls` on tickets).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any, Protocol, TypeVar

from llx.agent.actor import NodeAgentActor
from llx.agent.actor_calls import (
    AgentCall,
    Answer,
    Forget,
    KeepCopy,
    Observe,
    ReadLog,
    Release,
    Request,
    StartGateway,
    StartInstance,
    Stop,
)
from llx.agent.devices import Need
from llx.agent.host_view import HostView, decode, encode
from llx.agent.log_file import LogPart
from llx.agent.processes import ShimRecord
from llx.cluster.ray.paths import HOST_LABEL, NAMESPACE, actor_name
from llx.core.model import Term
from llx.errors import UnreachableError
from llx.head_copy import HeadCopy
from llx.log import get_log
from llx.specs import GatewaySpec, InstanceSpec

T = TypeVar("T")

log = get_log(__name__)

_WATCH = "watch"
_CHANGE = "change"
_GROUPS = {_WATCH: 4, _CHANGE: 64}
"""Threads in the actor: a slow stop must not keep the host from being seen."""

_OBSERVE_S = 2.0
_QUICK_S = 10.0
_START_S = 45.0
_STOP_MARGIN_S = 15.0
_FRESH_S = 3.0
"""An answer as young as this gives a ticket for a change."""
_MUTE_S = 60.0
"""An agent that has said nothing for so long is killed, to be started anew by Ray."""
_KILL_S = 5.0


class RayAgents:
    """The agents of a cluster's hosts; see `llx.cluster.fleet.agents.AgentsSource`.

    Used in one event loop, in a process that is connected to Ray.

    Args:
        term: Of the head that speaks.
    """

    def __init__(self, term: Term) -> None:
        self._term = term
        self._agents: dict[str, RayAgent] = {}

    def agent(self, host: str) -> "RayAgent":
        """The agent of a host; does not wait."""
        if host not in self._agents:
            self._agents[host] = RayAgent(host, RayActor(host), self._term)
        return self._agents[host]

    async def remove(self, host: str) -> None:
        """End the host's agent, for good."""
        agent = self._agents.pop(host, None) or RayAgent(host, RayActor(host), self._term)
        await agent.end()

    async def close(self) -> None:
        """Let go of all agents; they live on."""
        for agent in self._agents.values():
            agent.close()
        self._agents.clear()


class ActorPort(Protocol):
    """An actor's process as `RayAgent` uses it. Blocking; one thread at a time."""

    def submit(self, request: bytes, group: str) -> "Future[bytes]":
        """Send a request to where it has threads of that group.

        What is raised, here or by the future, is for `problem` to judge.
        """

    def drop(self) -> None:
        """Forget the actor: it is dead for good. The next request goes to a new one."""

    def kill(self, *, is_for_good: bool) -> None:
        """End its process; unless for good, it is started anew."""

    def problem(self, error: Exception) -> "Problem | None":
        """What it means for the actor; None if nothing: then it is a fault of the program."""


class Problem(Enum):
    """What became of a request."""

    UNREACHABLE = "unreachable"
    DEAD = "dead"


class RayActor:
    """A host's actor in Ray, made where there is none; see `ActorPort`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._handle: Any = None

    def submit(self, request: bytes, group: str) -> "Future[bytes]":
        """See `ActorPort`."""
        if self._handle is None:
            self._handle = self._make()
        reference = self._handle.call.options(concurrency_group=group).remote(request)
        future: Future[bytes] = reference.future()
        return future

    def drop(self) -> None:
        """See `ActorPort`."""
        self._handle = None

    def kill(self, *, is_for_good: bool) -> None:
        """See `ActorPort`."""
        import ray

        if self._handle is None:
            self._handle = ray.get_actor(actor_name(self._host), namespace=NAMESPACE)
        ray.kill(self._handle, no_restart=is_for_good)
        if is_for_good:
            self._handle = None

    def problem(self, error: Exception) -> Problem | None:
        """See `ActorPort`."""
        import ray

        if isinstance(error, ray.exceptions.ActorDiedError):
            return Problem.DEAD
        # Without a control store Ray raises ValueError, RuntimeError or its own, as it happens.
        kinds = (ray.exceptions.RayError, ValueError, RuntimeError, OSError)
        return Problem.UNREACHABLE if isinstance(error, kinds) else None

    def _make(self) -> Any:
        import ray

        actor = ray.remote(concurrency_groups=_GROUPS)(NodeAgentActor)
        return actor.options(
            name=actor_name(self._host),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            label_selector={HOST_LABEL: self._host},
        ).remote()


class RayAgent:
    """One host's agent; see `llx.cluster.fleet.agents.AgentPort`."""

    def __init__(self, host: str, actor: ActorPort, term: Term) -> None:
        self._host = host
        self._actor = actor
        self._term = term
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ray-{host}")
        self._question: asyncio.Task[Answer] | None = None
        self._ticket = ""
        self._heard_at = -_FRESH_S
        self._silent_since = 0.0

    @property
    def host(self) -> str:
        """The host's name."""
        return self._host

    async def observe(self) -> HostView:
        """See `AgentPort`."""
        return _value(await self._look(), HostView)

    async def start_instance(
        self, spec: InstanceSpec, needs: Sequence[Need], cores_each: int | None
    ) -> list[str]:
        """See `AgentPort`."""
        call = StartInstance(spec, list(needs), cores_each)
        return _value(await self._change(call, _START_S), list[str])

    async def start_gateway(self, spec: GatewaySpec) -> None:
        """See `AgentPort`."""
        _check(await self._change(StartGateway(spec), _START_S))

    async def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        """See `AgentPort`."""
        answer = await self._change(Stop(name, grace_s), grace_s + _STOP_MARGIN_S)
        _check(answer)
        return decode(bytes(answer.value), ShimRecord | None)  # type: ignore[arg-type]

    async def release(self, name: str) -> None:
        """See `AgentPort`."""
        _check(await self._change(Release(name), _QUICK_S))

    async def forget(self, name: str) -> None:
        """See `AgentPort`."""
        _check(await self._change(Forget(name), _QUICK_S))

    async def keep_copy(self, copy: HeadCopy) -> None:
        """See `AgentPort`."""
        _check(await self._change(KeepCopy(copy), _QUICK_S))

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogPart:
        """See `AgentPort`."""
        if not self._is_fresh():
            await self._look()
        answer = await self._within(self._ask(ReadLog(name, offset, limit, tail), _WATCH), _QUICK_S)
        return _value(answer, LogPart)

    async def end(self) -> None:
        """End the actor, for good; does not raise for a host that cannot be reached."""
        await self._kill(is_for_good=True)
        self.close()

    def close(self) -> None:
        """Let go of the actor; it lives on."""
        if self._question is not None:
            self._question.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ asking

    async def _look(self) -> Answer:
        """What the agent says to `Observe`; at most one such question is under way."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask(Observe(), _WATCH))
            self._question.add_done_callback(_retrieve)
            self._silent_since = time.monotonic()
        elif time.monotonic() - self._silent_since > _MUTE_S:
            self._silent_since = time.monotonic()
            await self._restart()
        return await self._within(asyncio.shield(self._question), _OBSERVE_S)

    async def _change(self, call: AgentCall, timeout_s: float) -> Answer:
        if not self._is_fresh():
            _check(await self._look())
        return await self._within(self._ask(call, _CHANGE), timeout_s)

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._heard_at < _FRESH_S

    async def _within(self, answer: "asyncio.Future[Answer] | Any", timeout_s: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                heard: Answer = await answer
        except TimeoutError:
            raise UnreachableError(
                f"{self._host}: its node agent does not answer ({timeout_s:g} s)"
            ) from None
        return heard

    async def _ask(self, call: AgentCall, group: str) -> Answer:
        request = encode(Request(self._term, call, self._ticket))
        try:
            future = await self._in_thread(lambda: self._actor.submit(request, group))
            data = await asyncio.wrap_future(future)
        except Exception as error:
            problem = self._actor.problem(error)
            if problem is None:
                raise
            if problem is Problem.DEAD:
                await self._in_thread(self._actor.drop)
            raise UnreachableError(f"{self._host}: its node agent: {_line(error)}") from None
        answer = decode(data, Answer)
        self._ticket = answer.ticket
        self._heard_at = time.monotonic()
        return answer

    async def _restart(self) -> None:
        """An actor whose process hangs is not restarted by Ray of its own accord."""
        log.warning("agent.mute", host=self._host)
        await self._kill(is_for_good=False)

    async def _kill(self, *, is_for_good: bool) -> None:
        try:
            async with asyncio.timeout(_KILL_S):
                await self._in_thread(lambda: self._actor.kill(is_for_good=is_for_good))
        except Exception as error:
            if not isinstance(error, TimeoutError) and self._actor.problem(error) is None:
                raise

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _value(answer: Answer, kind: type[T]) -> T:
    _check(answer)
    return decode(bytes(answer.value), kind)


def _check(answer: Answer) -> None:
    if answer.failure is not None:
        answer.failure.throw()


def _retrieve(question: "asyncio.Task[Answer]") -> None:
    """Nobody may be waiting for it any more; its failure is no news then."""
    if not question.cancelled():
        question.exception()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
