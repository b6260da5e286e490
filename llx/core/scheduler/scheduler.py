"""The scheduler: what happens in the cluster goes in, what should be done comes out.

    driver                          Scheduler
      │ ── handle(event, now) ────────► │  changes its state
      │ ◄────── [command, command] ──── │  never blocks, never asks
      │ carries them out, and tells what has come of it as further events

It reads no clock, keeps no history and draws no random number: the same events at the same times
give the same commands, byte for byte. It knows instances and what waits; of a running request it
knows nothing. Whatever it has forgotten by a restart is told again: instances report, gateways
send the requests that wait.
"""

from dataclasses import replace
from itertools import islice
from typing import Final, assert_never

from llx.core.model import Blocks, InstanceId, Nanos, PoolName, Tokens
from llx.core.scheduler import placing, rescheduling, scaling
from llx.core.scheduler.commands import (
    AddInstances,
    Command,
    Emptied,
    Move,
    Refusal,
    Refuse,
    Terminate,
)
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.events import (
    Event,
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
    LoadReported,
    MoveEnded,
    Paused,
    PoolConfigured,
    PoolGone,
    RequestArrived,
    RequestWithdrawn,
    Resumed,
    StartFailed,
    Stepped,
    Ticked,
)
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.move_rule import MoveRule
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.pool import Pool
from llx.core.scheduler.queues import Queued

_TERMINATING: Final = InstanceState.TERMINATING
_MOST_IN_A_ROUND: Final = 16
"""Moves of a pool that are ordered at a time, so that nothing else waits long for a round. What is
left is the next one's, which knows more by then."""


