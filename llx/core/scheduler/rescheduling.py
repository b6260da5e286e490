"""Rescheduling: which instance gives a request to which other, and why.

A rule is a generator in a table. It looks at the pool and yields the moves that it wants, one by
one; each is ordered before the rule goes on, so that it sees the pool as it will be. The budget is
kept by `may_give` and `may_take`, which every rule asks. A round orders so many moves and no more:
it may end after any of a rule's, and the rules behind it are then asked in the next one.

Whoever adds a rule writes it here (or behind an entry point), names it in the table, and writes a
scenario in `tests/scenarios`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from types import MappingProxyType
from typing import Final

from llx.core.fixed import fixed
from llx.core.model import Blocks, Nanos
from llx.core.scheduler.decision import Decision, Option
from llx.core.scheduler.events import InstanceState
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.pool import Pool
from llx.core.scheduler.queues import Queued


@fixed
class Wish:
    """A move that a rule wants.

    Attributes:
        source, target: Between whom.
        blocks: About how many will come, as far as loads tell.
        most_urgent: Rank of the most urgent class that may move.
        about: Blocks that are wanted free at the source; None: whatever the choice picks.
        decision: Why.
        is_waiting: Only what waits in the source's own queue, the next in line first.
    """

    source: Instance
    target: Instance
    blocks: Blocks
    most_urgent: int
    about: Blocks | None
    decision: Decision
    is_waiting: bool = False


ReschedulingRule = Callable[[Pool, Nanos], Iterator[Wish]]

_UP: Final = InstanceState.UP
_TERMINATING: Final = InstanceState.TERMINATING
"""As names of their own: an enum's member is dear to name for every instance."""
_TRIES = 4
"""So many targets are tried for a source in a round, freest first."""
_MOST_TARGETS = 32
"""So many are considered where a source is to be emptied, or to make room."""


def may_give(pool: Pool, source: Instance, now: Nanos) -> bool:
    """Whether one more move may leave an instance now."""
    rules = pool.config.rescheduling
    has_more = source.num_out < source.load.num_running + source.load.num_waiting
    is_free = source.num_out < rules.max_out and len(pool.moves) < rules.max_moves
    return source.is_known and has_more and is_free and now >= source.not_before


def may_take(pool: Pool, target: Instance, num_blocks: Blocks) -> bool:
    """Whether an instance may be sent one more request by a move, of about so many blocks.

    It must have them beyond every class's headroom and every queue head's demand.
    """
    if not target.is_usable or target.num_in >= pool.config.rescheduling.max_in:
        return False
    if target.num_requests >= pool.config.max_requests:
        return False
    return room_for_move(pool, target) >= num_blocks


def room_for_move(pool: Pool, target: Instance) -> Blocks:
    """Blocks that may be moved to an instance."""
    num_classes = len(pool.config.classes)
    return target.room(
        num_classes - 1, range(num_classes), pool.headrooms, pool.config.growth_tokens
    )


# ------------------------------------------------------------------ drain


def drain(pool: Pool, now: Nanos) -> Iterator[Wish]:
    """Empty terminating instances: each request to whoever is freest at that moment."""
    sources = pool.terminating()
    targets = pool.freest(_MOST_TARGETS) if sources else []
    for source in sources:
        while may_give(pool, source, now):
            blocks = source.mean_blocks() if source.load.num_running else Blocks(0)
            found = _find(pool, targets, blocks)
            facts: tuple[tuple[str, float], ...] = ()
            if not found.able:
                found = _widest(pool, targets, Blocks(0 if source.load.num_waiting else 1))
                if not found.able:
                    break
                # Whichever goes, it fits the target's room: all of that is kept for it.
                blocks = room_for_move(pool, found.able[0])
                facts = (("room", blocks),)
            why = _why(pool, "drain", source, found, facts)
            yield Wish(source, found.able[0], blocks, 0, None, why)


def _widest(pool: Pool, targets: Sequence[Instance], at_least: Blocks) -> "_Targets":
    """Those with the most room first, where nobody has room for a request of average size.

    Some requests are shorter than that, and what waits holds nothing.
    """
    found = _find(pool, targets, at_least)
    able = sorted(found.able, key=lambda each: -room_for_move(pool, each))
    return _Targets(able, found.num_full)


# ------------------------------------------------------------------ requeue


