"""Placing what waits: late binding, and the paper's immediate dispatch.

A request is sent to an instance when that has room for it, and until then stays in the central
queue. The head of each queue is *nominated* for an instance: its demand is counted there, and
whoever is served after it cannot have these blocks. Some of those that wait behind it may be sent
before it, to where they take nothing of that. So a large request is not overtaken for ever by small
ones, and yet what does not fit one instance does not keep others from being used.

Room opens at an instance when it reports, so that is when the queues' heads are tried there; a new
head is tried at the first instances of the policy's order; and once a round every head is tried
there again, and at those with the most free blocks.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from heapq import nlargest
from itertools import islice

from llx.core.fixed import fixed
from llx.core.model import Blocks, InstanceId, Nanos, Tokens, blocks_for
from llx.core.scheduler.commands import Command, Dispatch, Hold, Refusal, Refuse
from llx.core.scheduler.config import SECOND
from llx.core.scheduler.decision import Decision, Option
from llx.core.scheduler.dispatch import ByInstance
from llx.core.scheduler.freeness import TERMINATING
from llx.core.scheduler.headroom import shared
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.pool import Pool
from llx.core.scheduler.queues import Queued

PrefixHits = tuple[tuple[InstanceId, Tokens], ...]

PROBES = 64
"""So many instances, the first by the policy, are tried for a request at most …"""
_EMPTIEST = 16
"""… and in a round so many more, those with the most free blocks."""
SAMPLE = 32
"""So many are scored by a policy that looks at the request, besides those with its prefix."""
_MOST_AT_ONCE = 64
"""Requests of one class that are sent in a round."""
_CLEARING = frozenset({"preempt", "make_room"})
"""Rules that have work move away for a queue's head."""


_ENOUGH_GAPS = 8
"""So many dispatches from a queue tell its pace."""
_MOVES_WITHIN = Nanos(5 * SECOND)
"""What could make room by moving away has done so by then, or does not."""


@fixed
class Placing:
    """A request looking for an instance.

    Attributes:
        pool: Where.
        queued: The request.
        ahead: Classes whose heads are served before it.
        urgency: Its rank by now, aged: whoever is as urgent as it keeps no headroom from it.
        may_clear: Whether less urgent work may still move away for it …
        roomiest: … where to, once that was asked.
    """

    pool: Pool
    queued: Queued
    ahead: Sequence[int]
    urgency: int
    may_clear: bool
    roomiest: list[Instance] = field(default_factory=list)

    @classmethod
    def of(cls, pool: Pool, queued: Queued, ahead: Sequence[int], now: Nanos) -> "Placing":
        """As things are."""
        clears = not pool.is_paused and not _CLEARING.isdisjoint(pool.config.rescheduling.steps)
        return cls(
            pool, queued, ahead, pool.queues.urgency(queued, now),
            clears and now - queued.since < _MOVES_WITHIN,
        )  # fmt: skip

    def room(self, instance: Instance) -> Blocks:
        """Blocks that it may take there."""
        pool = self.pool
        return instance.room(self.urgency, self.ahead, pool.headrooms, pool.config.growth_tokens)

    def fits(self, instance: Instance) -> bool:
        """Whether it may go there now."""
        if instance.closed_because is not None or not self.could_fit(instance):
            return False
        return self.pool.config.is_immediate or self.room(instance) >= self.demand(instance)

    def demand(self, instance: Instance) -> Blocks:
        """Blocks that it needs there."""
        return blocks_for(self.queued.tokens + 1, instance.load.block_size)

    def could_fit(self, instance: Instance) -> bool:
        """Whether it might go there at all, when nothing else was there."""
        return self.demand(instance) <= instance.load.total

    def reach(self, instance: Instance, room: int) -> tuple[int, int]:
        """How near an instance is to room, in tokens; the more the nearer.

        Less what is missing if its less urgent work moved away, as far as that has where to go; and
        the room that it has as it is.
        """
        block_size = instance.load.block_size
        missing = blocks_for(self.queued.tokens + 1, block_size) - room
        if missing > 0 and self.may_clear:
            missing -= self._movable(instance)
        return (-missing * block_size if missing > 0 else 0), room * block_size

    def _movable(self, instance: Instance) -> int:
        """Blocks of less urgent work there, if one of it has where to go."""
        movable = sum(instance.running[self.queued.rank + 1 :])
        if not movable:
            return 0
        if not self.roomiest:  # the two with most room, one of which is another than this
            self.roomiest.extend(self.pool.emptiest(2))
        each = instance.mean_blocks()
        for other in self.roomiest:
            if other is not instance and other.uncommitted >= each:
                return movable * each
        return 0


