"""A plan, run by run; on several processes if that is wanted."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError
from llx.scheduling_settings import installed_policies
from llx.sim.cluster import Cluster
from llx.sim.onlookers import Onlookers, Wishes
from llx.sim.plan import Job, Plan, Variant
from llx.sim.samples import Run, samples_by_class
from llx.sim.supply import Supply, supply_of
from llx.sim.timeline import Timeline
from llx.sim.workload import SimRequest

Watch = Callable[[str, int], None]
"""Told the name of the run under way, and how many requests have ended over all runs."""


@dataclass(frozen=True, slots=True)
class Done:
    """A run that is over.

    Attributes:
        run: Its figures.
        timeline: Its course, if that was wanted of it.
        failure: Why its recording has ended early, if it has.
    """

    run: Run
    timeline: Timeline | None = None
    failure: str | None = None


def prepare(plan: Plan, policies: Policies) -> Supply:
    """The requests of a plan, once everything that it names is known to be there.

    Raises:
        ConfigError: It names what there is not, a trace cannot be read, or all seeds are alike.
    """
    for each in plan.variants:
        policies.check(each.cluster.pool)
    longest = min(each.cluster.engine.max_model_len for each in plan.variants)
    supply = supply_of(plan.source, longest)
    for rate in plan.rates:
        if len(plan.seeds) > 1 and not supply.has_seeds(rate):
            raise ConfigError(
                "every seed would be the same run: the trace says when which request comes",
                remedy="one seed, fewer requests than the trace has, or a rate to be drawn",
            )
        supply.requests(plan.seeds[0], rate)
    return supply


def simulate(
    plan: Plan, supply: Supply, policies: Policies, wishes: Wishes, watch: Watch
) -> Iterator[Done]:
    """Run it: rate by rate, policy by policy, seed by seed.

    Args:
        plan: What.
        supply: Of requests (`prepare`).
        policies: That pools may name.
        wishes: What is wanted besides figures.
        watch: Told how far it is.

    Raises:
        ConfigError: A recording cannot be made.
    """
    for number, job in enumerate(plan.jobs()):
        name, before = run_name(plan, job), number * supply.count
        watch(name, before)
        told = partial(_told, watch, name, before)
        yield _do(plan, supply, policies, wishes, job, told)
    watch("", plan.num_runs * supply.count)


def simulate_on(
    num_processes: int, plan: Plan, supply: Supply, wishes: Wishes, watch: Watch
) -> Sequence[Done]:
    """As `simulate` with the policies that are installed, several runs at a time.

    Raises:
        ConfigError: A recording cannot be made.
    """
    jobs = plan.jobs()
    # Not forked: the bar on the terminal has a thread of its own.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_do_alone, plan, supply, wishes, job) for job in jobs]
        try:
            for count, _ in enumerate(as_completed(futures), 1):
                watch(f"{len(jobs)} runs", count * supply.count)
            return [each.result() for each in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def run_once(
    plan: Plan, variant: Variant, requests: list[SimRequest], policies: Policies, seed: int
) -> Run:
    """One run by itself."""
    cluster = Cluster(variant.cluster, iter(requests), policies=policies)
    result = cluster.run(seed)
    return Run(variant.policy, None, seed, result, samples_by_class(cluster.records, plan.goals))


def run_name(plan: Plan, job: Job) -> str:
    """``llx rate 7.4 seed 3``, without what all runs have in common."""
    parts = [job.variant.policy]
    if len(plan.rates) > 1 and job.rate is not None:
        parts.append(f"rate {job.rate:g}")
    if len(plan.seeds) > 1:
        parts.append(f"seed {job.seed}")
    return " ".join(parts)


def _do_alone(plan: Plan, supply: Supply, wishes: Wishes, job: Job) -> Done:
    return _do(plan, supply, installed_policies(), wishes, job, None)


def _do(
    plan: Plan,
    supply: Supply,
    policies: Policies,
    wishes: Wishes,
    job: Job,
    told: Callable[[int], None] | None,
) -> Done:
    requests = supply.requests(job.seed, job.rate)
    onlookers = Onlookers(wishes, plan, job)
    try:
        cluster = Cluster(job.variant.cluster, iter(requests), told, onlookers.observer(), policies)
        result = cluster.run(job.seed)
    finally:
        onlookers.close()
    samples = samples_by_class(cluster.records, plan.goals)
    run = Run(job.variant.policy, job.rate, job.seed, result, samples)
    return Done(run, onlookers.timeline, onlookers.failure)


def _told(watch: Watch, name: str, before: int, count: int) -> None:
    watch(name, before + count)
