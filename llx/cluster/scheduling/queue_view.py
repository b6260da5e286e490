"""A pool's central queues, and who waits in them, as the control API shows them."""

from dataclasses import dataclass

from llx.api import QueueStatus
from llx.core.model import ClassName, Nanos, PoolName, RequestId, Tokens
from llx.core.scheduler.config import SECOND
from llx.core.scheduler.pool import Pool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits in a central queue.

    Attributes:
        request: Its id.
        name: What operators know it by.
        model: Its pool.
        priority_class: Whose queue.
        priority: The integer of that class.
        tokens: To be computed before its next token.
        waited_s: Since it came to its gateway.
        position: In its queue; 1 is the head.
        nominated: The instance that it waits for, if it is the head; empty: none.
    """

    request: RequestId
    name: str
    model: PoolName
    priority_class: ClassName
    priority: int
    tokens: Tokens
    waited_s: float
    position: int
    nominated: str


def queue_statuses(pool: Pool, now: Nanos) -> list[QueueStatus]:
    """One for each class, the most urgent first."""
    found = []
    for rank, each in enumerate(pool.config.classes):
        head = pool.queues.head(rank)
        nominee = None if head is None else head.nominee
        found.append(
            QueueStatus(
                model=pool.config.name,
                priority_class=each.name,
                priority=each.priority,
                waiting=pool.queues.length(rank),
                oldest_s=None if head is None else round((now - head.arrival) / SECOND, 3),
                nominated="" if nominee is None else nominee.name,
                limit=each.queue_limit,
                max_wait_s=each.max_wait / SECOND,
            )
        )
    return found


def waiting_requests(pool: Pool, now: Nanos) -> list[Waiting]:
    """All that wait, by class, the most urgent first, each in the order of its queue; no names."""
    in_order = sorted(pool.queues.waiting(), key=lambda each: (each.rank, each.arrival, each.order))
    found: list[Waiting] = []
    position = [0] * len(pool.config.classes)
    for each in in_order:
        position[each.rank] += 1
        config = pool.config.classes[each.rank]
        found.append(
            Waiting(
                request=each.request,
                name="",
                model=pool.config.name,
                priority_class=config.name,
                priority=config.priority,
                tokens=each.tokens,
                waited_s=(now - each.arrival) / SECOND,
                position=position[each.rank],
                nominated="" if each.nominee is None else each.nominee.name,
            )
        )
    return found