def best_prefixes(hits: PrefixHits) -> PrefixHits:
    """The longest prefixes that instances have, at most `SAMPLE`; of equals those told of first."""
    return tuple(nlargest(SAMPLE, hits, key=lambda each: each[1])) if len(hits) > SAMPLE else hits


def serve_arrival(pool: Pool, queued: Queued, now: Nanos) -> list[Command]:
    """Place a request that has just joined its queue, or say that it waits."""
    if pool.queues.head(queued.rank) is queued:
        placing = _placing(pool, queued, now)
        chosen, decision, nearest = choose(placing)
        if chosen is not None:
            return [_dispatch(pool, queued, chosen, decision, now)]
        if (refusal := _refuse_too_large(pool, placing, nearest)) is not None:
            return [refusal]
        pool.nominate(queued, nearest)
        return [hold(pool, queued)]
    if pool.queues.length(queued.rank) <= pool.config.overtaking + 1:
        overtaker = _overtake(pool, queued, now)
        return [hold(pool, queued) if overtaker is None else overtaker]
    return [hold(pool, queued)]


def serve_at(pool: Pool, instance: Instance, now: Nanos) -> list[Command]:
    """Send an instance that may have got room what waits: queues' heads, or who may overtake."""
    out: list[Command] = []
    while instance.closed_because is None and (first := _first_that_fits(pool, instance, now)):
        reasons = _room_opened(first, instance)
        out.append(_dispatch(pool, first.queued, instance, reasons, now))
        follower = pool.queues.head(first.queued.rank)
        if follower is not None and follower.nominee is None:
            could_fit = pool.could_fit(follower, instance)
            pool.nominate(follower, instance if could_fit else None)
    return out


def _first_that_fits(pool: Pool, instance: Instance, now: Nanos) -> Placing | None:
    """Of all whose turn it may be, the first that an instance has room for."""
    config, most = pool.config, instance.uncommitted
    growing = blocks_for(config.growth_tokens * instance.batch, instance.load.block_size)
    if not config.is_immediate and most - growing < 1:
        return None  # nobody needs less than a block
    heads = pool.queues.heads(now)
    for each in heads:  # before anybody passes one that waits for nobody yet
        if each.nominee is None and pool.could_fit(each, instance):
            pool.nominate(each, instance)
    behind = (each for head in heads for each in _behind(pool, head, now))
    small = (each for each in behind if pool.demand(each, instance) <= most)
    turns = [*heads, *small]
    if len(turns) > len(heads) > 1:
        turns.sort(key=lambda each: pool.queues.turn(each, now))
    ahead: list[int] = []
    for each in turns:
        placing = Placing.of(pool, each, tuple(ahead), now)
        if placing.fits(instance):
            return placing
        if each in heads:
            ahead.append(each.rank)
    return None


def serve_all(pool: Pool, now: Nanos) -> list[Command]:
    """Try every queue's head, and nominate each for whoever is nearest to room."""
    out: list[Command] = expire_waiting(pool, now)
    emptiest = pool.emptiest(_EMPTIEST) if pool.queues else []
    if not emptiest:
        return out
    left = [_MOST_AT_ONCE] * len(pool.config.classes)
    is_all_tried = True
    # A follower may be less urgent than another class's head, so that their order is asked again.
    while head := next((each for each in pool.queues.heads(now) if left[each.rank]), None):
        command = _serve_head(pool, head, emptiest, now)
        left[head.rank] = left[head.rank] - 1 if command is not None else 0
        if command is not None:
            out.append(command)
            is_all_tried = left[head.rank] > 0
    if is_all_tried:
        out.extend(_overtake_all(pool, now))
    return out


