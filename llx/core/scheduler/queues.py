"""The central queues of a pool: one per class, bounded, first come first served.

Order between classes is strict, and ages: `age_after` of waiting makes a request one class more
urgent. Among equally urgent ones the older goes first, so that a request which has aged to the most
urgent class waits for none that came later. Hence nobody waits for ever while anybody is served.
"""

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice

from llx.core.model import InstanceId, Nanos, RequestId, Tokens
from llx.core.scheduler.instance import Instance


@dataclass(slots=True, eq=False)
class Queued:
    """A request that waits.

    `arrival` is when it came to the cluster, on this scheduler's clock, and what its turn goes by;
    `since` when it came into its class, never before `arrival`: `max_wait`, and how long work may
    move away for it, are measured from there; `order` its place among all that have waited here.
    `until` is when nothing can come of it any more, for its client waits no longer. `nominee` is
    set while it is the head of its queue.
    """

    request: RequestId
    rank: int
    tokens: Tokens
    arrival: Nanos
    since: Nanos
    order: int
    prefix_hits: tuple[tuple[InstanceId, Tokens], ...] = ()
    until: Nanos | None = None
    nominee: Instance | None = None

    def tokens_at(self, instance: Instance) -> Tokens:
        """What an instance would have to compute of it, less the prefix that it has cached."""
        return Tokens(max(0, self.tokens - self.cached_at(instance)))

    def cached_at(self, instance: Instance) -> Tokens:
        """What an instance has cached of it."""
        return next((hit for name, hit in self.prefix_hits if name == instance.name), Tokens(0))


@dataclass(slots=True)
class _Queue:
    """One class's requests: by id, and as a heap in which withdrawn ones may linger."""

    members: dict[RequestId, Queued] = field(default_factory=dict)
    heap: list[tuple[int, int, Queued]] = field(default_factory=list)
    ends: list[tuple[int, int, Queued]] = field(default_factory=list)
    """Those with an `until`, by that; likewise."""

    def has(self, queued: Queued) -> bool:
        """Whether that very one waits here."""
        return self.members.get(queued.request) is queued

    def head(self) -> Queued | None:
        heap = self.heap
        while heap and not self.has(heap[0][2]):
            heappop(heap)
        return heap[0][2] if heap else None


class Queues:
    """The queues of all classes, 0 the most urgent.

    Args:
        num_classes: How many.
        age_after: See above.
    """

    def __init__(self, num_classes: int, age_after: Nanos) -> None:
        self._queues = [_Queue() for _ in range(num_classes)]
        self._age_after = age_after
        self._ranks: dict[RequestId, int] = {}
        self.tokens = Tokens(0)
        """Of all that wait."""

    def __len__(self) -> int:
        return len(self._ranks)

    def length(self, rank: int) -> int:
        """Requests of a class that wait."""
        return len(self._queues[rank].members)

    def find(self, request: RequestId) -> Queued | None:
        """A request that waits."""
        rank = self._ranks.get(request)
        return None if rank is None else self._queues[rank].members[request]

    def add(self, queued: Queued) -> None:
        """Take a request in. Its place is that of its arrival, whenever it is told of."""
        assert queued.request not in self._ranks, f"{queued.request} waits already"
        queue = self._queues[queued.rank]
        self._ranks[queued.request] = queued.rank
        queue.members[queued.request] = queued
        self.tokens = Tokens(self.tokens + queued.tokens)
        heappush(queue.heap, (queued.arrival, queued.order, queued))
        if queued.until is not None:
            heappush(queue.ends, (queued.until, queued.order, queued))

    def remove(self, queued: Queued) -> None:
        """Take a request out."""
        queue = self._queues[self._ranks.pop(queued.request)]
        del queue.members[queued.request]
        self.tokens = Tokens(self.tokens - queued.tokens)
        if len(queue.heap) > 2 * len(queue.members) + 16:
            queue.heap = [(each.arrival, each.order, each) for each in queue.members.values()]
            heapify(queue.heap)
        if len(queue.ends) > 2 * len(queue.members) + 16:
            queue.ends = [each for each in queue.ends if queue.has(each[2])]
            heapify(queue.ends)

    def head(self, rank: int) -> Queued | None:
        """The first of a class."""
        return self._queues[rank].head()

    def overdue(self, rank: int, limit: Nanos) -> list[Queued]:
        """Those that came into a class by then, the oldest first."""
        head = self.head(rank)
        if head is None or head.arrival > limit:
            return []  # nobody came into it before coming at all
        members = self._queues[rank].members.values()
        found = [each for each in members if each.since <= limit]
        return sorted(found, key=lambda each: (each.arrival, each.order))

    def out_of_time(self, rank: int, now: Nanos) -> list[Queued]:
        """Those of a class of which nothing can come any more; asked for once, they count no more.

        The caller takes them out.
        """
        queue, found = self._queues[rank], []
        while queue.ends and queue.ends[0][0] < now:
            queued = heappop(queue.ends)[2]
            if queue.has(queued):
                found.append(queued)
        return found

    def followers(self, rank: int, count: int) -> list[Queued]:
        """At most so many of a class that wait behind its head, as they came to this scheduler."""
        head = self.head(rank)
        members = self._queues[rank].members.values()
        return [each for each in islice(members, count + 1) if each is not head][:count]

    def heads(self, now: Nanos) -> list[Queued]:
        """The first of each class that has any, in the order in which they are to be served."""
        if not self._ranks:
            return []
        found = [head for queue in self._queues if queue.heap and (head := queue.head())]
        if len(found) > 1:
            found.sort(key=lambda each: self.turn(each, now))
        return found

    def turn(self, queued: Queued, now: Nanos) -> tuple[int, int, int]:
        """Sort key: who is to be served first."""
        return self.urgency(queued, now), queued.arrival, queued.order

    def urgency(self, queued: Queued, now: Nanos) -> int:
        """The rank that a request has by now; 0 is as urgent as any."""
        return max(0, queued.rank - max(0, now - queued.arrival) // self._age_after)

    def waiting(self) -> list[Queued]:
        """All, in the order in which they came to this scheduler."""
        members = [each for queue in self._queues for each in queue.members.values()]
        return sorted(members, key=lambda each: each.order)
