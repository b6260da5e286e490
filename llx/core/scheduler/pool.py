"""A pool's state, and the only place that changes it.

Every change of an instance ends in `Pool.touch`, so that its freeness, whether it is open, and its
place in the ranking are right whenever a rule looks at them.
"""

from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice
from operator import attrgetter

from llx.core.model import Blocks, ClassName, InstanceId, Nanos, RequestId, Tokens, blocks_for
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.dispatch import ByInstance, DispatchPolicy, freest
from llx.core.scheduler.events import InstanceState, LoadReported, MoveId, MoveOutcome
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.queues import Queued, Queues
from llx.core.scheduler.ranking import Best, Ranking
from llx.core.scheduler.under_way import Charge, OpenMove, ScalingState, Settling


class Pool:
    """The instances of one model, what waits for them, and what is under way between them.

    Args:
        config: How it is scheduled.
        policy: The dispatch policy that `config` names.
    """

    def __init__(self, config: PoolConfig, policy: DispatchPolicy) -> None:
        self.config = config
        self.policy = policy
        self._figure = _figure(policy)
        self.headrooms = [each.headroom for each in config.classes]
        self._rank_of = {each.name: rank for rank, each in enumerate(config.classes)}
        self.queues = Queues(len(config.classes), config.age_after)
        self.ranking = Ranking()
        self._freest = Best(self.ranking, attrgetter("freeness"))
        self._emptiest = Best(self.ranking, attrgetter("uncommitted"))
        self.instances: dict[InstanceId, Instance] = {}
        self.closed: dict[str, int] = {}
        """How many instances take nothing new, by reason."""
        self.keepers: dict[Instance, None] = {}
        """Those that keep a headroom, in the order in which they began to."""
        self.charges: dict[RequestId, Charge] = {}
        """By age."""
        self.moves: dict[MoveId, OpenMove] = {}
        """By age."""
        self.settling: dict[Instance, list[Settling]] = {}
        """By the end that is yet to report; there is no empty list."""
        self.giving: set[Instance] = set()
        self.taking: set[Instance] = set()
        """Who gave and who took when load balancing was asked last: it has hysteresis."""
        self.scaling = ScalingState()
        self.is_paused = False
        self.block_size = Tokens(0)
        """0 until an instance has reported."""
        self.num_dispatched = 0
        self.dispatch_gap = Nanos(0)
        """Between dispatches while others wait, a running mean; 0 before the first."""
        self.num_gaps = 0
        """So many were measured."""
        self._dispatched_at: Nanos | None = None
        self._num_joined = 0
        self._num_moves = 0

    # ------------------------------------------------------------------ rules

    def configure(self, config: PoolConfig, policy: DispatchPolicy) -> None:
        """Go on by other rules. What waits keeps its class by name, else falls to the last."""
        before = self.config
        self._freest.forget()
        self._emptiest.forget()
        waiting, self.config, self.policy = self.queues.waiting(), config, policy
        self._figure = _figure(policy)
        self.headrooms = [each.headroom for each in config.classes]
        self.queues = Queues(len(config.classes), config.age_after)
        self._rank_of = {each.name: rank for rank, each in enumerate(config.classes)}
        ranks = [self.rank_by_name(each.name) for each in before.classes]
        for queued in waiting:
            queued.rank, queued.nominee = ranks[queued.rank], None
            self.queues.add(queued)
        charges = self.charges
        self.charges = {}
        for instance in self.instances.values():
            instance.forget(len(config.classes))
        for request, each in charges.items():
            self._charge(
                request, Charge(each.instance, ranks[each.rank], each.demand, each.tokens, each.at)
            )
        for instance in self.instances.values():
            if instance.is_known:
                instance.take_report(instance.load, instance.queue_head, config)
            self.touch(instance)

    def rank_by_name(self, name: ClassName) -> int:
        """A class's rank; the least urgent if there is none of that name."""
        return self._rank_of.get(name, len(self.config.classes) - 1)

    def demand(self, queued: Queued, instance: Instance | None = None) -> Blocks:
        """Blocks that a request needs to run: its tokens and the next one.

        Of the instance's size; without one, of the size that was reported last, in any.
        """
        block_size = self.block_size if instance is None else instance.load.block_size
        return blocks_for(queued.tokens + 1, block_size)

    def could_fit(self, queued: Queued, instance: Instance) -> bool:
        """Whether a request might go to an instance at all, when nothing else was there."""
        return self.demand(queued, instance) <= instance.load.total

    # ------------------------------------------------------------------ instances

    def join(self, name: InstanceId) -> None:
        """An instance is there."""
        self._num_joined += 1
        instance = Instance(name, self._num_joined)
        instance.forget(len(self.config.classes))
        self.instances[name] = instance
        self.scaling.found()
        self.touch(instance)

    def change(self, instance: Instance, state: InstanceState, now: Nanos) -> None:
        """An instance is to be used otherwise. Of a lost one nothing is expected any more.

        A lost one that is up again is used as was wanted before, or has been since.
        """
        before = instance.state
        if before is state:
            return
        if state is InstanceState.LOST:
            instance.lost_at = now
            instance.is_known = False
            self._cut_off(instance)
        elif before is InstanceState.LOST and state is InstanceState.UP:
            instance.lost_at = None
        else:
            if instance.wanted is InstanceState.TERMINATING and state is InstanceState.UP:
                self.scaling.found()  # it is kept, if one more was asked for, instead of a new one
            instance.wanted = state
        if instance.state is before:
            return
        instance.is_emptied = False
        if instance.state is not InstanceState.UP:
            self._release(instance)
        self.touch(instance)

    def leave(self, instance: Instance) -> None:
        """An instance is no more."""
        self._cut_off(instance)
        self._release(instance)
        self.ranking.drop(instance)
        self._freest.changed(instance)
        self._emptiest.changed(instance)
        self.keepers.pop(instance, None)
        self._count_closed(instance, None)
        del self.instances[instance.name]

    def report(self, instance: Instance, event: LoadReported) -> None:
        """An instance's load has changed."""
        for request in event.covers:
            charge = self.charges.get(request)
            if charge is not None and charge.instance is instance:
                self._strike(request)
        if instance in self.settling:
            self._settle(instance)
        instance.take_report(event.load, event.queue_head, self.config)
        self.block_size = event.load.block_size
        self.touch(instance)

    def terminating(self) -> list[Instance]:
        """Those that are to be emptied, in the order of joining."""
        terminating = InstanceState.TERMINATING
        if not self.closed.get(terminating.value):
            return []
        return [each for each in self.instances.values() if each.state is terminating]

    def freest(self, count: int) -> list[Instance]:
        """The freest of those that take something, at most so many."""
        if self._figure is not freest:
            return self._freest.first(count)
        return list(islice(self.ranking, count))

    def emptiest(self, count: int, queued: Queued | None = None) -> list[Instance]:
        """Those with the most uncommitted blocks, at most so many; busy ones only if all are.

        With a request only those that could hold it.
        """
        if queued is None and len(self.ranking):
            return self._emptiest.first(count)
        them = [each for each in self.ranking if queued is None or self.could_fit(queued, each)]
        if not them:
            usable = (each for each in self.instances.values() if each.is_usable)
            them = [each for each in usable if queued is None or self.could_fit(queued, each)]
        return nlargest(count, them, key=attrgetter("uncommitted"))

    def touch(self, instance: Instance) -> None:
        """Make what is derived right, after any change of an instance."""
        instance.refresh(self.headrooms)
        self._freest.changed(instance)
        self._emptiest.changed(instance)
        if instance.headroom:
            self.keepers[instance] = None
        else:
            self.keepers.pop(instance, None)
        reason = self._why_closed(instance)
        if reason != instance.closed_because:
            self._count_closed(instance, reason)
        if reason is None:
            self.ranking.put(instance, self._figure(instance))
        else:
            self.ranking.drop(instance)

    def _why_closed(self, instance: Instance) -> str | None:
        if not instance.is_usable:
            if instance.state is InstanceState.UP:
                return "not reported yet"
            return str(instance.state.value)
        if self.config.is_immediate:
            return None
        load = instance.load
        if load.waiting_tokens + instance.charged_tokens >= self.config.step_tokens:
            return "busy with prefill"
        num_requests = load.num_running + load.num_waiting + instance.num_charged + instance.num_in
        return "at its most requests" if num_requests >= self.config.max_requests else None

    def _count_closed(self, instance: Instance, reason: str | None) -> None:
        if instance.closed_because is not None:
            self.closed[instance.closed_because] -= 1
        if reason is not None:
            self.closed[reason] = self.closed.get(reason, 0) + 1
        instance.closed_because = reason

    def _cut_off(self, instance: Instance) -> None:
        """Forget what was sent to an instance, and the moves that it takes part in."""
        for request in [key for key, each in self.charges.items() if each.instance is instance]:
            self._strike(request)
        for each in [*self.moves.values()]:
            if instance in (each.source, each.target):
                self.end_move(each.move, MoveOutcome.GONE, each.at)
        self._settle(instance)

    def _release(self, instance: Instance) -> None:
        """No queue's head waits for this instance any longer."""
        for rank in list(instance.nominated):
            head = self.queues.head(rank)
            assert head is not None, "a nomination without a queue's head"
            self.nominate(head, None)

    # ------------------------------------------------------------------ requests

    def enqueue(self, queued: Queued) -> None:
        """A request joins its queue. Where it comes before the head, that waits for nobody now."""
        head = self.queues.head(queued.rank)
        self.queues.add(queued)
        if head is not None and self.queues.head(queued.rank) is queued:
            self.nominate(head, None)

    def nominate(self, queued: Queued, instance: Instance | None) -> None:
        """Charge the head of a queue on the instance that it waits for, and on no other."""
        before = queued.nominee
        if before is instance:
            return
        queued.nominee = instance
        if before is not None:
            del before.nominated[queued.rank]
            self.touch(before)
        if instance is not None:
            instance.nominated[queued.rank] = self.demand(queued, instance)
            self.touch(instance)

    def dispatch(self, queued: Queued, instance: Instance, now: Nanos) -> None:
        """A request leaves the queue, and is charged to an instance."""
        self.unqueue(queued)
        self.num_dispatched += 1
        instance.last_dispatch = self.num_dispatched
        self._keep_pace(now)
        tokens = queued.tokens_at(instance)
        charge = Charge(instance, queued.rank, self.demand(queued, instance), tokens, now)
        self._charge(queued.request, charge)
        self.touch(instance)

    def _keep_pace(self, now: Nanos) -> None:
        """Measure how fast the queue is served; not how slowly requests come when it is empty."""
        if self._dispatched_at is not None:
            gap = now - self._dispatched_at
            change = (gap - self.dispatch_gap) // 8 if self.dispatch_gap else gap
            self.dispatch_gap = Nanos(self.dispatch_gap + change)
            self.num_gaps += 1
        self._dispatched_at = now if self.queues else None

    def unqueue(self, queued: Queued) -> None:
        """A request leaves the queue."""
        self.nominate(queued, None)
        self.queues.remove(queued)

    def strike(self, request: RequestId) -> Instance | None:
        """A dispatched request counts no longer; returns where it did."""
        if request not in self.charges:
            return None
        instance = self._strike(request)
        self.touch(instance)
        return instance

    def expire_charges(self, now: Nanos) -> list[Instance]:
        """Strike what no report has covered in time; returns where."""
        found: list[Instance] = []
        while self.charges:
            request, charge = next(iter(self.charges.items()))
            if now - charge.at < self.config.charge_expires_after:
                break
            self._strike(request)
            self.touch(charge.instance)
            found.append(charge.instance)
        return found

    def _charge(self, request: RequestId, charge: Charge) -> None:
        self.charges[request] = charge
        instance = charge.instance
        instance.num_charged += 1
        instance.charged = Blocks(instance.charged + charge.demand)
        instance.charged_tokens = Tokens(instance.charged_tokens + charge.tokens)
        instance.present[charge.rank] += 1

    def _strike(self, request: RequestId) -> Instance:
        charge = self.charges.pop(request)
        instance = charge.instance
        instance.num_charged -= 1
        instance.charged = Blocks(instance.charged - charge.demand)
        instance.charged_tokens = Tokens(instance.charged_tokens - charge.tokens)
        instance.present[charge.rank] -= 1
        return instance

    # ------------------------------------------------------------------ moves

    def begin_move(
        self, source: Instance, target: Instance, blocks: Blocks, now: Nanos, *, is_waiting: bool
    ) -> MoveId:
        """A move has been ordered. It relieves the source only when that reports so."""
        self._num_moves += 1
        move = MoveId(self._num_moves)
        self.moves[move] = OpenMove(move, source, target, blocks, now, is_waiting)
        source.num_out += 1
        source.outgoing = Blocks(source.outgoing + blocks)
        source.gave_at = now
        target.num_in += 1
        target.incoming = Blocks(target.incoming + blocks)
        target.took_at = now
        self.touch(target)
        return move

    def end_move(self, move: MoveId, outcome: MoveOutcome, now: Nanos) -> Iterable[Instance]:
        """A move has ended; returns both ends, or none if that was known.

        One that has taken place still counts at each end until that end's next report: the last
        one contains the request at the source, and not at the target.
        """
        found = self.moves.pop(move, None)
        if found is None:
            return ()
        source, target = found.source, found.target
        if outcome is MoveOutcome.MOVED:
            source.gave_at = target.took_at = now
            for end in (source, target):
                settling = Settling(found.blocks, now, end is target)
                self.settling.setdefault(end, []).append(settling)
            return source, target
        source.give_up(found.blocks, is_target=False)
        target.give_up(found.blocks, is_target=True)
        if outcome in (MoveOutcome.NONE, MoveOutcome.KEPT):
            rules = self.config.rescheduling
            if found.is_waiting:
                source.not_requeued_before = Nanos(now + rules.rest)
            else:
                source.not_before = Nanos(now + rules.retry_after)
        self.touch(target)
        return source, target

    def _settle(self, instance: Instance) -> None:
        """What has moved to and from an instance is in its report, or nothing is expected of it."""
        for each in self.settling.pop(instance, ()):
            instance.give_up(each.blocks, is_target=each.is_target)

    def expire_moves(self, now: Nanos) -> None:
        """Forget moves that have not ended in time, and those that no report has told of in time.

        For the latter the last report came before the news of the move's end, and nothing has
        changed there since.
        """
        for instance, settling in [*self.settling.items()]:
            if now - settling[-1].at >= self.config.charge_expires_after:
                self._settle(instance)
                self.touch(instance)
        while self.moves:
            oldest = next(iter(self.moves.values()))
            if now - oldest.at < self.config.rescheduling.deadline:
                break
            self.end_move(oldest.move, MoveOutcome.KEPT, now)


def _figure(policy: DispatchPolicy) -> Callable[[Instance], float]:
    """What instances are ranked by, the least first."""
    return policy.figure if isinstance(policy, ByInstance) else freest