def requeue(pool: Pool, now: Nanos) -> Iterator[Wish]:
    """What waits in an instance's own queue for blocks goes to whoever has them all.

    It was preempted there, or others have grown into the blocks that it was sent for. It holds no
    KV, so the move costs nothing but its messages, and what is to be computed is computed there.
    """
    waiting = [each for each in pool.instances.values() if each.load.num_waiting]
    sources = [each for each in waiting if _has_stuck(pool, each, now)]
    targets = pool.freest(_MOST_TARGETS) if sources else []
    sources.sort(key=attrgetter("freeness"))
    for source in sources:
        if not may_give(pool, source, now):
            continue
        others = [each for each in targets if each is not source]
        free = [each for each in others if _has_plenty(pool, each, source, now)]
        demand = source.queue_head
        able = _find(pool, free, demand).able
        if able:
            found = _Targets(able, len(others) - len(able))
            why = _why(pool, "requeue", source, found, (("demand", demand),))
            yield Wish(source, able[0], demand, 0, None, why, is_waiting=True)


def _has_plenty(pool: Pool, target: Instance, source: Instance, now: Nanos) -> bool:
    """Whether the target would have twice `high` left for each request with what is stuck there.

    Then it is freer than `high` even when each has grown by as much. With less all of them, as they
    grow, would soon be short of blocks again, and preempted.
    """
    after = (target.spare - source.queue_head) / (target.batch + 1)
    is_free = after >= 2 * pool.config.rescheduling.high
    return is_free and not _rests(pool, target, now, gives=False)


def _has_stuck(pool: Pool, instance: Instance, now: Nanos) -> bool:
    """Whether the first in an instance's own queue wants more blocks than are free there.

    While anything leaves it the next report is waited for: it may be this request, or make room.
    """
    load = instance.load
    if instance.queue_head <= load.free or instance.num_out:
        return False
    if instance.lost_at is not None or instance.wanted is _TERMINATING:
        return False
    return now >= instance.not_requeued_before


# ------------------------------------------------------------------ make room


def make_room(pool: Pool, now: Nanos) -> Iterator[Wish]:
    """De-fragmentation: free blocks lie about, and the head of a queue fits nowhere.

    Work of its class or a less urgent one leaves the instance that it waits for, until it fits.
    """
    for head in pool.queues.heads(now):
        yield from _free_for(pool, head, head.rank, "make_room", now)


def preempt(pool: Pool, now: Nanos) -> Iterator[Wish]:
    """Preemption by migration: less urgent work makes room for the head of a queue.

    Nothing is stopped for it: what leaves goes on elsewhere. Besides in rounds it is asked when a
    request has come that has to wait.
    """
    for head in pool.queues.heads(now):
        if head.rank + 1 < len(pool.config.classes):
            yield from _free_for(pool, head, head.rank + 1, "preempt", now)


