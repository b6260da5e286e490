"""What a benchmark leaves on disk, and how it is read again.

DIR/scenario.yaml           as run: every default spelled out
DIR/about.json              versions, this machine, the target, the cluster as it was found
DIR/summary.json            every run's figures, and their medians for each variant
DIR/runs/VARIANT-REPETITION/
    summary.json            the run's figures, named as `vllm bench serve` names them
    requests.jsonl          a line for each request
    timeline.jsonl          load of the cluster twice a second, and faults
    migrations.jsonl        the moves of requests that began in it
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from llx.bench.cluster_watch import FaultNote, Move, Sight
from llx.bench.record import Record, record_of
from llx.bench.scenario import Scenario
from llx.bench.summary import Figures
from llx.errors import ConfigError, ConflictError, NotFoundError

API_VERSION: Final = "v1"
_RUNS: Final = "runs"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was kept. `summary` is its summary.json."""

    path: Path
    variant: str
    repetition: int
    summary: Mapping[str, Any]

    def figure(self, name: str) -> float | None:
        """A figure of the summary; None: not measured."""
        value = self.summary.get(name)
        return float(value) if isinstance(value, int | float) else None

    def records(self) -> list[Record]:
        """Its requests, in the order of the schedule; times from the run's beginning."""
        lines = _lines(self.path / "requests.jsonl")
        return sorted((record_of(each) for each in lines), key=lambda each: each.number)

    def sights(self) -> list[Sight]:
        """The cluster's load over time; empty if it was not watched."""
        found = [json.loads(each) for each in _lines(self.path / "timeline.jsonl")]
        return [Sight.model_validate(each) for each in found if "done_s" not in each]

    def faults(self) -> list[FaultNote]:
        """What was done to the cluster, as it was ordered; each was noted when it was done."""
        found = [json.loads(each) for each in _lines(self.path / "timeline.jsonl")]
        notes = [FaultNote.model_validate(each) for each in found if "done_s" in each]
        return sorted(notes, key=lambda each: each.at_s)

    def moves(self) -> list[Move]:
        """Migrations that began in it."""
        return [Move.model_validate_json(each) for each in _lines(self.path / "migrations.jsonl")]


@dataclass(frozen=True, slots=True)
class Results:
    """A whole benchmark, read again."""

    path: Path
    scenario: Scenario
    about: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def variants(self) -> list[str]:
        """Names of the variants that ran, in the scenario's order."""
        ran = {each.variant for each in self.runs}
        return [each.name for each in self.scenario.variants if each.name in ran]

    def of(self, variant: str) -> list[Run]:
        """The runs of a variant, by repetition."""
        found = [each for each in self.runs if each.variant == variant]
        return sorted(found, key=lambda each: each.repetition)

    def faults_not_done(self) -> list[str]:
        """What should have been done to the cluster and was not, with the variant and why."""
        return [
            f"{name}: {text}"
            for name in self.variants
            for run in self.of(name)
            for text in run.summary["llx_faults_not_done"]
        ]

    def rows(self) -> Iterator[tuple[str, bool, Figures]]:
        """Name and median figures of each variant, and below it of each of its classes (True)."""
        for name in self.variants:
            runs = self.of(name)
            yield name, False, medians([each.summary for each in runs])
            for each in self.scenario.workload.classes:
                yield (
                    each,
                    True,
                    medians([run.summary["llx_classes"].get(each, {}) for run in runs]),
                )


def create(path: Path, scenario: Scenario, about: Mapping[str, Any]) -> None:
    """Begin a run directory.

    Raises:
        ConflictError: There is something of that name.
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(parents=True)
        (path / _RUNS).mkdir()
        text = yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False)
        (path / "scenario.yaml").write_text(text, encoding="utf-8")
        _write_json(path / "about.json", about)
    except FileExistsError:
        raise ConflictError(f"{path} is there already", remedy="--out another one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error}", remedy="--out another one") from None


def write_run(
    directory: Path,
    summary: Mapping[str, Any],
    records: Iterable[str],
    timeline: Sequence[Sight | FaultNote],
    moves: Sequence[Move],
) -> Run:
    """Keep a run; `records` are lines of JSON."""
    variant, repetition = summary["llx_variant"], summary["llx_repetition"]
    path = directory / _RUNS / f"{variant}-{repetition}"
    path.mkdir()
    with (path / "requests.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{each}\n" for each in records)
    _write_models(path / "timeline.jsonl", timeline)
    _write_models(path / "migrations.jsonl", moves)
    _write_json(path / "summary.json", summary)  # the last one: a run that has it is whole
    return Run(path, variant, repetition, summary)


def write_summary(directory: Path, name: str, runs: Sequence[Run]) -> None:
    """Sum up what there is."""
    variants = list(dict.fromkeys(each.variant for each in runs))
    _write_json(
        directory / "summary.json",
        {
            "llx_api_version": API_VERSION,
            "llx_scenario": name,
            "llx_variants": {
                each: medians([run.summary for run in runs if run.variant == each])
                for each in variants
            },
            "llx_runs": [each.summary for each in runs],
        },
    )


def medians(summaries: Sequence[Mapping[str, Any]]) -> Figures:
    """The median of each figure over some runs."""
    names = {key for each in summaries for key, value in each.items() if _is_figure(value)}
    found: Figures = {}
    for name in sorted(names):
        values = [each[name] for each in summaries if each.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    return found


def read_results(path: Path) -> Results:
    """A run directory.

    Raises:
        NotFoundError: There is none at `path`.
        ConfigError: It is damaged.
    """
    scenario = path / "scenario.yaml"
    if not scenario.is_file():
        raise NotFoundError(f"{path} is no run directory: it has no scenario.yaml")
    try:
        runs = [_read_run(each.parent) for each in (path / _RUNS).glob("*/summary.json")]
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        given = yaml.safe_load(scenario.read_text(encoding="utf-8"))
        read = Scenario.model_validate(given)
    except (OSError, ValueError, KeyError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    if not runs:
        raise NotFoundError(f"{path}: no run was finished there")
    return Results(path, read, about, tuple(runs))


def _read_run(path: Path) -> Run:
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return Run(path, summary["llx_variant"], summary["llx_repetition"], summary)


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:  # not splitlines: JSON may carry U+2028 as it is
        return list(file)


def _write_models(path: Path, models: Sequence[BaseModel]) -> None:
    text = "".join(f"{each.model_dump_json()}\n" for each in models)
    path.write_text(text, encoding="utf-8")


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
