"""A workload of the paper under several policies and seeds."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from llx.sim.cluster import Cluster
from llx.sim.presets import paper_cluster
from llx.sim.record import Result
from llx.sim.workload import generated


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: every policy with every seed, on the same arrivals."""

    workload: str
    rate: float
    num_requests: int
    num_instances: int
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    cv: float = 1.0
    high_share: float = 0.0
    headroom: int = 0


class Figure(BaseModel):
    """Mean over seeds, and its standard error (0 with one seed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    error: float


class Row(BaseModel):
    """One policy; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    request_mean_s: Figure
    request_p99_s: Figure
    prefill_mean_s: Figure
    prefill_p99_s: Figure
    decode_mean_s: Figure
    decode_p99_s: Figure
    preemption_loss_s: Figure
    moves: Figure
    instances: Figure
    trace_hashes: tuple[str, ...]


def simulate(plan: Plan, watch: Callable[[int], None]) -> list[Row]:
    """Run it.

    Args:
        plan: What.
        watch: Told how many requests have ended, over all runs.

    Raises:
        ConfigError: There is no such workload or policy.
    """
    rows = []
    num_before = 0
    for policy in plan.policies:
        config = paper_cluster(policy, plan.num_instances, plan.headroom)
        results = []
        for seed in plan.seeds:
            requests = generated(
                plan.workload,
                plan.rate,
                plan.num_requests,
                seed,
                cv=plan.cv,
                high_share=plan.high_share,
            )
            done = num_before
            cluster = Cluster(config, iter(requests), lambda count, done=done: watch(done + count))  # type: ignore[misc]
            results.append(cluster.run(seed))
            num_before += plan.num_requests
        rows.append(_row(policy, results))
    watch(num_before)
    return rows


def _row(policy: str, results: Sequence[Result]) -> Row:
    overall = [each.overall for each in results]
    return Row(
        policy=policy,
        request_mean_s=_figure([each.request.mean for each in overall]),
        request_p99_s=_figure([each.request.p99 for each in overall]),
        prefill_mean_s=_figure([each.prefill.mean for each in overall]),
        prefill_p99_s=_figure([each.prefill.p99 for each in overall]),
        decode_mean_s=_figure([each.decode.mean for each in overall]),
        decode_p99_s=_figure([each.decode.p99 for each in overall]),
        preemption_loss_s=_figure([each.loss.mean for each in overall]),
        moves=_figure([float(each.num_moves) for each in results]),
        instances=_figure([each.mean_instances for each in results]),
        trace_hashes=tuple(each.trace_hash for each in results),
    )


def _figure(values: Sequence[float]) -> Figure:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Figure(mean=statistics.fmean(values), error=spread / math.sqrt(len(values)))
