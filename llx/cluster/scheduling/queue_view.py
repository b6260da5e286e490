"""A pool's central queues as the control API shows them."""

from llx.api import QueueStatus
from llx.core.model import Nanos
from llx.core.scheduler.config import SECOND
from llx.core.scheduler.pool import Pool


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
