"""The turns of a benchmark, live or simulated: in which order, how far, and what came of each."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llx.bench.cluster_watch import FaultNote, Move, Sight
from llx.bench.record import Outcome, Record
from llx.bench.scenario import Scenario, Variant
from llx.bench.sights import sight_figures
from llx.bench.summary import by_class, summarise
from llx.errors import RemoteError


@dataclass(slots=True)
class Progress:
    """How far a benchmark is; latencies are medians of the latest requests, in milliseconds."""

    turn: int
    num_turns: int
    variant: str
    repetition: int
    planned: int
    is_warmup: bool = False
    elapsed_s: float = 0.0
    sent: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    good: int = 0
    ttft_ms: float | None = None
    itl_ms: float | None = None


Observe = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one variant: the `number`th, from 1."""

    number: int
    variant: Variant
    repetition: int

    def seed_of(self, scenario: Scenario) -> int:
        """Of its schedule: each repetition has its own, the same for all variants."""
        return scenario.seed + self.repetition


@dataclass(frozen=True, slots=True)
class About:
    """Whom a run asked: `backend` and the model's name; and how the requests' ids began."""

    backend: str
    model: str
    request_ids: str = ""


@dataclass(slots=True)
class Measured:
    """What a run has brought so far."""

    records: list[Record] = field(default_factory=list)
    timeline: list[Sight | FaultNote] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    began_at: float = 0.0
    duration_s: float = 0.0
    is_whole: bool = False


def turns_of(scenario: Scenario) -> list[Turn]:
    """Every repetition has all variants, in an order of its own: drift hits them alike."""
    found: list[Turn] = []
    draw = random.Random(f"turns {scenario.seed}")
    for repetition in range(scenario.repetitions):
        for each in draw.sample(scenario.variants, len(scenario.variants)):
            found.append(Turn(len(found) + 1, each, repetition))
    return found


def summary_of(
    scenario: Scenario, turn: Turn, measured: Measured, about: About
) -> Mapping[str, Any]:
    """The summary of a run, as its summary.json has it."""
    arrivals = scenario.workload.arrivals
    rate = None
    if arrivals is not None:
        rate = (turn.variant.rate or arrivals.rate) * arrivals.mean_share
    cv = None if arrivals is None else arrivals.cv
    downtimes = [each.downtime_ms for each in measured.moves if each.downtime_ms is not None]
    errors = [each.error for each in measured.records if each.error]
    faults = [each for each in measured.timeline if isinstance(each, FaultNote)]
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": about.backend,
        "endpoint_type": about.backend,
        "label": turn.variant.name,
        "model_id": about.model,
        "request_rate": rate,
        "burstiness": None if not cv else cv**-2,
        **summarise(measured.records, measured.duration_s, scenario.slo),
        "llx_variant": turn.variant.name,
        "llx_repetition": turn.repetition,
        "llx_turn": turn.number,
        "llx_seed": turn.seed_of(scenario),
        "llx_request_ids": about.request_ids,
        "llx_is_whole": measured.is_whole,
        "llx_migrations": sum(each.outcome == "moved" for each in measured.moves),
        **sight_figures([each for each in measured.timeline if isinstance(each, Sight)]),
        "llx_downtime_ms": downtimes,
        "llx_errors": dict(_counted(errors)),
        "llx_faults_not_done": [f"{each.words}: {each.error}" for each in faults if each.error],
        "llx_classes": by_class(measured.records, measured.duration_s, scenario.slo),
    }


def _counted(errors: Sequence[str], most: int = 20) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for each in errors:
        counts[each] = counts.get(each, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:most]


def check_any(records: Sequence[Record], what: str) -> None:
    """Whether anything came through.

    Raises:
        RemoteError: Nothing did; says why the first request failed.
    """
    failed = next((each for each in records if each.outcome is Outcome.FAILED), None)
    if failed is not None and not any(each.outcome is Outcome.OK for each in records):
        raise RemoteError(f"{what}: no request came through; the first: {failed.error}")
