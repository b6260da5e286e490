"""Dispatch policies: which instance a request is sent to.

A policy is one function of an instance that gives a figure, of which the least is best. There are
two kinds. One looks at the instance alone (`ByInstance`): the pool keeps its instances in that
order, and a dispatch takes the first with room. The other looks at the request too (`ByRequest`):
it is asked about a bounded sample, the freest instances and those that have the request's prefix.

Whoever adds a policy writes the function here (or in a package with an entry point in the group
`llx.policies`), names it in the table, and writes a scenario in `tests/scenarios`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from llx.core.model import blocks_for
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.queues import Queued


@dataclass(frozen=True, slots=True)
class ByInstance:
    """A policy by a figure of the instance alone, least first; of equals the freer one.

    `unit` names the figure; `sign` is -1 if it is shown with the other sign.
    """

    figure: Callable[[Instance], float]
    unit: str
    sign: int = 1


@dataclass(frozen=True, slots=True)
class ByRequest:
    """A policy by a figure of instance and request. Least first."""

    figure: Callable[[Instance, Queued, PoolConfig], float]
    unit: str
    sign: int = 1


DispatchPolicy = ByInstance | ByRequest


_A_FEW: Final = 512
"""Tokens of prompts; whoever has so many more before it is later."""


def soonest(instance: Instance) -> float:
    """Where a request would begin soonest: the fewest tokens of other prompts before it.

    In steps of a few hundred tokens, so that mostly it is nobody's, and the freer one's turn. The
    freest alone may have but one request, whose prompt keeps it busy for seconds.
    """
    ahead = instance.load.waiting_tokens + instance.charged_tokens  # `tokens_ahead`, in line
    return ahead // _A_FEW * _A_FEW


def freest(instance: Instance) -> float:
    """The freest first (Llumnix)."""
    return -instance.freeness


def least_loaded(instance: Instance) -> float:
    """The least share of memory used or asked for first, all that waits counted (INFaaS++)."""
    load = instance.load
    return (load.used + instance.committed) / max(1, load.total)


def round_robin(instance: Instance) -> float:
    """Whose last turn is longest ago first."""
    return instance.last_dispatch


def prefix_aware(instance: Instance, request: Queued, config: PoolConfig) -> float:
    """The least to compute before the request's first token, what waits there counted.

    A cached prefix draws the request only as long as the queue before it is shorter than what the
    prefix saves: the guard against sending all that share a prompt to one instance. Among equals it
    is the freer one.
    """
    return request.tokens_at(instance) + instance.tokens_ahead


def slo_aware(instance: Instance, request: Queued, config: PoolConfig) -> float:
    """The least predicted share of what the request's class is promised; above 1 it is broken.

    The worse of time to first token (its own prefill and what waits before it, in steps that decode
    for the others) and time per token (a step with it in the batch). A class without a promise is
    judged by the sum of both, in seconds.
    """
    step, load = config.step_time, instance.load
    batch = load.num_running + instance.num_charged + 1
    demand = blocks_for(request.tokens + 1, load.block_size)
    tpot = step.base + step.per_request * batch + step.per_block * (load.used + demand)
    tokens = request.tokens_at(instance) + instance.tokens_ahead
    num_steps = max(1, -(-tokens // config.step_tokens))
    ttft = num_steps * tpot + step.per_prefill_token * tokens
    slo = config.classes[request.rank].slo
    return (ttft + tpot) / 1e9 if slo is None else max(ttft / slo.ttft, tpot / slo.tpot)


DISPATCH: Mapping[str, DispatchPolicy] = MappingProxyType(
    {
        "soonest": ByInstance(soonest, "tokens ahead"),
        "freest": ByInstance(freest, "freeness", sign=-1),
        "least_loaded": ByInstance(least_loaded, "load"),
        "round_robin": ByInstance(round_robin, "last turn"),
        "prefix_aware": ByRequest(prefix_aware, "tokens to compute"),
        "slo_aware": ByRequest(slo_aware, "share of the promise"),
    }
)
