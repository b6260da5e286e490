"""Runs a scenario in virtual time: the same requests and rules, on the simulator's cluster.

What is kept is what a live run leaves, as far as there is such a thing: requests have no gaps
between tokens (the simulator jumps over decode steps that are alike), moves no sizes. Prompts are
computed whole, whatever they share with others. Nothing here asks a server.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llx.bench import cluster_watch as seen
from llx.bench.machine import about_machine
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Run, create, write_run, write_summary
from llx.bench.scenario import Scenario, Variant
from llx.bench.schedule import Planned, make_schedule
from llx.bench.summary import is_good
from llx.bench.turns import About, Measured, Observe, Progress, Turn, summary_of, turns_of
from llx.cluster_file import InstanceRange
from llx.core.model import ClassName, InstanceId, Nanos, RequestId, Tokens
from llx.core.scheduler.commands import Command, Move
from llx.core.scheduler.events import Event, InstanceJoined, MoveId, MoveOutcome
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError
from llx.scheduling_settings import ScalingSettings, with_changed_rules
from llx.sim.cluster import Cluster
from llx.sim.config import ClusterConfig
from llx.sim.record import Record as Simulated
from llx.sim.workload import SimRequest

_SECOND: Final = 1_000_000_000
_NOT_SIMULATED: Final = ("max_output_tokens_per_s",)
"""Figures that would need the time of every token."""
_LOOK_EVERY: Final = Nanos(_SECOND // 2)


@dataclass(frozen=True, slots=True)
class SimulatedBench:
    """A scenario, and the cluster that is simulated for it.

    Attributes:
        scenario: What.
        cluster: Where; of its rules what a variant says differs.
        policies: That rules may name.
        directory: Where results go; made here.
        model: Its name in the results.
    """

    scenario: Scenario
    cluster: ClusterConfig
    policies: Policies
    directory: Path
    model: str


def run_simulated(bench: SimulatedBench, observe: Observe = lambda _: None) -> list[Run]:
    """Run it all. Interrupted, it keeps what was simulated and raises KeyboardInterrupt.

    Raises:
        ConfigError: The scenario has something that is not simulated, a request does not fit into
            the engine, a rule or class is unknown, or a trace cannot be read.
        ConflictError: The directory exists.
    """
    scenario = bench.scenario
    _check(scenario)
    turns = turns_of(scenario)
    for each in turns:  # every mistake before the first run
        _load(bench, each)
    about = {**about_machine(), "target": {"url": None, "model": bench.model}}
    create(bench.directory, scenario, {**about, "cluster": None})
    runs: list[Run] = []
    try:
        for each in turns:
            _run_turn(bench, each, len(turns), runs, observe)
    finally:
        write_summary(bench.directory, scenario.name, runs)
    return runs


def _check(scenario: Scenario) -> None:
    """Refuse what only a server could do."""
    reasons = {
        "faults": bool(scenario.all_faults),
        "url": any(each.url for each in scenario.variants),
        "extra_body": any(each.extra_body for each in scenario.variants),
    }
    for key, is_there in reasons.items():
        if is_there:
            raise ConfigError(
                f"{key} has no meaning in the simulator",
                remedy="run the scenario against a cluster, or leave it out",
            )


@dataclass(frozen=True, slots=True)
class _Load:
    """A turn made ready: the cluster under the variant's rules, and what comes, in both forms."""

    cluster: ClusterConfig
    schedule: Sequence[Planned]
    requests: Sequence[SimRequest]


def _load(bench: SimulatedBench, turn: Turn) -> _Load:
    """What a turn simulates.

    Raises:
        ConfigError: A rule, class or length is wrong.
    """
    scenario, variant, cluster = bench.scenario, turn.variant, bench.cluster
    if variant.instances is not None:
        cluster = _with_instances(cluster, variant.instances)
    if variant.policy or variant.instances is not None:
        cluster = replace(cluster, pool=with_changed_rules(cluster.pool, variant.policy))
    bench.policies.check(cluster.pool)
    schedule = make_schedule(scenario.workload, turn.seed_of(scenario), variant.rate)
    return _Load(cluster, schedule, [_request(each, variant, cluster) for each in schedule])


def _with_instances(cluster: ClusterConfig, wanted: InstanceRange) -> ClusterConfig:
    """So many at first; a range is scaled as a live cluster's is where the file has no rule."""
    scaling = replace(cluster.pool.scaling, min_instances=wanted.min, max_instances=wanted.max)
    if scaling.rule == "none" and wanted.min < wanted.max:
        scaling = replace(scaling, rule=ScalingSettings().rule)
    pool = replace(cluster.pool, scaling=scaling)
    return replace(cluster, num_instances=wanted.min, pool=pool)


def _request(planned: Planned, variant: Variant, cluster: ClusterConfig) -> SimRequest:
    """As the simulator has it; who asks for no class gets the least urgent one."""
    longest = cluster.engine.max_model_len
    if planned.num_prompt + planned.num_outputs > longest:
        raise ConfigError(
            f"request {planned.number} of {planned.num_prompt} + {planned.num_outputs} tokens does "
            f"not fit into the engine's max_model_len of {longest}",
            remedy="shorter requests (longest), or another engine",
        )
    names = [each.name for each in cluster.pool.classes]
    asked = variant.served_as.get(planned.priority_class, planned.priority_class)
    name = ClassName(asked) if asked else names[-1]
    if name not in names:
        raise ConfigError(
            f"the simulated cluster has no priority class {name}",
            remedy=f"there are: {', '.join(names)}",
        )
    return SimRequest(
        Nanos(round(planned.at_s * _SECOND)),
        Tokens(planned.num_prompt),
        Tokens(planned.num_outputs),
        name,
    )


