"""Runs a scenario: every variant, every repetition, in turns; what was measured is kept."""

import asyncio
import contextlib
import json
import secrets
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llx.bench.cluster_watch import ClusterWatch
from llx.bench.fault_injector import Injector, Strike
from llx.bench.generator import Generator, Target
from llx.bench.instance_turns import InstanceTurns
from llx.bench.machine import about_machine
from llx.bench.policy_turns import PolicyTurns
from llx.bench.prompts import Prompts
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Run, create, write_run, write_summary
from llx.bench.scenario import Scenario, Variant
from llx.bench.schedule import Planned, make_schedule
from llx.bench.summary import is_good
from llx.bench.turns import (
    About,
    Measured,
    Observe,
    Progress,
    Turn,
    check_any,
    summary_of,
    turns_of,
)
from llx.client import Cluster
from llx.errors import ConfigError, LlxError

_REFRESH_S: Final = 0.25
_RECENT: Final = 400
_WARMUP_SEED: Final = 1_000_003
_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A scenario and where it runs.

    Attributes:
        scenario: What.
        target: Whom it asks, unless a variant has a target of its own.
        directory: Where results go; made here.
        control: Of the cluster, if there is one to be watched.
        user: Who is at work, for the cluster's audit trail.
        strike: Does faults that are done on a host.
    """

    scenario: Scenario
    target: Target
    directory: Path
    control: Cluster | None = None
    user: str = ""
    strike: Strike | None = None


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


def run_bench(bench: Bench, observe: Observe = lambda _: None) -> list[Run]:
    """Run it all. Interrupted, it keeps what was measured and raises KeyboardInterrupt.

    Raises:
        ConfigError: Faults, and no cluster to inject them into; a trace that cannot be read.
        ConflictError: The directory exists, or the cluster has no room for a variant's instances.
        DeadlineError: A variant's instances do not come.
        LlxError: The cluster does not answer, or no request of a run came through.
    """
    if bench.scenario.all_faults and bench.control is None:
        raise ConfigError("faults need a cluster of llx: give --context instead of a URL")
    turns = turns_of(bench.scenario)
    of_whom = bench.control, bench.target.model, bench.scenario.variants, bench.user
    runs: list[Run] = []
    with PolicyTurns(*of_whom) as policies, InstanceTurns(*of_whom) as instances:
        create(bench.directory, bench.scenario, _about(bench))
        try:
            for turn in turns:
                policies.begin(turn.variant)
                instances.begin(turn.variant)
                _run_turn(bench, turn, len(turns), runs, observe, instances)
        finally:
            write_summary(bench.directory, bench.scenario.name, runs)
    return runs


def _run_turn(
    bench: Bench,
    turn: Turn,
    num_turns: int,
    runs: list[Run],
    observe: Observe,
    instances: InstanceTurns,
) -> None:
    scenario, variant = bench.scenario, turn.variant
    progress = Progress(turn.number, num_turns, variant.name, turn.repetition, planned=0)
    if scenario.warmup:
        _warm_up(bench, turn, replace(progress, is_warmup=True), observe)
    instances.open(variant)
    schedule = make_schedule(scenario.workload, turn.seed_of(scenario), variant.rate)
    load = _load(bench, variant, schedule)
    measured = Measured()
    watch = injector = None
    if bench.control is not None and variant.url is None:
        injector = Injector(
            bench.control, bench.target.model, scenario.faults_of(variant), bench.user, bench.strike
        )
        watch = ClusterWatch(bench.control, bench.target.model, injector, measured.timeline.append)
        watch.begin()
    try:
        asyncio.run(_measure(load, measured, progress, observe, watch))
    finally:
        if watch is not None:
            with contextlib.suppress(LlxError):  # a run without its moves is still a run
                measured.moves = watch.moves()
            watch.look()
        about = About("openai", load.target.model, f"{load.request_ids}-")
        summary = summary_of(scenario, turn, measured, about)
        lines = (each.as_line(measured.began_at) for each in measured.records)
        runs.append(write_run(bench.directory, summary, lines, measured.timeline, measured.moves))
    if injector is not None:  # interrupted, the watch has uncordoned all, and nobody waits
        injector.put_back()
    check_any(measured.records, f"variant {variant.name}")


def _warm_up(bench: Bench, turn: Turn, progress: Progress, observe: Observe) -> None:
    scenario, rate = bench.scenario, turn.variant.rate
    workload = scenario.workload.of_warmup(scenario.warmup)
    schedule = make_schedule(workload, scenario.seed + _WARMUP_SEED, rate)
    measured = Measured()
    asyncio.run(_measure(_load(bench, turn.variant, schedule), measured, progress, observe))
    check_any(measured.records, "warm-up")


def _load(bench: Bench, variant: Variant, schedule: Sequence[Planned]) -> _Load:
    target = replace(
        bench.target,
        url=variant.url or bench.target.url,
        tls=bench.target.tls if variant.url is None else None,
        extra_body={**bench.target.extra_body, **variant.extra_body},
        served_as=variant.served_as,
    )
    return _Load(bench.scenario, target, schedule, secrets.token_hex(4))


async def _measure(
    load: _Load,
    measured: Measured,
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


def _about(bench: Bench) -> Mapping[str, Any]:
    control = bench.control
    cluster = None if control is None else json.loads(control.status().model_dump_json())
    return {
        **about_machine(),
        "target": {"url": bench.target.url, "model": bench.target.model},
        "cluster": cluster,
    }
