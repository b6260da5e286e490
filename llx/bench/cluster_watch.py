"""The cluster during a run: what its head says of load and migrations, and what is done to it."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, ConfigDict

from llx.api import InstanceStatus, MigrationStatus, MoveOutcome
from llx.bench.fault_injector import Injector
from llx.bench.scenario import Fault
from llx.client import Cluster
from llx.errors import LlxError

_SAMPLE_S: Final = 0.5
_REPORTS_S: Final = 3.0
"""Gateways report what they saw of a move with their next heartbeats."""
_POLL_S: Final = 0.2


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstanceLoad(_Line):
    """One instance at one time; freeness None: without bound, or not known.

    `preemptions`: since its engine's start; None: not known.
    """

    name: str
    state: str
    is_cordoned: bool
    freeness: float | None = None
    blocks_used: int = 0
    blocks_total: int = 0
    running: int = 0
    waiting: int = 0
    preemptions: int | None = None


class Sight(_Line):
    """The cluster at one time, or why it could not be seen."""

    at_s: float
    instances: list[InstanceLoad] = []
    error: str = ""


class FaultNote(_Line):
    """A fault: when it was ordered, when that had returned, and what went wrong with it.

    The end of the run stands for what came not before it.
    """

    at_s: float
    done_s: float
    do: str
    instance: str = ""
    host: str = ""
    error: str = ""

    @property
    def words(self) -> str:
        """What was to be done to whom."""
        return " ".join(each for each in (self.do, self.instance or self.host) if each)


class Move(_Line):
    """One migration that began during the run, in seconds from its beginning; None: not known."""

    id: str
    begun_s: float
    ended_s: float | None
    source: str
    target: str
    outcome: str
    why: str
    num_tokens: int | None
    num_stages: int | None
    downtime_ms: float | None
    stall_ms: float | None


class ClusterWatch:
    """Looks at a cluster while a run lasts, and injects the faults. One for each run.

    Args:
        control: Of the cluster.
        model: Whose instances are looked at.
        injector: Of its faults.
        on_sight: Called with each sight, and with the note of each fault.
    """

    def __init__(
        self,
        control: Cluster,
        model: str,
        injector: Injector,
        on_sight: Callable[[Sight | FaultNote], None],
    ) -> None:
        self._control = control
        self._model = model
        self._injector = injector
        self._on_sight = on_sight
        self._began_at = 0.0
        self._began_wall = 0.0
        self._before: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Remember which migrations are older than the run.

        Raises:
            LlxError: The cluster does not answer.
        """
        self._before = frozenset(each.id for each in self._control.migrations())

    async def run(self) -> None:
        """Watch until cancelled; then a drain that is under way ends, for it may take a minute."""
        self._began_at, self._began_wall = time.perf_counter(), time.time()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look_on())
                for each in self._injector.faults:
                    tasks.create_task(self._inject(each))
        finally:
            await asyncio.to_thread(self._injector.uncordon)

    async def _look_on(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_SAMPLE_S)

    def look(self) -> None:
        """See how the cluster is at this moment."""
        self._on_sight(self._look())

    def _look(self) -> Sight:
        at_s = self._now()
        try:
            status = self._control.status()
        except LlxError as error:
            return Sight(at_s=at_s, error=error.message)
        own = [_load_of(each) for each in status.instances if each.model == self._model]
        return Sight(at_s=at_s, instances=own)

    async def _inject(self, fault: Fault) -> None:
        at_s = None
        try:
            await asyncio.sleep(fault.at_s)
            at_s = self._now()
            await asyncio.to_thread(self._injector.do, fault)
        except LlxError as failure:
            self._note(fault, at_s, failure.message)
        except asyncio.CancelledError:
            done = "" if at_s is None else " it was done"
            self._note(fault, at_s, f"the run was over before{done}")
            raise
        else:
            self._note(fault, at_s, "")

    def _note(self, fault: Fault, at_s: float | None, error: str) -> None:
        now = self._now()
        note = FaultNote(
            at_s=now if at_s is None else at_s, done_s=now, do=fault.do,
            instance=fault.instance, host=fault.host, error=error,
        )  # fmt: skip
        self._on_sight(note)

    def moves(self) -> list[Move]:
        """The migrations since `begin`, once gateways have said what they saw of them.

        Raises:
            LlxError: The cluster does not answer.
        """
        deadline = time.monotonic() + _REPORTS_S
        while True:
            found = [each for each in self._control.migrations() if each.id not in self._before]
            if all(map(_is_told, found)) or time.monotonic() > deadline:
                return [self._move(each) for each in found]
            time.sleep(_POLL_S)

    def _move(self, status: MigrationStatus) -> Move:
        ended = status.ended_at
        return Move(
            id=status.id,
            begun_s=round(status.begun_at - self._began_wall, 4),
            ended_s=None if ended is None else round(ended - self._began_wall, 4),
            source=status.source,
            target=status.target,
            outcome=status.outcome or "",
            why=status.why,
            num_tokens=status.num_tokens,
            num_stages=status.num_stages,
            downtime_ms=status.downtime_ms,
            stall_ms=status.stall_ms,
        )

    def _now(self) -> float:
        return round(time.perf_counter() - self._began_at, 4)


def _load_of(status: InstanceStatus) -> InstanceLoad:
    load = status.load
    seen = InstanceLoad(name=status.name, state=status.state, is_cordoned=status.is_cordoned)
    if load is None:
        return seen
    return seen.model_copy(
        update={
            "freeness": load.freeness if math.isfinite(load.freeness) else None,
            "blocks_used": load.blocks_used,
            "blocks_total": load.blocks_total,
            "running": load.running,
            "waiting": load.waiting,
            "preemptions": status.preemptions,
        }
    )


def _is_told(move: MigrationStatus) -> bool:
    if move.outcome is None:
        return False
    return move.outcome is not MoveOutcome.MOVED or move.downtime_ms is not None
