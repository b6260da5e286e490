"""One process that should run, and how it fares: the state machine of instances and gateways.

    starting → loading → ready        as the process says of itself
    starting, loading → failed        it ended, could not be started, or was not ready in time
    ready → starting → …              it ended: started again, each time after a longer pause
    starting → (no host)              its host has no devices for it: it is placed again
    any → stopping → starting         restart
    ready → draining → (moved, gone)  its host is emptied, or it is no longer asked for
    ready ↔ lost                      nothing is heard of its host
    any → stopping → stopped          the cluster stops

`assess` is pure: it looks at what was observed and says what is so. Acting on it is the driver's.
"""

import asyncio
from dataclasses import dataclass, field

from llx.agent.host_view import Observed
from llx.api import InstanceState
from llx.specs import GatewaySpec, InstanceSpec, Phase

MAX_FAILURES = 10
"""So many in a row, four minutes of pauses, and it is not started again."""

_LONGEST_PAUSE_S = 60.0
_STEADY_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class Assessment:
    """A state and the words for it."""

    state: InstanceState
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A host that had no devices for an instance. Times are on the monotonic clock.

    Attributes:
        reason: What it said.
        count: How often in a row.
        at: When; what was seen of the host before is out of date.
        until: It is not asked again before.
    """

    reason: str
    count: int
    at: float
    until: float


@dataclass(slots=True, eq=False)
class Unit:
    """A desired process. The driver alone changes it. Times are on the monotonic clock.

    Attributes:
        spec: What should run.
        started: With what it was last started, or found running; None: not yet.
        host: Where; empty: no host was found for it yet.
        state: Where it is.
        detail: Why, in words.
        is_ours: It was started, or found running, in this life of the head. Until then a process
            that has ended is one of an earlier life and no failure.
        was_ready: It has been ready, or found running: then it is started again when it ends.
        is_leaving: It is no longer asked for.
        is_cordoned: An instance that gets nothing new, as an operator has asked; until it is
            uncordoned or restarted.
        observed: What was last seen of it.
        known: The addresses under which gateways may use it; empty: none.
        restarts: How often it was started again in this life of the head.
        failures: How often in a row it has ended.
        last_failure: Why it did the last time.
        retry_at: When to start it again.
        owes_pause: It failed in an earlier life of the head: that pause comes first.
        doubt: Why nobody knows whether it was started; empty: nobody need ask.
        refusals: By host, which had no devices for it.
        ready_since: When it became ready.
        heard_at: When it was last heard of itself, its host's agent aside.
        acted_at: When the last action on it ended; what was observed before is out of date.
        task: The action under way, if any; nothing else touches the unit meanwhile.
    """

    spec: InstanceSpec | GatewaySpec
    started: InstanceSpec | GatewaySpec | None = None
    host: str = ""
    state: InstanceState = InstanceState.STARTING
    detail: str = "waiting for a host"
    is_ours: bool = False
    was_ready: bool = False
    is_leaving: bool = False
    is_cordoned: bool = False
    observed: Observed | None = None
    known: list[str] = field(default_factory=list)
    restarts: int = 0
    failures: int = 0
    last_failure: str = ""
    retry_at: float | None = None
    owes_pause: bool = False
    doubt: str = ""
    refusals: dict[str, Refusal] = field(default_factory=dict)
    ready_since: float | None = None
    heard_at: float | None = None
    ready_after_s: float | None = None
    devices: list[str] = field(default_factory=list)
    acted_at: float = 0.0
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
        if self.retry_at is not None:
            return True
        return not self.is_busy and self.state not in {
            InstanceState.STARTING,
            InstanceState.LOADING,
            InstanceState.STOPPING,
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

    def put_on(self, host: str) -> None:
        """Give it a host; it is started there next."""
        self.leave_host()
        self.host, self.detail = host, "waiting to be started"

    def leave_host(self) -> None:
        """It runs nowhere: all that was known of its run is forgotten."""
        self.host, self.known, self.devices = "", [], []
        self.is_ours, self.observed, self.retry_at, self.started = False, None, None, None
        self.owes_pause, self.doubt = False, ""
        self.ready_since = self.ready_after_s = self.heard_at = None
        self.state, self.detail = InstanceState.STARTING, "waiting for a host"

    def note_ready(self, now: float) -> None:
        """It is ready; when it has been for long, earlier failures count no more."""
        self.was_ready = True
        self.refusals.clear()
        if self.ready_since is None:
            self.ready_since = now
        elif now - self.ready_since > _STEADY_AFTER_S:
            self.failures = 0

    def note_failure(self, reason: str, now: float, *, is_excused: bool = False) -> bool:
        """It has ended; returns whether it is to be started again, at `retry_at`.

        One that was never ready is not, unless `is_excused`: its host may be to blame.
        """
        self.known, self.ready_since = [], None
        self.owes_pause, self.doubt = False, ""
        self.failures += 1
        self.last_failure = reason
        if self.failures >= MAX_FAILURES or not (self.was_ready or is_excused):
            return False
        self.wait(now)
        return True

    def wait(self, now: float) -> None:
        """It has failed: not to be started before the pause is over."""
        self.is_ours, self.owes_pause = True, False
        self.retry_at = now + pause_s(self.failures)

    def note_refusal(self, reason: str, now: float) -> None:
        """Its host has no devices for it: it leaves, and is not placed there again for a while."""
        before = self.refusals.get(self.host)
        count = 1 if before is None else before.count + 1
        self.refusals[self.host] = Refusal(reason, count, now, now + pause_s(count))
        self.last_failure = f"{self.host} refused it: {reason}"
        self.leave_host()


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row: 1, 2, 4 … 32, 60, 60 … s."""
    return min(_LONGEST_PAUSE_S, 2.0 ** (failures - 1))


def assess(observed: Observed, *, now: float, start_timeout_s: float) -> Assessment:
    """What is so about a process that was started; `now` in Unix seconds."""
    said, record = observed.said, observed.record
    if said is not None and said.phase is Phase.FAILED:
        return Assessment(InstanceState.FAILED, said.detail)
    if not observed.is_running:
        return Assessment(InstanceState.FAILED, record.ending)
    if said is not None and said.phase is Phase.READY:
        return Assessment(InstanceState.READY, said.detail)
    if said is not None and said.phase is Phase.STOPPING:
        return Assessment(InstanceState.STOPPING, said.detail)
    waited_s = now - record.started_at
    if waited_s > start_timeout_s:
        doing = f" (last: {said.detail})" if said is not None and said.detail else ""
        return Assessment(InstanceState.FAILED, f"not ready after {start_timeout_s:g} s{doing}")
    match said.phase if said is not None else Phase.STARTING:
        case Phase.LOADING:
            state = InstanceState.LOADING
        case _:
            state = InstanceState.STARTING
    return Assessment(state, said.detail if said is not None else "")