def _free_for(pool: Pool, head: Queued, most_urgent: int, rule: str, now: Nanos) -> Iterator[Wish]:
    source = head.nominee
    if source is None or not source.is_usable:
        return
    ahead = [each.rank for each in pool.queues.heads(now)]
    ahead = ahead[: ahead.index(head.rank)]
    urgency = pool.queues.urgency(head, now)
    room = source.room(urgency, ahead, pool.headrooms, pool.config.growth_tokens)
    missing = Blocks(pool.demand(head, source) - room - source.outgoing)
    movable = sum(source.running[most_urgent:]) - source.num_out
    if missing <= 0 or movable <= 0 or not may_give(pool, source, now):
        return
    others = (each for each in pool.freest(_MOST_TARGETS) if each is not source)
    targets = [each for each in others if not _rests(pool, each, now, gives=False)]
    while missing > 0 and movable > 0 and may_give(pool, source, now):
        blocks = min(missing, source.mean_blocks())
        found = _find(pool, targets, blocks)
        if not found.able:
            # Among its requests some are shorter than the average, and help a little.
            blocks = Blocks(-(-blocks // 2))
            found = _find(pool, targets, blocks)
        if not found.able:
            return
        facts = (("for", str(head.request)), ("missing blocks", missing))
        why = _why(pool, rule, source, found, facts)
        yield Wish(source, found.able[0], blocks, most_urgent, missing, why)
        missing = Blocks(missing - blocks)
        movable -= 1


# ------------------------------------------------------------------ balance


def balance(pool: Pool, now: Nanos) -> Iterator[Wish]:
    """Pair the least free with the freest, again and again (Llumnix, section 4.4).

    An instance below `low` gives until it is above `low + hysteresis`; one above `high` takes until
    it is below `high - hysteresis`. A move must leave the target freer than the source was, and not
    itself in need of giving.
    """
    rules = pool.config.rescheduling
    sources, targets = _roles(pool)
    if not sources:
        return
    heap = [(-each.freeness, each.ordinal, each) for each in targets]
    heapify(heap)
    for source in sources:
        if not heap or len(pool.moves) >= rules.max_moves:
            return
        if not may_give(pool, source, now) or _rests(pool, source, now, gives=True):
            continue
        most_urgent = _kept_for(pool, source)
        if most_urgent and sum(source.running[most_urgent:]) <= source.num_out:
            continue
        blocks = source.mean_blocks()
        passed_over: list[tuple[float, int, Instance]] = []
        while heap and len(passed_over) < _TRIES:
            key = heappop(heap)
            target = key[2]
            if target.num_in >= rules.max_in or _rests(pool, target, now, gives=False):
                continue
            if not _helps(pool, source, target, blocks):
                passed_over.append(key)
                continue
            able = [target, heap[0][2]] if heap else [target]
            why = _why(pool, "balance", source, _Targets(able, len(passed_over)))
            yield Wish(source, target, blocks, most_urgent, None, why)
            if target.freeness > rules.high - rules.hysteresis:
                heappush(heap, (-target.freeness, target.ordinal, target))
            break
        for key in passed_over:
            heappush(heap, key)


def _kept_for(pool: Pool, source: Instance) -> int:
    """Rank of the most urgent class that may leave a source.

    One that gives only for the headroom that it keeps gives what is less urgent than the class for
    which it keeps it: the others are there to have it.
    """
    if source.freeness_with(source.headroom) < pool.config.rescheduling.low:
        return 0
    kept = zip(pool.headrooms, source.present, strict=True)
    return next((rank + 1 for rank, (blocks, count) in enumerate(kept) if blocks and count), 0)


def _helps(pool: Pool, source: Instance, target: Instance, blocks: Blocks) -> bool:
    """Whether a request of so many blocks is better off at the target."""
    after = (target.spare - blocks) / (target.batch + 1)
    if after <= source.freeness or after < pool.config.rescheduling.low:
        return False
    return may_take(pool, target, blocks)


def _roles(pool: Pool) -> tuple[list[Instance], list[Instance]]:
    """Who may give, least free first, and who may take, of equals who joined first."""
    rules, gave, took = pool.config.rescheduling, pool.giving, pool.taking
    them = [each for each in pool.instances.values() if each.is_known and each.lost_at is None]
    short, low = rules.low + rules.hysteresis, rules.low
    wide, high = rules.high - rules.hysteresis, rules.high
    # One that is to be emptied has a freeness below any, and is the drain's to empty.
    sources = [
        each
        for each in them
        if each.freeness < short
        and (each.freeness < low or each in gave)
        and each.wanted is not _TERMINATING
    ]
    targets = [
        each for each in them if each.freeness > wide and (each.freeness > high or each in took)
    ]
    pool.giving, pool.taking = set(sources), set(targets)
    sources.sort(key=attrgetter("freeness"))
    return sources, [each for each in targets if each.wanted is _UP]


RESCHEDULING: Mapping[str, ReschedulingRule] = MappingProxyType(
    {
        "preempt": preempt,
        "requeue": requeue,
        "drain": drain,
        "make_room": make_room,
        "balance": balance,
    }
)


# ------------------------------------------------------------------ what they share


def _rests(pool: Pool, instance: Instance, now: Nanos, *, gives: bool) -> bool:
    """Whether an instance would change roles too soon: from taking to giving, or back."""
    return instance.moved_within(pool.config.rescheduling.rest, now, gave=not gives)


@fixed
class _Targets:
    """Who was found for a request: the best first; `num_full` could not take it."""

    able: Sequence[Instance]
    num_full: int


def _find(pool: Pool, targets: Sequence[Instance], num_blocks: Blocks) -> _Targets:
    """Those that may take so many blocks, the freest by now first; of equals who joined first."""
    able = [each for each in targets if may_take(pool, each, num_blocks)]
    able.sort(key=lambda each: (-each.freeness, each.ordinal))
    return _Targets(able, len(targets) - len(able))


def _why(
    pool: Pool,
    rule: str,
    source: Instance,
    found: _Targets,
    facts: Sequence[tuple[str, float | str]] = (),
) -> Decision:
    able = found.able
    left_out = [(reason, count) for reason, count in pool.closed.items() if count]
    if found.num_full:
        left_out.append(("that cannot take it", found.num_full))
    second = able[1] if len(able) > 1 else None
    is_tie = second is not None and second.freeness == able[0].freeness
    chosen = Option(able[0].name, able[0].freeness)
    next_best = Option(second.name, second.freeness) if second else None
    num_considered = len(able) + found.num_full
    tie_break = "joined first" if is_tie else ""
    its: tuple[tuple[str, float | str], ...] = (
        ("source", str(source.name)),
        ("its freeness", source.freeness),
        *facts,
    )
    # By position, which takes a third of the time: there is one for each move of a round.
    return Decision(
        rule, "freeness", chosen, next_best, len(pool.instances), num_considered,
        tuple(left_out), tie_break, its,
    )  # fmt: skip
