"""Runs a scenario: every variant, every repetition, in turns; what was measured is kept."""

import asyncio
import contextlib
import json
import random
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from llx.bench.cluster_watch import ClusterWatch, FaultNote, Move, Sight
from llx.bench.generator import Generator, Target
from llx.bench.machine import about_machine
from llx.bench.policy_turns import PolicyTurns
from llx.bench.prompts import Prompts
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Run, create, write_run, write_summary
from llx.bench.scenario import Scenario, Variant
from llx.bench.schedule import Planned, make_schedule
from llx.bench.sights import sight_figures
from llx.bench.summary import by_class, is_good, summarise
from llx.client import ControlClient
from llx.errors import ConfigError, LlxError, RemoteError

_REFRESH_S: Final = 0.25
_RECENT: Final = 400
_WARMUP_SEED: Final = 1_000_003
_MS: Final = 1000.0


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
class Bench:
    """A scenario and where it runs.

    Attributes:
        scenario: What.
        target: Whom it asks, unless a variant has a target of its own.
        directory: Where results go; made here.
        control: Of the cluster, if there is one to be watched.
        user: Who is at work, for the cluster's audit trail.
    """

    scenario: Scenario
    target: Target
    directory: Path
    control: ControlClient | None = None
    user: str = ""


@dataclass(frozen=True, slots=True)
class _Turn:
    number: int
    variant: Variant
    repetition: int


@dataclass(frozen=True, slots=True)
class _Load:
    """What one run sends, to whom. `salt` makes its prompts and request ids its own."""

    scenario: Scenario
    target: Target
    schedule: Sequence[Planned]
    salt: str

    @property
    def request_ids(self) -> str:
        return f"bench-{self.salt}"


@dataclass(slots=True)
class _Measured:
    """What a run has brought so far."""

    records: list[Record] = field(default_factory=list)
    timeline: list[Sight | FaultNote] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    began_at: float = 0.0
    duration_s: float = 0.0
    is_whole: bool = False


def run_bench(bench: Bench, observe: Observe = lambda _: None) -> list[Run]:
    """Run it all. Interrupted, it keeps what was measured and raises KeyboardInterrupt.

    Raises:
        ConfigError: Faults, and no cluster to inject them into; a trace that cannot be read.
        ConflictError: The directory exists.
        LlxError: The cluster does not answer, or no request of a run came through.
    """
    if bench.scenario.faults and bench.control is None:
        raise ConfigError("faults need a cluster of llx: give --context instead of a URL")
    turns, variants = _turns(bench.scenario), bench.scenario.variants
    runs: list[Run] = []
    with PolicyTurns(bench.control, bench.target.model, variants, bench.user) as policies:
        create(bench.directory, bench.scenario, _about(bench))
        try:
            for turn in turns:
                policies.begin(turn.variant)
                _run_turn(bench, turn, len(turns), runs, observe)
        finally:
            write_summary(bench.directory, bench.scenario.name, runs)
    return runs


def _turns(scenario: Scenario) -> list[_Turn]:
    """Every repetition has all variants, in an order of its own: drift hits them alike."""
    found: list[_Turn] = []
    draw = random.Random(f"turns {scenario.seed}")
    for repetition in range(scenario.repetitions):
        for each in draw.sample(scenario.variants, len(scenario.variants)):
            found.append(_Turn(len(found) + 1, each, repetition))
    return found


def _run_turn(bench: Bench, turn: _Turn, num_turns: int, runs: list[Run], observe: Observe) -> None:
    scenario, variant = bench.scenario, turn.variant
    progress = Progress(turn.number, num_turns, variant.name, turn.repetition, planned=0)
    if scenario.warmup:
        _warm_up(bench, turn, replace(progress, is_warmup=True), observe)
    seed = scenario.seed + turn.repetition
    load = _load(bench, variant, make_schedule(scenario.workload, seed, variant.rate))
    measured = _Measured()
    watch = None
    if bench.control is not None and variant.url is None:
        watch = ClusterWatch(bench.control, scenario.faults, bench.user, measured.timeline.append)
        watch.begin()
    try:
        asyncio.run(_measure(load, measured, progress, observe, watch))
    finally:
        if watch is not None:
            with contextlib.suppress(LlxError):  # a run without its moves is still a run
                measured.moves = watch.moves()
            watch.look()
        summary = _summary(load, turn, measured, seed)
        lines = (each.as_line(measured.began_at) for each in measured.records)
        runs.append(write_run(bench.directory, summary, lines, measured.timeline, measured.moves))
        if watch is not None and scenario.faults:
            watch.put_back()
    _check_any(measured.records, f"variant {variant.name}")


def _warm_up(bench: Bench, turn: _Turn, progress: Progress, observe: Observe) -> None:
    scenario, rate = bench.scenario, turn.variant.rate
    workload = scenario.workload.model_copy(update={"requests": scenario.warmup})
    schedule = make_schedule(workload, scenario.seed + _WARMUP_SEED, rate)
    measured = _Measured()
    asyncio.run(_measure(_load(bench, turn.variant, schedule), measured, progress, observe))
    _check_any(measured.records, "warm-up")


