"""Who looks on while a run is under way: a recording into a file, a timeline for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llx.core.model import Nanos
from llx.core.scheduler.commands import Command
from llx.core.scheduler.events import Event
from llx.errors import ConfigError
from llx.recording import Recorder
from llx.sim.cluster import Observer
from llx.sim.plan import Job, Plan
from llx.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wanted of the runs of a plan besides their figures.

    Attributes:
        record: A file, or a directory for several runs, that recordings go to.
        has_timelines: Whether there is a timeline of each policy's first run at the last rate.
    """

    record: Path | None = None
    has_timelines: bool = False


class Onlookers:
    """Those of one run. Close them after it.

    Raises:
        ConfigError: A recording cannot be made.
    """

    def __init__(self, wishes: Wishes, plan: Plan, job: Job) -> None:
        is_shown = (job.rate, job.seed) == (plan.rates[-1], plan.seeds[0])
        self.timeline = Timeline() if wishes.has_timelines and is_shown else None
        self.failure: str | None = None
        """Why the recording has ended early; None: it has not."""
        self._recorder: Recorder | None = None
        if wishes.record is not None:
            path = _path(wishes.record, plan, job)
            self._recorder = Recorder(path, origin="simulator")

    def observer(self) -> Observer | None:
        """Of the run; None: nobody looks on."""
        observers: list[Observer] = []
        if self._recorder is not None:
            observers.append(self._recorder.record)
        if self.timeline is not None:
            observers.append(self.timeline.observe)
        if len(observers) < 2:
            return observers[0] if observers else None

        def both(event: Event, now: Nanos, commands: Sequence[Command]) -> None:
            for each in observers:
                each(event, now, commands)

        return both

    def close(self) -> None:
        """The run is over."""
        if self._recorder is not None:
            self._recorder.close()
            self.failure = self._recorder.failure


def _path(path: Path, plan: Plan, job: Job) -> Path:
    if plan.num_runs == 1 and not path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{path} is a file: {plan.num_runs} runs need a directory")
    rate = [] if job.rate is None else [f"rate-{job.rate:g}"]
    return path / ("-".join([job.variant.policy, *rate, f"seed-{job.seed}"]) + ".jsonl")
