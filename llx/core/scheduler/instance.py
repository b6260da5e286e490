"""An instance as the scheduler knows it: its last report, and what has been decided since."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llx.core.model import (
    Blocks,
    ClassLoad,
    InstanceId,
    InstanceLoad,
    Nanos,
    Tokens,
    blocks_for,
)
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.events import InstanceState
from llx.core.scheduler.freeness import TERMINATING, Freeness, Usage

_UP: Final = InstanceState.UP
_TERMINATING: Final = InstanceState.TERMINATING
"""An enum's member costs more to name than what is done with it here."""
_UNKNOWN = InstanceLoad(total=Blocks(0), free=Blocks(0), block_size=Tokens(1))


@dataclass(slots=True, eq=False)
class Instance:
    """One instance of a pool. Its pool alone changes it, and calls `refresh` after that.

    Attributes:
        name: Its name.
        ordinal: Place in the order of joining, never used again; decides ties.
        wanted: What may be done with it as long as it is heard of; never LOST.
        lost_at: When it was heard of no more; None while it is.
        is_known: Whether it has reported; before that nothing is done with it.
        is_emptied: Whether it has been said that nothing is left of it.
        closed_because: Why it takes nothing new; None if it does.
        load: As reported last.
        queue_head: Demand of the request that waits first in its own queue.
        present: Requests that run or are charged here, by class rank.
        running: Those that run, likewise.
        counted: The part of a report that `running` is of.
        num_charged: Requests sent here that no report covers yet; `charged` their blocks,
            `charged_tokens` what they have to compute.
        nominated: Demand of the heads of central queues that wait for it, by class rank.
        num_in: Moves to here that are under way or in no report yet; `incoming` their blocks.
        num_out: Moves from here, likewise; `outgoing` their blocks.
        gave_at, took_at: When a move from here, to here, was last ordered or took place.
        not_before: A move from here did not come about; not to be asked for again before.
        not_requeued_before: Likewise one of what waits in its own queue, and of that alone.
        last_dispatch: Which of the pool's dispatches was the last to here; 0: none.
        headroom: Blocks kept free for the classes present, each once.
        uncommitted: Free blocks that nothing is on its way to take.
        spare: ``M - sum V``; these two and `freeness` as of the last `refresh`.
        key: Its place in the pool's ranking, if it is there.
    """

    name: InstanceId
    ordinal: int
    running: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    counted: dict[int, ClassLoad] | None = None
    wanted: InstanceState = InstanceState.UP
    lost_at: Nanos | None = None
    is_known: bool = False
    is_emptied: bool = False
    closed_because: str | None = None
    load: InstanceLoad = field(default_factory=lambda: _UNKNOWN)
    queue_head: Blocks = Blocks(0)
    num_charged: int = 0
    charged: Blocks = Blocks(0)
    charged_tokens: Tokens = Tokens(0)
    nominated: dict[int, Blocks] = field(default_factory=dict)
    num_in: int = 0
    incoming: Blocks = Blocks(0)
    num_out: int = 0
    outgoing: Blocks = Blocks(0)
    gave_at: Nanos | None = None
    took_at: Nanos | None = None
    not_before: Nanos = Nanos(0)
    not_requeued_before: Nanos = Nanos(0)
    last_dispatch: int = 0
    headroom: Blocks = Blocks(0)
    uncommitted: Blocks = Blocks(0)
    spare: Blocks = Blocks(0)
    freeness: Freeness = TERMINATING
    key: "tuple[float, float, int, Instance] | None" = None

    @property
    def state(self) -> InstanceState:
        """What may be done with it now."""
        return self.wanted if self.lost_at is None else InstanceState.LOST

    @property
    def is_usable(self) -> bool:
        """Whether it may be given requests at all."""
        return self.is_known and self.wanted is _UP and self.lost_at is None

    @property
    def has_reported(self) -> bool:
        """Whether its size is known, if only from the time before it was lost."""
        return self.load is not _UNKNOWN

    @property
    def is_working(self) -> bool:
        """Whether it has, or is to get, any request."""
        return bool(self.num_requests or self.num_out)

    @property
    def batch(self) -> int:
        """Requests that run here, or will: sent and not reported, or moving here."""
        return self.load.num_running + self.num_charged + self.num_in

    @property
    def num_requests(self) -> int:
        """The batch, and what waits in the instance's own queue."""
        load = self.load
        return load.num_running + self.num_charged + self.num_in + load.num_waiting

    @property
    def tokens_ahead(self) -> Tokens:
        """Tokens of prompts that are to be computed here before those of a request that comes."""
        return Tokens(self.load.waiting_tokens + self.charged_tokens)

    @property
    def committed(self) -> Blocks:
        """Blocks that will be taken and are not yet."""
        return Blocks(self.load.waiting_demand + self.charged + self.incoming)

    def forget(self, num_classes: int) -> None:
        """Clear what is counted by class, for there are others now; moves stay."""
        self.running = [0] * num_classes
        self.present = [0] * num_classes
        self.counted = None
        self.num_charged, self.charged, self.charged_tokens = 0, Blocks(0), Tokens(0)
        self.nominated = {}

    def take_report(
        self, load: InstanceLoad, queue_head: Blocks | None, config: PoolConfig
    ) -> None:
        """Replace the last report."""
        if load.classes is not self.counted:
            self._count_running(load.classes, config)
            self.counted = load.classes
        if queue_head is None:
            queue_head = mean_head(load) if load.num_waiting else Blocks(0)
        self.load = load
        self.queue_head = queue_head
        self.is_known = True

    def _count_running(self, classes: dict[int, ClassLoad], config: PoolConfig) -> None:
        for rank, count in enumerate(self.running):
            if count:
                self.present[rank] -= count
                self.running[rank] = 0
        for priority, each in classes.items():
            if each.num_running:
                rank = config.rank_of(priority)
                self.running[rank] += each.num_running
                self.present[rank] += each.num_running

    def refresh(self, headrooms: Sequence[Blocks]) -> None:
        """Work out freeness anew; the same as `freeness(self.usage())`, which is slower."""
        load = self.load
        headroom = 0
        if any(headrooms):
            for blocks, count in zip(headrooms, self.present, strict=True):
                if blocks and count:
                    headroom += blocks
        self.headroom = Blocks(headroom)
        unsent = load.free - self.charged - self.incoming
        self.uncommitted = Blocks(unsent - load.waiting_demand)
        spare = unsent - headroom - self.queue_head
        if self.nominated:
            spare -= sum(self.nominated.values())
        self.spare = Blocks(spare)
        batch = load.num_running + self.num_charged + self.num_in
        if self.wanted is _TERMINATING and self.lost_at is None:
            self.freeness = TERMINATING
        else:
            self.freeness = Freeness(spare / batch if batch > 1 else float(spare))

    def usage(self) -> Usage:
        """Algorithm 1's terms, as of the last `refresh`."""
        return Usage(
            total=self.load.total,
            used=self.load.used,
            headroom=self.headroom,
            queue_head=self.queue_head,
            charged=self.charged,
            incoming=self.incoming,
            nominated=Blocks(sum(self.nominated.values())),
            batch=self.batch,
            is_terminating=self.state is InstanceState.TERMINATING,
        )

    def freeness_with(self, blocks: Blocks) -> Freeness:
        """What its freeness would be with so many blocks more."""
        return Freeness((self.spare + blocks) / max(1, self.batch))

    def room(
        self, urgency: int, ahead: Iterable[int], headrooms: Sequence[Blocks], growth: Tokens
    ) -> Blocks:
        """Blocks that a request as urgent as that may take here now; may be negative.

        What is uncommitted as of the last `refresh`, less what the queue heads `ahead` of it need
        that wait for this instance, less the headroom of the classes here that are more urgent, and
        the blocks of `growth` tokens for each request. Its own class's headroom keeps others away
        from it, not it from others. An instance that has nothing and expects nothing keeps nothing
        free: else a request that is larger than what is left would never run.
        """
        room: int = self.uncommitted
        if self.nominated:
            for each in ahead:
                if each in self.nominated:
                    room -= self.nominated[each]
        load = self.load
        batch = load.num_running + self.num_charged + self.num_in
        if not (batch or load.num_waiting or self.num_out):  # it is not working
            return Blocks(room)
        room -= blocks_for(growth * batch, load.block_size)
        for urgent in range(urgency):
            if headrooms[urgent] and self.present[urgent]:
                room -= headrooms[urgent]
        return Blocks(room)

    def give_up(self, blocks: Blocks, *, is_target: bool) -> None:
        """One of its moves, to here or from here, counts no longer."""
        if is_target:
            self.num_in -= 1
            self.incoming = Blocks(self.incoming - blocks)
        else:
            self.num_out -= 1
            self.outgoing = Blocks(self.outgoing - blocks)

    def mean_blocks(self) -> Blocks:
        """What one of its running requests holds, on average, rounded up; at least 1."""
        load = self.load
        return Blocks(max(1, -(-(load.total - load.free) // max(1, load.num_running))))

    def moved_within(self, rest: Nanos, now: Nanos, *, gave: bool) -> bool:
        """Whether a move from here (else: to here) is under way, or was less than `rest` ago."""
        if self.num_out if gave else self.num_in:
            return True
        at = self.gave_at if gave else self.took_at
        return at is not None and now - at < rest


def mean_head(load: InstanceLoad) -> Blocks:
    """Demand of the first that waits, as far as a report tells: its class's mean, rounded up."""
    waiting: list[tuple[int, ClassLoad]] = [
        (priority, each) for priority, each in load.classes.items() if each.num_waiting
    ]
    if not waiting:
        return Blocks(-(-load.waiting_demand // max(1, load.num_waiting)))
    _, first = min(waiting)
    return Blocks(-(-first.waiting_demand // first.num_waiting))