class Scheduler:
    """Schedules any number of pools.

    Args:
        policies: What configurations can name.
    """

    def __init__(self, policies: Policies | None = None) -> None:
        self.pools: dict[PoolName, Pool] = {}
        """To be read, not changed."""
        self._policies = policies or Policies()
        self._pool_of: dict[InstanceId, Pool] = {}
        self._num_arrived = 0
        self._now = Nanos(0)

    def handle(self, event: Event, now: Nanos) -> list[Command]:
        """Take an event in, and return what is to be done about it, in this order.

        Args:
            event: What has happened. One about something that is not known (any more) is ignored.
            now: When; never before the event before.

        Raises:
            ConfigError: A configuration names an unknown policy. Nothing has changed then.
        """
        assert now >= self._now, f"time runs backwards, from {self._now} to {now}"
        self._now = now
        match event:
            case LoadReported():
                return self._report(event, now)
            case RequestArrived():
                return self._arrive(event, now)
            case RequestWithdrawn():
                return self._withdraw(event, now)
            case Ticked():
                return [each for pool in self.pools.values() for each in self._round(pool, now)]
            case MoveEnded():
                pool = self.pools.get(event.pool)
                ends = pool.end_move(event.move, event.outcome, now) if pool else ()
                return [each for end in ends for each in self._room_at(end, now)]
            case InstanceJoined() | InstanceChanged() | InstanceLeft():
                return self._member(event, now)
            case PoolConfigured():
                return self._configure(event.config, now)
            case PoolGone():
                return self._drop(event.pool)
            case StartFailed():
                if event.pool in self.pools:
                    self.pools[event.pool].scaling.fail(event.count, now)
                return []
            case Paused() | Resumed() | Stepped():
                return self._steer(event, now)
            case _:
                assert_never(event)

    # ------------------------------------------------------------------ requests

    def _arrive(self, event: RequestArrived, now: Nanos) -> list[Command]:
        pool = self.pools.get(event.pool)
        if pool is None:
            return [Refuse(event.request, Refusal.NO_SUCH_POOL, None)]
        rank = pool.rank_by_name(event.priority_class)
        waiting = pool.queues.find(event.request)
        if waiting is not None:
            return self._remind(pool, waiting, rank, now)
        pool.strike(event.request)
        is_full = pool.queues.length(rank) >= pool.config.classes[rank].queue_limit
        if is_full and event.held is None:
            after = placing.retry_after(pool, rank)
            return [Refuse(event.request, Refusal.QUEUE_FULL, after)]
        self._num_arrived += 1
        arrival = Nanos(now - event.waited)
        since = arrival if event.held is None else max(arrival, Nanos(now - event.held))
        queued = Queued(
            event.request, rank, event.num_tokens, arrival, since, self._num_arrived,
            placing.best_prefixes(event.prefix_hits),
            None if event.patience is None else Nanos(now + event.patience),
        )  # fmt: skip
        if event.held is None and placing.would_wait_too_long(pool, queued, now):
            after = placing.retry_after(pool, rank)
            return [Refuse(event.request, Refusal.TOO_BUSY, after)]
        pool.enqueue(queued)
        return self._serve(pool, queued, now)

    def _serve(self, pool: Pool, queued: Queued, now: Nanos) -> list[Command]:
        """Place a request that has just joined its queue, or have others move away for it."""
        out = placing.serve_arrival(pool, queued, now)
        if queued.nominee is not None and "preempt" in pool.config.rescheduling.steps:
            out.extend([] if pool.is_paused else self._step(pool, "preempt", now))
        return out

    def _remind(self, pool: Pool, waiting: Queued, rank: int, now: Nanos) -> list[Command]:
        """A request that waits is told of again; under another class it goes over to that queue.

        With the age that it has, and however many wait there: it was taken in before. How long it
        may wait there counts from now.
        """
        if rank == waiting.rank:
            return [placing.hold(pool, waiting)]
        nominee = waiting.nominee
        pool.unqueue(waiting)
        self._num_arrived += 1
        queued = replace(waiting, rank=rank, since=now, order=self._num_arrived, nominee=None)
        pool.enqueue(queued)
        out = self._serve(pool, queued, now)
        return out if nominee is None else [*out, *self._room_at(nominee, now)]

    def _withdraw(self, event: RequestWithdrawn, now: Nanos) -> list[Command]:
        pool = self.pools.get(event.pool)
        if pool is None:
            return []
        queued = pool.queues.find(event.request)
        instance = pool.strike(event.request) if queued is None else queued.nominee
        if queued is not None:
            pool.unqueue(queued)
        return [] if instance is None else self._room_at(instance, now)

    # ------------------------------------------------------------------ instances

    def _report(self, event: LoadReported, now: Nanos) -> list[Command]:
        pool = self._pool_of.get(event.instance)
        if pool is None:
            return []
        instance = pool.instances[event.instance]
        pool.report(instance, event)
        if instance.wanted is not _TERMINATING and not pool.queues:
            return []
        return self._room_at(instance, now)

    def _member(
        self, event: InstanceJoined | InstanceChanged | InstanceLeft, now: Nanos
    ) -> list[Command]:
        pool = self._pool_of.get(event.instance)
        match event:
            case InstanceJoined():
                if pool is None and event.pool in self.pools:
                    self._pool_of[event.instance] = self.pools[event.pool]
                    self.pools[event.pool].join(event.instance)
                return []
            case InstanceChanged():
                if pool is None:
                    return []
                instance = pool.instances[event.instance]
                pool.change(instance, event.state, now)
                return self._room_at(instance, now)
            case InstanceLeft():
                if pool is not None:
                    pool.leave(pool.instances[event.instance])
                    del self._pool_of[event.instance]
                return []

    def _room_at(self, instance: Instance, now: Nanos) -> list[Command]:
        """What follows when an instance may have got room, or may have become empty."""
        pool = self._pool_of.get(instance.name)
        if pool is None:
            return []
        is_terminating = instance.state is InstanceState.TERMINATING
        if is_terminating and instance.is_known and not instance.is_working:
            if instance.is_emptied:
                return []
            instance.is_emptied = True
            return [Emptied(pool.config.name, instance.name)]
        if pool.config.is_immediate:
            return placing.serve_all(pool, now) if pool.queues else []
        return placing.serve_at(pool, instance, now)

    # ------------------------------------------------------------------ rounds

    def _configure(self, config: PoolConfig, now: Nanos) -> list[Command]:
        self._policies.check(config)
        policy = self._policies.dispatch[config.dispatch]
        pool = self.pools.get(config.name)
        if pool is None:
            self.pools[config.name] = Pool(config, policy)
            return []
        pool.configure(config, policy)
        return placing.serve_all(pool, now)

    def _drop(self, name: PoolName) -> list[Command]:
        """One with instances stays: what they say would be nobody's."""
        pool = self.pools.get(name)
        if pool is None or pool.instances:
            return []
        del self.pools[name]
        waiting = pool.queues.waiting()
        return [Refuse(each.request, Refusal.NO_SUCH_POOL, None) for each in waiting]

    def _steer(self, event: Paused | Resumed | Stepped, now: Nanos) -> list[Command]:
        pool = self.pools.get(event.pool)
        if pool is None:
            return []
        if isinstance(event, Stepped):
            return self._reschedule(pool, now)
        pool.is_paused = isinstance(event, Paused)
        pool.scaling.forget_since()
        return []

    def _round(self, pool: Pool, now: Nanos) -> list[Command]:
        pool.expire_moves(now)
        pool.expire_charges(now)
        out = placing.serve_all(pool, now) if pool.queues else []
        for each in pool.terminating():
            out.extend(self._room_at(each, now))
        return out if pool.is_paused else [*out, *self._reschedule(pool, now)]

    def _reschedule(self, pool: Pool, now: Nanos) -> list[Command]:
        out: list[Command] = []
        scale = self._policies.scaling[pool.config.scaling.rule](pool, now)
        if scale is not None:
            out.append(_scale(pool, scale, now))
        left = _MOST_IN_A_ROUND
        for step in pool.config.rescheduling.steps:
            moves = self._step(pool, step, now, left)
            out.extend(moves)
            left -= len(moves)
            if not left:
                break
        return out

    def _step(
        self, pool: Pool, name: str, now: Nanos, at_most: int = _MOST_IN_A_ROUND
    ) -> list[Command]:
        """Ask one rescheduling rule for so many moves."""
        wishes = islice(self._policies.rescheduling[name](pool, now), at_most)
        return [_order(pool, wish, now) for wish in wishes]


