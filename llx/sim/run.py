"""A plan, run by run."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Protocol

from llx.core.scheduler.policies import ENTRY_POINTS, Policies, extended
from llx.errors import ConfigError
from llx.sim.cluster import Cluster, Observer
from llx.sim.plan import Plan, Variant
from llx.sim.samples import Run, samples_by_class
from llx.sim.supply import Supply, supply_of
from llx.sim.workload import SimRequest

Watch = Callable[[str, int], None]
"""Told the name of the run under way, and how many requests have ended over all runs."""


class Observers(Protocol):
    """Whoever looks on while a run is under way."""

    def of(self, variant: Variant, rate: float | None, seed: int) -> Observer | None:
        """The observer of that run, if it has one. The run before it is over."""


def installed_policies() -> Policies:
    """llx's own, and those that installed packages bring (docs/scheduler.md, "A new policy").

    Raises:
        ConfigError: A package brings one in a wrong way.
    """
    return extended(entry_points(group=ENTRY_POINTS))


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
    plan: Plan, supply: Supply, policies: Policies, observers: Observers, watch: Watch
) -> Iterator[Run]:
    """Run it: rate by rate, policy by policy, seed by seed.

    Args:
        plan: What.
        supply: Of requests (`prepare`).
        policies: That pools may name.
        observers: Who looks on.
        watch: Told how far it is.
    """
    num_before = 0
    for rate in plan.rates:
        for variant in plan.variants:
            for seed in plan.seeds:
                requests = supply.requests(seed, rate)
                observe = observers.of(variant, rate, seed)
                name = run_name(plan, variant.policy, rate, seed)

                def on(count: int, name: str = name, before: int = num_before) -> None:
                    watch(name, before + count)

                on(0)
                cluster = Cluster(variant.cluster, iter(requests), on, observe, policies)
                result = cluster.run(seed)
                samples = samples_by_class(cluster.records, plan.goals)
                yield Run(variant.policy, rate, seed, result, samples)
                num_before += len(requests)
                on(len(requests))


def run_once(
    plan: Plan, variant: Variant, requests: list[SimRequest], policies: Policies, seed: int
) -> Run:
    """One run by itself."""
    cluster = Cluster(variant.cluster, iter(requests), None, None, policies)
    result = cluster.run(seed)
    return Run(variant.policy, None, seed, result, samples_by_class(cluster.records, plan.goals))


def run_name(plan: Plan, policy: str, rate: float | None, seed: int) -> str:
    """``llx rate 7.4 seed 3``, without what all runs have in common."""
    parts = [policy]
    if len(plan.rates) > 1 and rate is not None:
        parts.append(f"rate {rate:g}")
    if len(plan.seeds) > 1:
        parts.append(f"seed {seed}")
    return " ".join(parts)
