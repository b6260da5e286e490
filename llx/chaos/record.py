"""What a run keeps, in a directory: enough to go on after an interruption, and to judge it all.

plan.yaml       the plan
about.json      model, references, and the cluster as it was before the first fault
faults.jsonl    each fault that was done
streams.jsonl   each stream that has ended
marks           of every run of the cluster's processes that was seen, by which leftovers are told
verdict.json
"""

import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llx.chaos.faults import FaultRecord
from llx.chaos.integrity import StreamRecord
from llx.chaos.leaks import Idle
from llx.chaos.plan import ChaosPlan, load_plan
from llx.chaos.verdict import ChaosVerdict
from llx.errors import ConfigError, ConflictError

M = TypeVar("M", bound=BaseModel)


class About(BaseModel):
    """What a run compares with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str
    model: str
    references: list[tuple[int, ...]]
    idle: Idle


class RunDirectory:
    """One run's directory. Lines may be added by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    @property
    def has_begun(self) -> bool:
        """Whether there is a plan in it."""
        return (self.path / "plan.yaml").exists()

    def begin(self, plan: ChaosPlan) -> None:
        """Keep the plan.

        Raises:
            ConflictError: Another plan, or something else, is in the directory.
            ConfigError: The plan in it cannot be read.
        """
        if self.has_begun:
            if self.plan() != plan:
                raise ConflictError(
                    f"{self.path} has another plan",
                    remedy="give no plan to go on with that one, or another --out",
                )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ConflictError(f"{self.path} is not empty", remedy="another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
        self._write("plan.yaml", text)

    def plan(self) -> ChaosPlan:
        """The plan.

        Raises:
            ConfigError: It cannot be read.
        """
        return load_plan(self.path / "plan.yaml")

    def about(self) -> About | None:
        """What was kept of the first part; None: it did not come so far.

        Raises:
            ConfigError: It cannot be read.
        """
        path = self.path / "about.json"
        if not path.exists():
            return None
        return _parsed(About, path.read_text(), path)

    def keep_about(self, about: About) -> None:
        """Keep what is compared with."""
        self._write("about.json", about.model_dump_json() + "\n")

    def keep_verdict(self, verdict: ChaosVerdict) -> None:
        """Keep the verdict."""
        self._write("verdict.json", verdict.model_dump_json(indent=2) + "\n")

    def add_fault(self, fault: FaultRecord) -> None:
        """A fault is over."""
        self._add("faults.jsonl", fault)

    def add_stream(self, stream: StreamRecord) -> None:
        """A stream has ended."""
        self._add("streams.jsonl", stream)

    def add_marks(self, marks: Iterable[str]) -> None:
        """Runs of processes that were seen."""
        new = self.marks() | {mark for mark in marks if mark}
        self._write("marks", "".join(f"{each}\n" for each in sorted(new)))

    def marks(self) -> set[str]:
        """All that were."""
        path = self.path / "marks"
        return set(path.read_text().split()) if path.exists() else set()

    def faults(self) -> list[FaultRecord]:
        """Those that were done."""
        return list(self._lines("faults.jsonl", FaultRecord))

    def streams(self) -> list[StreamRecord]:
        """Those that have ended."""
        return list(self._lines("streams.jsonl", StreamRecord))

    def _add(self, name: str, line: BaseModel) -> None:
        with self._lock, (self.path / name).open("a") as file:
            file.write(line.model_dump_json() + "\n")

    def _lines(self, name: str, kind: type[M]) -> Iterator[M]:
        path = self.path / name
        if not path.exists():
            return
        *lines, rest = path.read_text().split("\n")
        if rest:  # of a write that was cut off
            with self._lock:
                path.write_text("".join(f"{each}\n" for each in lines))
        for line in lines:
            yield _parsed(kind, line, path)

    def _write(self, name: str, text: str) -> None:
        new = self.path / f".{name}"
        new.write_text(text)
        new.replace(self.path / name)


def _parsed(kind: type[M], text: str, path: Path) -> M:
    try:
        return kind.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="another --out") from None