def _run_turn(
    bench: SimulatedBench, turn: Turn, num_turns: int, runs: list[Run], observe: Observe
) -> None:
    scenario, load, began = bench.scenario, _load(bench, turn), time.perf_counter()
    progress = Progress(
        turn.number, num_turns, turn.variant.name, turn.repetition, len(load.schedule)
    )

    def told(num_ended: int) -> None:
        progress.done = num_ended
        progress.elapsed_s = time.perf_counter() - began
        observe(progress)

    told(0)
    watch = _Watch()
    requests = iter(load.requests)
    cluster = Cluster(load.cluster, requests, told, watch.observe, bench.policies, watch)
    watch.cluster = cluster
    measured = Measured(timeline=watch.sights)
    try:
        cluster.run(turn.seed_of(scenario))
        measured.is_whole = True
    finally:
        watch.look()
        ended = zip(load.schedule, cluster.records, strict=False)  # the rest has not come yet
        measured.records = [_record(*each, load.cluster.link.hop) for each in ended]
        measured.moves = watch.moves()
        measured.duration_s = max((each.last_at or 0.0 for each in measured.records), default=0.0)
        summary = summary_of(scenario, turn, measured, About("simulator", bench.model))
        summary = {**summary, **dict.fromkeys(_NOT_SIMULATED)}
        lines = (each.as_line(0.0) for each in measured.records)
        runs.append(write_run(bench.directory, summary, lines, measured.timeline, measured.moves))
    progress.good = sum(is_good(each, scenario.slo) for each in measured.records)
    told(len(measured.records))


def _record(planned: Planned, simulated: Simulated, hop: Nanos) -> Record:
    """As a live run would have it; its clients are a hop away from the scheduler."""
    record = Record(
        planned.number,
        (simulated.request.arrival - hop) / _SECOND,
        planned.num_prompt,
        planned.num_outputs,
        planned.priority_class,
        instance=simulated.owner or "",
    )
    record.sent_at = record.planned_at
    if simulated.refusal is not None:
        record.outcome, record.error = Outcome.FAILED, f"refused: {simulated.refusal.value}"
    elif simulated.ended_at is not None:
        record.outcome = Outcome.OK
        record.num_outputs = record.usage_outputs = planned.num_outputs
    if simulated.first_at is not None:
        record.first_at, record.last_at = simulated.first_at / _SECOND, simulated.last_at / _SECOND
    return record


class _Watch:
    """What an onlooker of a live cluster keeps: its load over time, and its moves."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        """Set before the run begins."""
        self.sights: list[seen.Sight | seen.FaultNote] = []
        self._due = Nanos(0)
        self._preemptions: Counter[InstanceId] = Counter()
        self._begun: dict[MoveId, tuple[Nanos, Move]] = {}
        self._ended: dict[MoveId, seen.Move] = {}
        self._downtimes: dict[RequestId, Nanos] = {}
        self._now = Nanos(0)

    def observe(self, event: Event, now: Nanos, commands: Sequence[Command]) -> None:
        """`Observer`."""
        self._now = now
        for each in commands:
            if isinstance(each, Move):
                self._begun[each.move] = (now, each)
        is_beginning = isinstance(event, InstanceJoined) and not now
        if now >= self._due or is_beginning:  # instances join one after the other at time 0
            self._due = Nanos(now - now % _LOOK_EVERY + _LOOK_EVERY)
            self.look()

    def preempted(self, instance: InstanceId, count: int) -> None:
        """`Audience`."""
        self._preemptions[instance] += count

    def taken_over(self, request: RequestId, downtime: Nanos) -> None:
        """`Audience`."""
        self._downtimes[request] = downtime

    def move_ended(
        self, order: Move, request: RequestId | None, outcome: MoveOutcome, now: Nanos
    ) -> None:
        """`Audience`."""
        downtime = None if request is None else self._downtimes.pop(request, None)
        self._now = now
        self._ended[order.move] = self._move(order.move, outcome.value, downtime)

    def moves(self) -> list[seen.Move]:
        """All that were ordered, in that order."""
        return [self._ended.get(each) or self._move(each, "", None) for each in self._begun]

    def _move(self, move: MoveId, outcome: str, downtime: Nanos | None) -> seen.Move:
        begun, order = self._begun[move]
        return seen.Move(
            id=str(move),
            begun_s=begun / _SECOND,
            ended_s=self._now / _SECOND if outcome else None,
            source=order.source,
            target=order.target,
            outcome=outcome,
            why=order.decision.rule,
            num_tokens=None,
            num_stages=None,
            downtime_ms=None if downtime is None else downtime / 1e6,
            stall_ms=None,
        )

    def look(self) -> None:
        """Keep how the cluster is at this moment."""
        assert self.cluster is not None, "set before the run begins"
        pool = self.cluster.pool
        found = [self._load_of(name, each) for name, each in pool.instances.items()]
        found += [
            seen.InstanceLoad(name=f"starting-{number}", state="starting", is_cordoned=False)
            for number in range(pool.scaling.starting)
        ]
        self.sights.append(seen.Sight(at_s=self._now / _SECOND, instances=found))

    def _load_of(self, name: InstanceId, instance: Instance) -> seen.InstanceLoad:
        if not instance.has_reported:
            return seen.InstanceLoad(name=name, state="ready", is_cordoned=False)
        return seen.InstanceLoad(
            name=name,
            state="ready" if instance.is_usable else instance.state.value,
            is_cordoned=False,
            freeness=instance.freeness if instance.is_usable else None,
            blocks_used=instance.load.used,
            blocks_total=instance.load.total,
            running=instance.load.num_running,
            waiting=instance.load.num_waiting,
            preemptions=self._preemptions[name],
        )