def expire_waiting(pool: Pool, now: Nanos) -> list[Command]:
    """Refuse those that have waited for too long, in their class or for their clients."""
    out: list[Command] = []
    for rank, each in enumerate(pool.config.classes):
        overdue = pool.queues.overdue(rank, Nanos(now - each.max_wait))
        late = dict.fromkeys(overdue, Refusal.WAITED_TOO_LONG)
        late |= dict.fromkeys(pool.queues.out_of_time(rank, now), Refusal.OUT_OF_TIME)
        for queued, reason in late.items():
            pool.unqueue(queued)
            out.append(Refuse(queued.request, reason, retry_after(pool, rank)))
    return out


def hold(pool: Pool, queued: Queued) -> Hold:
    """What is answered to a request that waits."""
    rank = queued.rank
    is_head = pool.queues.head(rank) is queued
    return Hold(
        queued.request,
        pool.config.classes[rank].name,
        pool.queues.length(rank),
        _nomination(pool, queued) if is_head else None,
    )


def retry_after(pool: Pool, rank: int) -> Nanos:
    """When a refused request may find room: what is served before it, at the pace of late.

    At least a second, at most a minute.
    """
    return Nanos(min(60 * SECOND, max(SECOND, expected_wait(pool, rank))))


def expected_wait(pool: Pool, rank: int) -> Nanos:
    """How long one more of a class would wait: what is served before it, at the pace of late.

    0 while nobody waits, and before the pace is known.
    """
    num_ahead = sum(pool.queues.length(each) for each in range(rank + 1))
    return Nanos(num_ahead * pool.dispatch_gap)


def would_wait_too_long(pool: Pool, queued: Queued, now: Nanos) -> bool:
    """Whether a request that has just come would be refused by the time that it is its turn.

    To be told at once is better for its client, and those before it keep their places. Nobody can
    say before the pace is known.
    """
    if pool.num_gaps < _ENOUGH_GAPS:
        return False
    ends = Nanos(queued.since + pool.config.classes[queued.rank].max_wait)
    latest = ends if queued.until is None else min(ends, queued.until)
    return now + expected_wait(pool, queued.rank) > latest


# ------------------------------------------------------------------ the choice


def choose(placing: Placing) -> tuple[Instance | None, Decision, Instance | None]:
    """The instance that the pool's policy takes for a request.

    Returns:
        The instance, or None if none that was looked at has room; the reasons; and who is nearest
        to having room, of those that are large enough.
    """
    policy = placing.pool.policy
    found: list[tuple[float, Instance]] = []
    nearest: tuple[tuple[int, int], Instance] | None = None
    num_looked_at = num_without_room = num_too_small = 0
    is_ranked = isinstance(policy, ByInstance)
    wanted = 2 if is_ranked else SAMPLE
    is_immediate = placing.pool.config.is_immediate
    for instance in _in_order(placing):
        num_looked_at += 1
        demand = placing.demand(instance)
        if demand > instance.load.total:
            num_too_small += 1
            continue
        room = placing.room(instance)
        if is_immediate or room >= demand:
            found.append((_figure(placing, instance), instance))
            if len(found) >= wanted:
                break
            continue
        num_without_room += 1
        if is_ranked and found and num_looked_at > 2:
            break
        reach = placing.reach(instance, room)
        if nearest is None or reach > nearest[0]:
            nearest = reach, instance
    if not is_ranked:
        found.sort(key=lambda each: each[0])
    left_out = (("without room", num_without_room), ("too small", num_too_small))
    decision = _decision(placing, found, num_looked_at, left_out)
    return found[0][1] if found else None, decision, nearest[1] if nearest else None


def _in_order(placing: Placing) -> Iterator[Instance]:
    """Those to look at: who has its class's headroom, or its prefix; then the best ranked."""
    pool = placing.pool
    first = _hosts(placing) if isinstance(pool.policy, ByInstance) else _holders(placing)
    yield from first
    best = islice(pool.ranking, PROBES)
    yield from (each for each in best if each not in first) if first else best


