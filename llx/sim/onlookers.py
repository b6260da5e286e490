"""Who looks on while a plan is run: recordings into files, timelines for pictures."""

from collections.abc import Sequence
from pathlib import Path

from llx.core.model import Nanos
from llx.core.scheduler.commands import Command
from llx.core.scheduler.events import Event
from llx.errors import ConfigError
from llx.recording import Recorder
from llx.sim.cluster import Observer
from llx.sim.plan import Plan, Variant
from llx.sim.timeline import Timeline


class Onlookers:
    """Makes the observer of each run; `Observers`. Close it after the last.

    Args:
        plan: What is run.
        record: A file, or a directory for several runs, that recordings go to.
        has_timelines: Whether there is a timeline of each policy's first run at the last rate.
    """

    def __init__(self, plan: Plan, *, record: Path | None, has_timelines: bool) -> None:
        self.timelines: dict[str, Timeline] = {}
        """By policy."""
        self.failures: list[str] = []
        """Why recordings have ended early."""
        self._plan = plan
        self._record = record
        self._has_timelines = has_timelines
        self._recorder: Recorder | None = None

    def of(self, variant: Variant, rate: float | None, seed: int) -> Observer | None:
        """`Observers`."""
        self.close()
        observers: list[Observer] = []
        if self._record is not None:
            path = self._path(self._record, variant.policy, rate, seed)
            self._recorder = Recorder(path, origin="simulator")
            observers.append(self._recorder.record)
        plan = self._plan
        if self._has_timelines and (rate, seed) == (plan.rates[-1], plan.seeds[0]):
            timeline = self.timelines[variant.policy] = Timeline()
            observers.append(timeline.observe)
        if len(observers) < 2:
            return observers[0] if observers else None

        def both(event: Event, now: Nanos, commands: Sequence[Command]) -> None:
            for each in observers:
                each(event, now, commands)

        return both

    def close(self) -> None:
        """The run under way is over."""
        if self._recorder is not None:
            self._recorder.close()
            self.failures += [self._recorder.failure] if self._recorder.failure else []
        self._recorder = None

    def _path(self, path: Path, policy: str, rate: float | None, seed: int) -> Path:
        if self._plan.num_runs == 1 and not path.is_dir():
            return path
        if path.is_file():
            raise ConfigError(f"{path} is a file: {self._plan.num_runs} runs need a directory")
        parts = [policy, *([] if rate is None else [f"rate-{rate:g}"]), f"seed-{seed}"]
        return path / ("-".join(parts) + ".jsonl")