def _order(pool: Pool, wish: rescheduling.Wish, now: Nanos) -> Move:
    """Order a move; from now on it counts."""
    rules = pool.config.rescheduling
    source, target = wish.source, wish.target
    room = rescheduling.room_for_move(pool, target)
    priority = pool.config.classes[wish.most_urgent - 1].priority + 1 if wish.most_urgent else None
    if wish.is_waiting:
        most = Tokens(wish.blocks * source.load.block_size)
        rule = MoveRule("next-in-line", priority, None, Blocks(0), rules.rest, most)
    else:
        rule = MoveRule(rules.choice, priority, wish.about, room, rules.rest)
    move = pool.begin_move(source, target, wish.blocks, now, is_waiting=wish.is_waiting)
    return Move(pool.config.name, move, source.name, target.name, rule, wish.decision)


def _scale(pool: Pool, scale: scaling.Grow | scaling.Shrink, now: Nanos) -> Command:
    """Do what a scaling rule wants; from now on it counts."""
    state, name = pool.scaling, pool.config.name
    state.changed_at = now
    state.forget_since()
    match scale:
        case scaling.Grow():
            state.starting += scale.count
            state.asked_at = now
            return AddInstances(name, scale.count, scale.decision)
        case scaling.Shrink():
            pool.change(scale.instance, InstanceState.TERMINATING, now)
            return Terminate(name, scale.instance.name, scale.decision)
        case _:
            assert_never(scale)
