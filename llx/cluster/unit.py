"""One process that should run, and how it fares: the state machine of instances and gateways.

    starting → loading → ready        as the process says of itself
    any of these → failed             it ended, could not be started, or was not ready in time
    any → stopping → starting         restart
    any → stopping → stopped          the cluster stops

`assess` is pure: it looks at what was observed and says what is so. Acting on it is the driver's.
"""

import asyncio
from dataclasses import dataclass, field

from llx.agent.node import Observed
from llx.api import InstanceState
from llx.specs import GatewaySpec, InstanceSpec, Phase


@dataclass(frozen=True, slots=True)
class Assessment:
    """A state and the words for it."""

    state: InstanceState
    detail: str = ""


@dataclass(slots=True, eq=False)
class Unit:
    """A desired process. The driver alone changes it.

    Attributes:
        spec: What should run.
        state: Where it is.
        detail: Why, in words.
        is_ours: It was started, or found running, in this life of the head. Until then a process
            that has ended is one of an earlier life and no failure.
        observed: What was last seen of it.
        task: The start, stop or restart under way, if any; nothing else touches it meanwhile.
    """

    spec: InstanceSpec | GatewaySpec
    state: InstanceState = InstanceState.STARTING
    detail: str = "waiting to be started"
    is_ours: bool = False
    observed: Observed | None = None
    restarts: int = 0
    ready_after_s: float | None = None
    devices: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self.spec.name

    @property
    def is_busy(self) -> bool:
        """Whether an action on it is under way."""
        return self.task is not None and not self.task.done()

    @property
    def is_settled(self) -> bool:
        """Whether it stays as it is until something happens."""
        return not self.is_busy and self.state in {
            InstanceState.READY,
            InstanceState.FAILED,
            InstanceState.STOPPED,
        }

    @property
    def pid(self) -> int | None:
        """The running process, else None."""
        seen = self.observed
        return seen.record.child_pid if seen is not None and seen.is_running else None

    @property
    def started_at(self) -> float | None:
        """When the latest run began."""
        return None if self.observed is None else self.observed.record.started_at

    @property
    def addresses(self) -> list[str]:
        """What it listens on, once ready."""
        seen = self.observed
        if seen is None or seen.said is None or not seen.is_running:
            return []
        return seen.said.addresses


def assess(observed: Observed, *, now: float, start_timeout_s: float) -> Assessment:
    """What is so about a process that was started; `now` in Unix seconds."""
    said, record = observed.said, observed.record
    if said is not None and said.phase is Phase.FAILED:
        return Assessment(InstanceState.FAILED, said.detail)
    if not observed.is_running:
        return Assessment(InstanceState.FAILED, record.ending)
    if said is not None and said.phase is Phase.READY:
        return Assessment(InstanceState.READY, said.detail)
    waited_s = now - record.started_at
    if waited_s > start_timeout_s:
        doing = f" (last: {said.detail})" if said is not None and said.detail else ""
        return Assessment(InstanceState.FAILED, f"not ready after {start_timeout_s:g} s{doing}")
    match said.phase if said is not None else Phase.STARTING:
        case Phase.LOADING:
            state = InstanceState.LOADING
        case Phase.STOPPING:
            state = InstanceState.STOPPING
        case _:
            state = InstanceState.STARTING
    return Assessment(state, said.detail if said is not None else "")
