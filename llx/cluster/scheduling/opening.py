"""What a new scheduler would be told of what there is: the beginning of a recording amid a term.

Pure. Not told, for no event says it: dispatches that no report covers yet, moves under way, pauses
between moves, and since when an average is out of its band.
"""

from collections.abc import Iterable, Iterator

from llx.core.model import Nanos
from llx.core.scheduler.events import (
    Event,
    InstanceChanged,
    InstanceJoined,
    InstanceState,
    LoadReported,
    Paused,
    PoolConfigured,
    RequestArrived,
)
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.pool import Pool


def opening_events(pools: Iterable[Pool], now: Nanos) -> Iterator[Event]:
    """Of all pools: rules, instances as they joined, then what waits as it came."""
    for pool in pools:
        yield PoolConfigured(pool.config)
        if pool.is_paused:
            yield Paused(pool.config.name)
        for instance in sorted(pool.instances.values(), key=lambda each: each.ordinal):
            yield from _instance(pool, instance)
        for each in pool.queues.waiting():
            yield RequestArrived(
                pool.config.name,
                each.request,
                pool.config.classes[each.rank].name,
                each.tokens,
                Nanos(max(0, now - each.arrival)),
                each.prefix_hits,
                Nanos(max(0, now - each.since)),
                None if each.until is None else Nanos(max(0, each.until - now)),
            )


def _instance(pool: Pool, instance: Instance) -> Iterator[Event]:
    yield InstanceJoined(pool.config.name, instance.name)
    if instance.has_reported:
        yield LoadReported(instance.name, instance.load, (), instance.queue_head)
    if instance.wanted is not InstanceState.UP:
        yield InstanceChanged(instance.name, instance.wanted)
    if instance.lost_at is not None:
        yield InstanceChanged(instance.name, InstanceState.LOST)
