"""Auto-scaling: how many instances a pool has.

A rule is a function in a table. It looks at the pool and says what it wants; the scheduler does it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llx.core.model import Nanos, blocks_for
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
    return _scale(pool, now, _grow_by_band)


def demand(pool: Pool, now: Nanos) -> Scale:
    """As many more, at once, as the work that is there lacks; fewer as by `band`.

    An engine takes a minute to start. Who asks for one at a time, and for the next only when that
    is there, runs after a burst for many minutes. So what is starting counts as if it was there and
    empty, everything that waits counts as if it ran there, and what is missing for a freeness of
    `low` is asked for, as soon as it has been missing for `grow_after`; no cooldown comes before.
    """
    return _scale(pool, now, _grow_by_demand)


@dataclass(frozen=True, slots=True)
class _Found:
    """The instances of a pool, as scaling counts them.

    Attributes:
        active: Up, or to be up when heard of again; of them `known` can be used now.
        count: The active ones, and those that are starting.
        may_add: So many more, new ones or some that are being emptied.
        average: Freeness of the known.
        waits: Whether anybody is in a queue.
        has_failed: A start has failed a short while ago.
    """

    active: list[Instance]
    known: list[Instance]
    count: int
    may_add: int
    average: float
    waits: bool
    has_failed: bool


Growth = Callable[[Pool, _Found, Nanos], Grow | None]


def _scale(pool: Pool, now: Nanos, grow: Growth) -> Scale:
    """The minimum; else as `grow` says; else one less, if the band says so."""
    rules, state = pool.config.scaling, pool.scaling
    if state.asked_at is not None and now - state.asked_at >= rules.start_deadline:
        state.starting, state.asked_at = 0, None
    there = [each for each in pool.instances.values() if not _is_missed(each, rules, now)]
    active = [each for each in there if each.wanted is InstanceState.UP]
    count = len(active) + state.starting
    free = rules.max_instances - len(there) - state.starting
    has_failed = state.failed_at is not None and now - state.failed_at < rules.cooldown
    missing = min(rules.min_instances - count, free)
    if missing > 0 and not has_failed:
        return Grow(missing, _why(pool, "fewer than the minimum", None))
    known = [each for each in active if each.is_usable]
    if not known:
        return None
    # Not sum(), whose rounding differs between versions of Python.
    average = math.fsum(each.freeness for each in known) / len(known)
    waits = bool(pool.queues)
    may_add = max(0, free) + sum(map(_may_be_kept, there))
    found = _Found(active, known, count, may_add, average, waits, has_failed)
    state.high_since = _since(state.high_since, average > rules.high and not waits, now)
    wanted = grow(pool, found, now)
    if wanted is not None:
        return wanted
    is_above = count > rules.max_instances
    wants_less = _lasts(state.high_since, rules.sustain, now) and len(known) > rules.min_instances
    is_due = is_above or (wants_less and not _rests(pool, now))
    return _shrink(pool, known, average, is_above) if is_due and not state.starting else None


def _grow_by_band(pool: Pool, found: _Found, now: Nanos) -> Grow | None:
    rules, state = pool.config.scaling, pool.scaling
    is_below = found.average < rules.low
    state.low_since = _since(state.low_since, is_below or found.waits, now)
    is_waiting = state.starting or found.has_failed or _is_unheard(pool, found.active, now)
    is_over = found.count > rules.max_instances
    if not _lasts(state.low_since, rules.sustain, now) or is_waiting or not found.may_add:
        return None
    if _rests(pool, now) and not is_over:
        return None
    return Grow(
        1, _why(pool, "less free than the band" if is_below else "a queue stays", found.average)
    )


def _grow_by_demand(pool: Pool, found: _Found, now: Nanos) -> Grow | None:
    rules, state = pool.config.scaling, pool.scaling
    missing = min(_missing(pool, found), found.may_add)
    state.missing_since = _since(state.missing_since, missing > 0, now)
    state.low_since = _since(state.low_since, missing > 0 or found.waits, now)
    if found.has_failed:
        return None
    if missing > 0 and _lasts(state.missing_since, rules.grow_after, now):
        return Grow(missing, _why(pool, "too few for what is there", found.average))
    # Something else than blocks and requests is short: prompts come faster than they are computed.
    is_waiting = state.starting or _is_unheard(pool, found.active, now) or _rests(pool, now)
    stays = found.waits and _lasts(state.low_since, rules.sustain, now)
    if not stays or is_waiting or not found.may_add:
        return None
    return Grow(1, _why(pool, "a queue stays", found.average))


def _missing(pool: Pool, found: _Found) -> int:
    """Instances that are missing for all work there is to run with a freeness of `low`.

    Those to come have the size of the largest that is known.
    """
    loads = [each.load for each in found.known]
    size = max(each.total for each in loads)
    coming = pool.scaling.starting + sum(
        not each.is_known and each.lost_at is None for each in found.active
    )
    spare = sum(each.spare for each in found.known) + coming * size
    nominated = sum(sum(each.nominated.values()) for each in found.known)
    queued = blocks_for(pool.queues.tokens + len(pool.queues), pool.block_size) - nominated
    behind = sum(each.load.waiting_demand - each.queue_head for each in found.known)
    requests = sum(each.num_requests for each in found.known) + len(pool.queues)
    wanted = pool.config.scaling.low * max(requests, len(found.known) + coming)
    blocks = wanted - (spare - queued - behind)
    slots = requests - pool.config.max_requests * (len(found.known) + coming)
    return max(0, math.ceil(blocks / size), -(-slots // pool.config.max_requests))


def _rests(pool: Pool, now: Nanos) -> bool:
    """Whether the last change was a short while ago."""
    at = pool.scaling.changed_at
    return at is not None and now - at < pool.config.scaling.cooldown


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


SCALING: Mapping[str, ScalingRule] = MappingProxyType(
    {"none": fixed, "band": band, "demand": demand}
)