def _hosts(placing: Placing) -> list[Instance]:
    """Who keeps the class's headroom already, and still has it with one request more.

    So few instances keep it, and those that do keep it for several. Not if one that keeps none is
    freer, this headroom not counted: a host that is full of its own class is no better than others.
    """
    pool, rank = placing.pool, placing.queued.rank
    headroom = pool.headrooms[rank]
    if not headroom:
        return []
    seen = list(islice(pool.ranking, PROBES))
    hosts = [
        (each.freeness_with(headroom), each)
        for each in seen
        if each.present[rank] and placing.room(each) - headroom >= placing.demand(each)
    ]
    if not hosts and pool.config.classes[rank].headroom_share == 1:
        return []
    others = (each for each in seen if not each.present[rank] and placing.fits(each))
    best = max((each.freeness for each in others), default=TERMINATING)
    hosts.sort(key=lambda each: -each[0])
    found = [each for free, each in hosts if free >= best]
    if pool.config.dispatch != "freest":
        able = (_figure(placing, each) for each in seen if placing.fits(each))
        first = min(able, default=math.inf)
        found = [each for each in found if _figure(placing, each) <= first]
    return found or shared(pool, rank, seen, best, placing.fits)


def _holders(placing: Placing) -> list[Instance]:
    named = [placing.pool.instances.get(name) for name, _ in placing.queued.prefix_hits]
    return [each for each in named if each is not None and each.closed_because is None]


def _figure(placing: Placing, instance: Instance) -> float:
    policy = placing.pool.policy
    if isinstance(policy, ByInstance):
        assert instance.key is not None, "an open instance is in the ranking"
        return instance.key[0]
    return policy.figure(instance, placing.queued, placing.pool.config)


def _decision(
    placing: Placing,
    found: Sequence[tuple[float, Instance]],
    num_looked_at: int,
    unfit: Iterable[tuple[str, int]],
) -> Decision:
    pool = placing.pool
    policy = pool.policy
    left_out = [(reason, count) for reason, count in (*pool.closed.items(), *unfit) if count]
    best, second = found[0] if found else None, found[1] if len(found) > 1 else None
    tie = ""
    if best and second and best[0] == second[0]:
        tie = "freeness" if best[1].freeness > second[1].freeness else "joined first"
        tie = tie if isinstance(policy, ByInstance) else "prefix, then freeness"
    # By position, which takes a third of the time: there is one for each request.
    return Decision(
        pool.config.dispatch,
        policy.unit,
        _option(best, policy.sign) if best else None,
        _option(second, policy.sign) if second else None,
        len(pool.instances),
        num_looked_at,
        tuple(left_out),
        tie,
        _facts(placing, best[1]) if best else (),
    )


def _option(found: tuple[float, Instance], sign: int) -> Option:
    """As a float whatever a policy returns: a recording says the same, compiled or not."""
    return Option(found[1].name, float(found[0] * sign))


def _facts(placing: Placing, chosen: Instance) -> tuple[tuple[str, float | str], ...]:
    blocks = ("blocks", placing.demand(chosen))
    if not isinstance(placing.pool.policy, ByInstance):
        cached = placing.queued.cached_at(chosen)
        return (blocks, ("cached tokens", cached)) if cached else (blocks,)
    headroom = placing.pool.headrooms[placing.queued.rank]
    is_host = chosen in _hosts(placing)
    return (blocks, ("beside its class's headroom", headroom)) if is_host else (blocks,)


def _room_opened(placing: Placing, instance: Instance) -> Decision:
    """The reasons of a dispatch to whoever has room first."""
    pool = placing.pool
    return Decision(
        rule="room opened",
        unit="free blocks",
        chosen=Option(instance.name, placing.room(instance)),
        num_instances=len(pool.instances),
        num_considered=1,
        facts=(("blocks", placing.demand(instance)), ("waiting", len(pool.queues))),
    )


# ------------------------------------------------------------------ one head