def _load(bench: Bench, variant: Variant, schedule: Sequence[Planned]) -> _Load:
    target = replace(
        bench.target,
        url=variant.url or bench.target.url,
        extra_body={**bench.target.extra_body, **variant.extra_body},
        served_as=variant.served_as,
    )
    return _Load(bench.scenario, target, schedule, secrets.token_hex(4))


async def _measure(
    load: _Load,
    measured: _Measured,
    progress: Progress,
    observe: Observe,
    watch: ClusterWatch | None = None,
) -> None:
    """One run of a schedule; what comes of it is put into `measured` at once."""
    live = _Live(progress, load.scenario)

    def on_record(record: Record) -> None:
        measured.records.append(record)
        live.add(record)

    longest = max(segment.num_tokens for each in load.schedule for segment in each.segments)
    prompts = Prompts(load.salt, longest)
    generator = Generator(load.target, load.schedule, prompts, load.request_ids, on_record)
    progress.planned = len(load.schedule)
    beside = [asyncio.create_task(live.report(generator, observe))]
    if watch is not None:
        beside.append(asyncio.create_task(watch.run()))
    try:
        await generator.run()
        measured.is_whole = True
    finally:
        if generator.began_at:
            measured.began_at = generator.began_at
            measured.duration_s = time.perf_counter() - generator.began_at
        for task in beside:
            task.cancel()
        ends = await asyncio.gather(*beside, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


class _Live:
    """Figures of a run under way."""

    def __init__(self, progress: Progress, scenario: Scenario) -> None:
        self._progress = progress
        self._slo = scenario.slo
        self._ttfts: deque[float] = deque(maxlen=_RECENT)
        self._gaps: deque[float] = deque(maxlen=_RECENT)

    def add(self, record: Record) -> None:
        """A request has ended."""
        self._progress.done += 1
        self._progress.failed += record.outcome is Outcome.FAILED
        self._progress.good += is_good(record, self._slo)
        if record.outcome is Outcome.OK and record.ttft_s is not None:
            self._ttfts.append(record.ttft_s * _MS)
            if record.tpot_s is not None:
                self._gaps.append(record.tpot_s * _MS)

    async def report(self, generator: Generator, observe: Observe) -> None:
        """Tell how far it is, until cancelled."""
        progress = self._progress
        while True:
            progress.sent, progress.in_flight = generator.num_sent, generator.num_in_flight
            if generator.began_at:
                progress.elapsed_s = time.perf_counter() - generator.began_at
            progress.ttft_ms = statistics.median(self._ttfts) if self._ttfts else None
            progress.itl_ms = statistics.median(self._gaps) if self._gaps else None
            observe(progress)
            await asyncio.sleep(_REFRESH_S)


def _summary(load: _Load, turn: _Turn, measured: _Measured, seed: int) -> Mapping[str, Any]:
    scenario = load.scenario
    arrivals = scenario.workload.arrivals
    rate = turn.variant.rate or (None if arrivals is None else arrivals.rate)
    cv = None if arrivals is None else arrivals.cv
    downtimes = [each.downtime_ms for each in measured.moves if each.downtime_ms is not None]
    errors = [each.error for each in measured.records if each.error]
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "openai",
        "endpoint_type": "openai",
        "label": turn.variant.name,
        "model_id": load.target.model,
        "request_rate": rate,
        "burstiness": None if not cv else cv**-2,
        **summarise(measured.records, measured.duration_s, scenario.slo),
        "llx_variant": turn.variant.name,
        "llx_repetition": turn.repetition,
        "llx_turn": turn.number,
        "llx_seed": seed,
        "llx_request_ids": f"{load.request_ids}-",
        "llx_is_whole": measured.is_whole,
        "llx_migrations": sum(each.outcome == "moved" for each in measured.moves),
        **sight_figures([each for each in measured.timeline if isinstance(each, Sight)]),
        "llx_downtime_ms": downtimes,
        "llx_errors": dict(_counted(errors)),
        "llx_classes": by_class(measured.records, measured.duration_s, scenario.slo),
    }


def _counted(errors: Sequence[str], most: int = 20) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for each in errors:
        counts[each] = counts.get(each, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:most]


def _check_any(records: Sequence[Record], what: str) -> None:
    """Whether anything came through.

    Raises:
        RemoteError: Nothing did; says why the first request failed.
    """
    failed = next((each for each in records if each.outcome is Outcome.FAILED), None)
    if failed is not None and not any(each.outcome is Outcome.OK for each in records):
        raise RemoteError(f"{what}: no request came through; the first: {failed.error}")


def _about(bench: Bench) -> Mapping[str, Any]:
    control = bench.control
    cluster = None if control is None else json.loads(control.status().model_dump_json())
    return {
        **about_machine(),
        "target": {"url": bench.target.url, "model": bench.target.model},
        "cluster": cluster,
    }
