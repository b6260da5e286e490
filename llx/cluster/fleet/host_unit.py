"""One host as the head sees it, and the eye that is kept on it.

    starting → ready                 its agent answers
    ready → agent_away → lost        it does not any more: something else there is heard; nothing is
    agent_away, lost → ready         it does again: what runs there is taken back
    ready → draining → ready         being emptied (or → gone, when it leaves the cluster)
    any → failed                     its agent answers and cannot be used

Each host is watched by a task of its own, so that a dead one delays nobody else's news.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from llx import __version__
from llx.agent.host_view import HostView
from llx.api import HostState
from llx.cluster.fleet.agents import AgentPort
from llx.core.model import HostName
from llx.core.placement import HostRoom
from llx.errors import LlxError, UnreachableError
from llx.log import get_log

log = get_log(__name__)

OBSERVE_S = 2.0
_AWAY_AFTER_S = 4.0
START_S = 60.0
"""A host whose agent has never answered for so long is lost, not starting."""
_POLL_S = 0.5
_POLL_WHILE_CHANGING_S = 0.1


@dataclass(slots=True, eq=False)
class HostUnit:
    """A host of the cluster. Times are on the monotonic clock.

    Attributes:
        name: Its name.
        agent: Its node agent.
        since: When this head began to look.
        state: As last judged.
        detail: Why, in words.
        is_cordoned: It gets nothing new.
        is_leaving: It is no longer asked for.
        is_draining: It is being emptied.
        view: What its agent said last.
        viewed_at: When that question was asked.
        answered_at: When it was answered.
        heard_at: When anything there was heard last.
        problem: Why its agent cannot be used, or why it did not answer.
    """

    name: str
    agent: AgentPort
    since: float
    state: HostState = HostState.STARTING
    detail: str = "waiting for its agent"
    is_cordoned: bool = False
    is_leaving: bool = False
    is_draining: bool = False
    view: HostView | None = None
    viewed_at: float = 0.0
    answered_at: float | None = None
    heard_at: float | None = None
    problem: str = ""
    is_unusable: bool = False

    @property
    def answers(self) -> bool:
        """Whether its agent can be asked to do things."""
        return self.state in {HostState.READY, HostState.DRAINING}

    def judge(self, now: float, *, is_heard: bool) -> bool:
        """Bring the state up to date; returns whether it is another one.

        `is_heard`: an instance or a gateway there was just heard of.
        """
        before = self.state
        fresh = self.answered_at is not None and now - self.answered_at <= _AWAY_AFTER_S
        times = [self.heard_at, self.answered_at, now if is_heard else None]
        self.heard_at = max((each for each in times if each is not None), default=None)
        if fresh and self.is_unusable:
            self.state, self.detail = HostState.FAILED, self.problem
        elif fresh:
            is_emptied = self.is_draining or self.is_leaving
            self.state = HostState.DRAINING if is_emptied else HostState.READY
            self.detail = "leaves the cluster" if self.is_leaving else ""
        elif is_heard:
            self.state = HostState.AGENT_AWAY
            self.detail = "; ".join(filter(None, ["its agent does not answer", self.problem]))
        elif self.answered_at is None and now - self.since < START_S:
            self.state = HostState.STARTING
            self.detail = self.problem or "waiting for its agent"
        else:
            self.state = HostState.LOST
            silence = f"nothing heard for {now - (self.heard_at or self.since):.0f} s"
            self.detail = "; ".join(filter(None, [silence, self.problem]))
        return self.state is not before

    def room(self, ours: frozenset[str]) -> HostRoom:
        """The host for placement; `ours`: the instances that are to be here, or have no host."""
        view = self.view
        if view is None:
            return HostRoom(HostName(self.name), None, 1, self._closed() or "is not known yet")
        num_gpus = None
        if view.gpus:
            strange = {
                device
                for name, each in view.held.items()
                if name not in ours
                for device in each.devices
            }
            num_gpus = len(view.gpus) - len(strange | set(view.foreign_gpus))
        return HostRoom(HostName(self.name), num_gpus, view.cpu_count, self._closed())

    def _closed(self) -> str:
        if self.is_leaving:
            return "leaves the cluster"
        if self.is_cordoned:
            return "is cordoned"
        match self.state:
            case HostState.READY:
                return ""
            case HostState.AGENT_AWAY:
                return "has no agent at the moment"
            case HostState.FAILED:
                return f"cannot be used: {self.problem}"
            case state:
                return f"is {state}"


class HostWatch:
    """Asks one host's agent again and again.

    Args:
        host: The host; `view` and the like are written here, `state` by whoever judges.
        is_changing: Whether something there is on its way, so that news is wanted sooner.
        tell: Called when there is news.
    """

    def __init__(
        self, host: HostUnit, is_changing: Callable[[], bool], tell: Callable[[], None]
    ) -> None:
        self._host = host
        self._is_changing = is_changing
        self._tell = tell

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self._ask()
            self._tell()
            await asyncio.sleep(_POLL_WHILE_CHANGING_S if self._is_changing() else _POLL_S)

    async def _ask(self) -> None:
        host, began = self._host, time.monotonic()
        try:
            # Not wait_for(): when answer and cancellation meet, it swallows the cancellation.
            async with asyncio.timeout(OBSERVE_S):
                view = await host.agent.observe()
        except TimeoutError:
            host.problem = f"no answer in {OBSERVE_S:g} s"
        except UnreachableError as error:
            host.problem = error.message
        except (LlxError, OSError) as error:
            host.problem, host.is_unusable = str(error), True
            host.answered_at = time.monotonic()
        except Exception as error:  # the task's edge: an eye that closes would never open again
            log.exception("host.watch_failed", host=host.name)
            host.problem = f"{type(error).__name__}: {error}"
        else:
            host.view, host.viewed_at, host.answered_at = view, began, time.monotonic()
            host.is_unusable = view.llx_version != __version__
            host.problem = (
                f"it runs llx {view.llx_version}, the head llx {__version__}"
                if host.is_unusable
                else ""
            )