def _serve_head(
    pool: Pool, head: Queued, emptiest: Sequence[Instance], now: Nanos
) -> Command | None:
    """Dispatch or refuse a head; else nominate it for whoever is nearest to room in the pool."""
    placing = _placing(pool, head, now)
    chosen, decision, tried = choose(placing)
    if chosen is not None:
        return _dispatch(pool, head, chosen, decision, now)
    if (refusal := _refuse_too_large(pool, placing, tried)) is not None:
        return refusal
    large = [each for each in emptiest if placing.could_fit(each)]
    large = large or pool.emptiest(_EMPTIEST, head)
    if not large:
        pool.nominate(head, None)
        return None
    rooms = [(placing.reach(each, placing.room(each)), each) for each in large]
    nearest = max(rooms, key=lambda each: each[0])[1]
    if placing.fits(nearest):
        return _dispatch(pool, head, nearest, _room_opened(placing, nearest), now)
    if head.nominee is None or not _keeps(placing, head.nominee, nearest):
        pool.nominate(head, nearest)
    return None


def _behind(pool: Pool, head: Queued, now: Nanos) -> list[Queued]:
    """Those that may be sent before a head that finds no room."""
    if _waits_for_all(pool, head, now):
        return []
    return pool.queues.followers(head.rank, pool.config.overtaking)


def _waits_for_all(pool: Pool, head: Queued, now: Nanos) -> bool:
    """Whether a head has waited for so long that nobody of its class may pass it any more.

    Unless it waits for no instance that is there: then others would wait for nothing.
    """
    return head.nominee is not None and now - head.arrival >= pool.config.age_after


def _overtake_all(pool: Pool, now: Nanos) -> list[Command]:
    """Send who may overtake a head, when no head has room anywhere."""
    behind = [each for head in pool.queues.heads(now) for each in _behind(pool, head, now)]
    if not behind:
        return []
    most = max((each.uncommitted for each in pool.ranking), default=0)
    small = [each for each in behind if pool.demand(each) <= most]
    tried = (_overtake(pool, each, now) for each in small)
    return [each for each in tried if each is not None]


def _overtake(pool: Pool, queued: Queued, now: Nanos) -> Dispatch | None:
    """Send a request that is not the head of its queue to an instance that has room besides."""
    head = pool.queues.head(queued.rank)
    if head is None or _waits_for_all(pool, head, now):
        return None
    chosen, decision, _ = choose(_placing(pool, queued, now))
    return None if chosen is None else _dispatch(pool, queued, chosen, decision, now)


def _keeps(placing: Placing, nominee: Instance, nearest: Instance) -> bool:
    """Whether a head stays nominated: unless it would have half as far to go elsewhere.

    What has been kept free for it here would be lost.
    """
    if not placing.could_fit(nominee):
        return False
    far, _ = placing.reach(nominee, placing.room(nominee))
    near, _ = placing.reach(nearest, placing.room(nearest))
    return far >= 2 * near


def _placing(pool: Pool, queued: Queued, now: Nanos) -> Placing:
    heads = pool.queues.heads(now)
    if heads == [queued]:
        return Placing.of(pool, queued, (), now)
    turn = pool.queues.turn(queued, now)
    ahead = tuple(each.rank for each in heads if pool.queues.turn(each, now) < turn)
    return Placing.of(pool, queued, ahead, now)


def _refuse_too_large(pool: Pool, placing: Placing, tried: Instance | None) -> Refuse | None:
    if tried is not None:
        return None
    for each in pool.instances.values():
        # One that is lost may come back, as large as it was; one that is new may be larger.
        if not each.has_reported or placing.could_fit(each):
            return None
    if not pool.instances:
        return None
    pool.unqueue(placing.queued)
    return Refuse(placing.queued.request, Refusal.TOO_LARGE, None)


def _dispatch(
    pool: Pool, queued: Queued, instance: Instance, decision: Decision, now: Nanos
) -> Dispatch:
    pool.dispatch(queued, instance, now)
    return Dispatch(queued.request, instance.name, decision)


def _nomination(pool: Pool, head: Queued) -> Decision:
    nominee = head.nominee
    facts: tuple[tuple[str, float | str], ...] = ()
    if pool.block_size:
        facts = (("blocks", pool.demand(head, nominee)),)
    return Decision(
        rule="nearest to room",
        unit="spare blocks",
        chosen=Option(nominee.name, nominee.spare) if nominee else None,
        num_instances=len(pool.instances),
        left_out=tuple((reason, count) for reason, count in pool.closed.items() if count),
        facts=facts,
    )
