"""Auto-scaling: how many instances a pool has.

A rule is a function in a table. It looks at the pool and says what it wants; the scheduler does it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llx.core.model import Nanos
from llx.core.scheduler.config import Scaling
from llx.core.scheduler.decision import Decision, Option
from llx.core.scheduler.events import InstanceState
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.pool import Pool


@dataclass(frozen=True, slots=True)
class Grow:
    """So many more instances."""

    count: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Shrink:
    """Without this instance, once it is empty."""

    instance: Instance
    decision: Decision


Scale = Grow | Shrink | None
ScalingRule = Callable[[Pool, Nanos], Scale]


def fixed(pool: Pool, now: Nanos) -> Scale:
    """As many as there are."""
    return None


def band(pool: Pool, now: Nanos) -> Scale:
    """Keep the average freeness within a band (Llumnix, section 4.4).

    It is the average of what the instances say now, work on its way and queues' heads included,
    never of what has finished. Below the band for long enough, or a queue for as long: one more.
    Above it for long enough, and nobody waits: one less, the cheapest to empty, provided that what
    it has fits elsewhere and the average would not fall below the band without it. One more is
    one that is being emptied, if there is any: the driver uses that again, also at the maximum.
    """
    rules, state = pool.config.scaling, pool.scaling
    if state.asked_at is not None and now - state.asked_at >= rules.start_deadline:
        state.starting, state.asked_at = 0, None
    there = [each for each in pool.instances.values() if not _is_missed(each, rules, now)]
    active = [each for each in there if each.wanted is InstanceState.UP]
    count = len(active) + state.starting
    may_add = rules.max_instances - len(there) - state.starting
    has_failed = state.failed_at is not None and now - state.failed_at < rules.cooldown
    missing = min(rules.min_instances - count, may_add)
    if missing > 0 and not has_failed:
        return Grow(missing, _why(pool, "fewer than the minimum", None))
    known = [each for each in active if each.is_usable]
    if not known:
        return None
    # Not sum(), whose rounding differs between versions of Python.
    average = math.fsum(each.freeness for each in known) / len(known)
    waits = bool(pool.queues)
    state.low_since = _since(state.low_since, average < rules.low or waits, now)
    state.high_since = _since(state.high_since, average > rules.high and not waits, now)
    is_above = count > rules.max_instances
    if state.changed_at is not None and now - state.changed_at < rules.cooldown and not is_above:
        return None
    is_waiting = state.starting or has_failed or _is_unheard(pool, active, now)
    wants_more = _lasts(state.low_since, rules.sustain, now) and not is_waiting
    if wants_more and (may_add > 0 or any(map(_may_be_kept, there))):
        why = "less free than the band" if average < rules.low else "a queue stays"
        return Grow(1, _why(pool, why, average))
    wants_less = _lasts(state.high_since, rules.sustain, now) and len(known) > rules.min_instances
    if not (wants_less or is_above) or state.starting:
        return None
    return _shrink(pool, known, average, is_above)


def _shrink(pool: Pool, known: list[Instance], average: float, is_above: bool) -> Shrink | None:
    """Without whoever is cheapest to empty, if the others can take what it has."""
    cheapest, *others = sorted(known, key=_cost)
    spare = sum(max(0, each.spare) for each in others)
    taken = cheapest.load.used + cheapest.committed
    slots = sum(max(0, pool.config.max_requests - each.num_requests) for each in others)
    fits = taken <= spare and cheapest.num_requests <= slots
    if not others or not (fits or is_above):
        return None
    batch = max(1, sum(each.batch for each in known))
    after = (spare - taken) / max(batch, len(others))
    if after < pool.config.scaling.low and not is_above:
        return None
    why = "more than the maximum" if is_above else "freer than the band"
    return Shrink(cheapest, _why(pool, why, average, [cheapest, others[0]]))


def _cost(instance: Instance) -> tuple[int, int, int]:
    """Blocks to copy, requests to move; of equals whoever joined last."""
    return instance.load.used + instance.committed, instance.num_requests, -instance.ordinal


def _is_missed(instance: Instance, rules: Scaling, now: Nanos) -> bool:
    """Whether an instance has been lost for so long that it is not counted on."""
    return instance.lost_at is not None and now - instance.lost_at >= rules.lost_grace


def _may_be_kept(instance: Instance) -> bool:
    """Whether an instance is being emptied and is not empty yet, so that it can be used again."""
    return instance.state is InstanceState.TERMINATING and not instance.is_emptied


def _is_unheard(pool: Pool, active: list[Instance], now: Nanos) -> bool:
    """Whether one of them has joined after the last change and said nothing of its load yet."""
    changed_at = pool.scaling.changed_at
    if changed_at is None or now - changed_at >= pool.config.scaling.start_deadline:
        return False
    return any(not each.is_known and each.lost_at is None for each in active)


def _since(before: Nanos | None, holds: bool, now: Nanos) -> Nanos | None:
    if not holds:
        return None
    return now if before is None else before


def _lasts(since: Nanos | None, sustain: Nanos, now: Nanos) -> bool:
    return since is not None and now - since >= sustain


def _why(
    pool: Pool, rule: str, average: float | None, by_cost: Sequence[Instance] = ()
) -> Decision:
    facts: list[tuple[str, float | str]] = []
    if average is not None:
        facts.append(("average freeness", average))
    facts.append(("starting", pool.scaling.starting))
    costs = [Option(each.name, each.load.used + each.committed) for each in by_cost[:2]]
    return Decision(
        rule=rule,
        unit="blocks to move",
        chosen=costs[0] if costs else None,
        next_best=costs[1] if costs else None,
        num_instances=len(pool.instances),
        left_out=tuple((reason, count) for reason, count in pool.closed.items() if count),
        facts=tuple(facts),
    )


SCALING: Mapping[str, ScalingRule] = MappingProxyType({"none": fixed, "band": band})
