"""A world around the scheduler that does what it says, late or not at all, and holds it to its
word.

It knows what the scheduler does not: every request and where it is. Reports are made of that when
a test says so, hence lag behind. Everything the scheduler claims is worked out here a second time,
from the events that it was told.
"""

import dataclasses
from dataclasses import dataclass, field

from llx.core.model import (
    Blocks,
    ClassLoad,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
    blocks_for,
)
from llx.core.request_choice import Movable
from llx.core.scheduler.commands import (
    AddInstances,
    Dispatch,
    Emptied,
    Hold,
    Move,
    Refusal,
    Refuse,
    Terminate,
)
from llx.core.scheduler.events import (
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
    LoadReported,
    MoveEnded,
    MoveOutcome,
    PoolConfigured,
    RequestArrived,
    RequestWithdrawn,
    Ticked,
)
from llx.core.scheduler.move_rule import pick
from llx.core.scheduler.scheduler import Scheduler

POOL = PoolName("m")
TOTAL = 40


@dataclass
class Told:
    """An instance as the scheduler was told of it, and what it really has."""

    wanted: InstanceState = InstanceState.UP
    is_lost: bool = False
    load: InstanceLoad | None = None
    has: dict[str, int] = field(default_factory=dict)
    """Request → blocks."""
    unreported: dict[str, int] = field(default_factory=dict)
    """Dispatched, not in a report: request → blocks."""
    emptied: bool = False
    settling_in: int = 0
    """Moved to here since the last report."""
    settling_out: int = 0
    settles_since: int = 0

    @property
    def state(self):
        return InstanceState.LOST if self.is_lost else self.wanted


@dataclass
class Waits:
    rank: int
    arrival: int
    since: int
    order: int
    demand: int
    was_held: bool = False
    """In another class, or by another scheduler: it was let in however many waited there."""


class World:
    def __init__(self, config, block_size=16):
        self.config = config
        self.block_size = Tokens(block_size)
        self.scheduler = Scheduler()
        self.now = 10**12
        self.instances: dict[str, Told] = {}
        self.waiting: dict[str, Waits] = {}
        self.rank_of: dict[str, int] = {}
        self.moves: dict[int, Move] = {}
        self.gave_at: dict[str, int] = {}
        self.took_at: dict[str, int] = {}
        self.moved_at: dict[str, int] = {}
        self.sent_at: dict[str, int] = {}
        self.move_at: dict[int, int] = {}
        self.log: list[tuple[object, int, str]] = []
        self.num = 0
        self.tell(PoolConfigured(config))

    # ---------------------------------------------------------------- what happens

    def join(self):
        self.num += 1
        name = f"m-{self.num}"
        self.instances[name] = Told()
        self.tell(InstanceJoined(POOL, InstanceId(name)))

    def give(self, name, requests):
        """An instance has these already: (rank, blocks)."""
        for rank, blocks in requests:
            self.num += 1
            self.rank_of[f"r{self.num}"] = rank % len(self.config.classes)
            self.instances[name].has[f"r{self.num}"] = blocks
        self.report(name)

    def configure(self, config):
        """Other rules for the same classes."""
        self.config = dataclasses.replace(config, classes=self.config.classes)
        self.tell(PoolConfigured(self.config))

    def change(self, name, state):
        told = self.instances[name]
        before = told.state
        if state is InstanceState.LOST:
            told.is_lost = True
        elif state is InstanceState.UP and told.is_lost:
            told.is_lost = False
        else:
            told.wanted = state
        told.emptied = told.emptied and told.state is before
        if state is InstanceState.LOST:
            if before is not InstanceState.LOST:
                told.load = None
            told.unreported.clear()
            told.settling_in = told.settling_out = 0
            self.forget_moves(name)
        self.tell(InstanceChanged(InstanceId(name), state))

    def leave(self, name):
        self.forget_moves(name)
        del self.instances[name]
        self.tell(InstanceLeft(InstanceId(name)))

    def report(self, name, blocks=None):
        """The load as it is now; `blocks`: by how much each request has grown."""
        told = self.instances[name]
        told.has.update(told.unreported)
        covers, told.unreported = tuple(told.unreported), {}
        told.settling_in = told.settling_out = 0
        room = TOTAL
        for request in told.has:
            told.has[request] = min(told.has[request] + (blocks or 0), room)
            room -= told.has[request]
        running = [request for request, size in told.has.items() if size]
        waiting = [request for request, size in told.has.items() if not size]
        told.load = self.load(room, running, waiting)
        self.tell(LoadReported(InstanceId(name), told.load, tuple(map(RequestId, covers))))
        self.check_first_in_turn([name])

    def load(self, free, running, waiting):
        classes = {}
        for rank, each in enumerate(self.config.classes):
            runs = sum(self.rank_of[request] == rank for request in running)
            waits = sum(self.rank_of[request] == rank for request in waiting)
            classes[each.priority] = ClassLoad(runs, waits, Blocks(waits))
        return InstanceLoad(
            total=Blocks(TOTAL), free=Blocks(free), block_size=self.block_size,
            num_running=len(running), num_waiting=len(waiting), waiting_demand=Blocks(len(waiting)),
            waiting_tokens=Tokens(len(waiting)), classes=classes,
        )  # fmt: skip

    def arrive(self, rank, num_tokens, waited=0, held=None):
        self.num += 1
        request = f"r{self.num}"
        self.rank_of[request] = rank
        limit = self.config.classes[rank].queue_limit
        is_full = sum(each.rank == rank for each in self.waiting.values()) >= limit
        was_held = held is not None
        demand = blocks_for(num_tokens + 1, self.block_size)
        came = self.now - waited
        since = self.now - held if was_held else came
        self.waiting[request] = Waits(rank, came, since, self.num, demand, was_held)
        name = self.config.classes[rank].name
        out = self.tell(
            RequestArrived(
                POOL,
                RequestId(request),
                ClassName(name),
                Tokens(num_tokens),
                Nanos(waited),
                (),
                held,
            )
        )
        refused = any(
            isinstance(each, Refuse) and each.reason is Refusal.QUEUE_FULL for each in out
        )
        assert refused == (is_full and not was_held)
        answers = [each for each in out if getattr(each, "request", None) == request]
        assert len(answers) == 1, "an arrival is answered once"
        assert isinstance(answers[0], Dispatch | Hold | Refuse)
        assert request in self.waiting or not isinstance(answers[0], Hold)

    def reclass(self, request, rank):
        """A request that waits is told of again, under a class that may be another."""
        waits, self.num = self.waiting[request], self.num + 1
        if rank != waits.rank:
            self.waiting[request] = dataclasses.replace(
                waits, rank=rank, since=self.now, order=self.num, was_held=True
            )
            self.rank_of[request] = rank
        name = ClassName(self.config.classes[rank].name)
        tokens = Tokens(waits.demand * self.block_size - 1)
        out = self.tell(RequestArrived(POOL, RequestId(request), name, tokens))
        answers = [each for each in out if getattr(each, "request", None) == request]
        assert len(answers) == 1, "it is answered once"
        assert isinstance(answers[0], Dispatch | Hold | Refuse)

    def withdraw(self, request):
        self.waiting.pop(request, None)
        for told in self.instances.values():
            told.unreported.pop(request, None)
            told.has.pop(request, None)
        self.tell(RequestWithdrawn(POOL, RequestId(request)))

    def finish(self, name, request):
        del self.instances[name].has[request]

    def end_move(self, move, outcome=None):
        """The source picks, and the request moves; or it goes as `outcome` says."""
        order = self.moves.pop(move)
        source, target = self.instances[order.source], self.instances[order.target]
        if outcome is None:
            picked = self.pick(order, source)
            room = TOTAL - sum(target.has.values())
            outcome = MoveOutcome.NONE if picked is None else MoveOutcome.MOVED
            if picked is not None and picked.num_blocks > room:
                outcome = MoveOutcome.KEPT
            if outcome is MoveOutcome.MOVED:
                assert picked is not None
                target.has[picked.request] = source.has.pop(picked.request)
                self.moved_at[picked.request] = self.now
        if outcome is MoveOutcome.MOVED:
            self.gave_at[order.source] = self.took_at[order.target] = self.now
            source.settling_out += 1
            target.settling_in += 1
            source.settles_since = target.settles_since = self.now
        self.tell(MoveEnded(POOL, order.move, outcome))

    def pick(self, order, source):
        requests = [
            Movable(
                RequestId(request), Blocks(size), Tokens(size * self.block_size),
                self.config.classes[self.rank_of[request]].priority, 0.0,
            )
            for request, size in source.has.items()
        ]  # fmt: skip
        rest = order.rule.rest
        resting = {RequestId(each) for each, at in self.moved_at.items() if self.now - at < rest}
        return pick(order.rule, requests, resting)

    def tick(self, after):
        self.now += after
        deadline = self.config.rescheduling.deadline
        for told in self.instances.values():
            expired = self.config.charge_expires_after
            for request in [r for r in told.unreported if self.now - self.sent_at[r] >= expired]:
                del told.unreported[request]  # The dispatch has not come about.
        for move in [m for m, at in self.move_at.items() if self.now - at >= deadline]:
            self.moves.pop(move, None)
        for name, told in self.instances.items():
            lasts = self.now - told.settles_since >= self.config.charge_expires_after
            if (told.settling_in or told.settling_out) and lasts:
                self.report(name)  # It reports on change: late, but not for as long as this.
        self.tell(Ticked())
        assert not any(self.is_overdue(each) for each in self.waiting.values())
        self.check_first_in_turn(self.instances)

    def forget_moves(self, name):
        for move in [m for m, each in self.moves.items() if name in (each.source, each.target)]:
            del self.moves[move]

    # ---------------------------------------------------------------- what is answered

    def tell(self, event):
        out = self.scheduler.handle(event, Nanos(self.now))
        self.log.append((event, self.now, repr(out)))
        for command in out:
            self.obey(command)
        return out

    def obey(self, command):
        match command:
            case Dispatch():
                self.check_dispatch(command)
                self.sent_at[command.request] = self.now
                demand = self.waiting.pop(command.request).demand
                self.instances[command.instance].unreported[command.request] = demand
            case Hold():
                assert command.request in self.waiting
            case Refuse():
                waited = self.waiting.pop(command.request)
                if command.reason is Refusal.TOO_LARGE:
                    assert waited.demand > TOTAL
                if command.reason is Refusal.WAITED_TOO_LONG:
                    assert self.is_overdue(waited)
            case Move():
                self.check_move(command)
                self.moves[command.move] = command
                self.move_at[command.move] = self.now
            case Terminate():
                self.instances[command.instance].wanted = InstanceState.TERMINATING
            case Emptied():
                told = self.instances[command.instance]
                assert told.state is InstanceState.TERMINATING
                assert not told.emptied, "said once"
                assert not told.unreported
                assert not told.has, "it has requests"
                assert told.load is not None
                assert not told.load.num_running + told.load.num_waiting
                told.emptied = True
            case AddInstances():
                assert command.count > 0

    def check_dispatch(self, command):
        """One place, first come first served, who may go there, and who must not be overtaken."""
        request, waits = command.request, self.waiting[command.request]
        told = self.instances[command.instance]
        assert told.state is InstanceState.UP
        self.check_turn(waits)
        assert all(request not in each.unreported for each in self.instances.values())
        if self.config.is_immediate:
            return
        room = self.room(told, command.instance, self.urgency(waits)[0])
        assert waits.demand <= room - self.kept_for(command.instance, waits)
        for rank in range(len(self.config.classes)):
            head = self.head(rank)
            if head is not None and self.urgency(head) < self.urgency(waits):
                urgency = self.urgency(head)[0]
                assert head.demand > self.room(told, command.instance, urgency), "overtaken"

    def check_turn(self, waits):
        """The first of its class, or one of the few behind it, and that not for long."""
        head = self.head(waits.rank)
        if head is waits:
            return
        known = self.scheduler.pools[POOL].queues.head(waits.rank)
        waits_for_none = known is not None and known.nominee is None
        is_late = self.now - head.arrival >= self.config.age_after
        assert waits_for_none or not is_late, "overtaken for too long"
        same = [each for each in self.waiting.values() if each.rank == waits.rank]
        behind = sorted(each.order for each in same if each is not head)
        assert waits.order in behind[: self.config.overtaking], "overtaken by too many"

    def check_first_in_turn(self, names):
        """Whoever is before all others waits because none of these has room."""
        first = min(self.waiting.values(), key=self.urgency, default=None)
        for name in names if first is not None else ():
            told = self.instances[name]
            if told.state is InstanceState.UP and told.load is not None:
                assert first.demand > self.room(told, name, self.urgency(first)[0]), "it has room"

    def kept_for(self, name, waits):
        """Blocks that the heads before it, which wait for this instance, are to have."""
        nominee = self.scheduler.pools[POOL].instances[name]
        heads = [self.head(rank) for rank in range(len(self.config.classes))]
        return sum(
            each.demand
            for each in heads
            if each is not None
            and self.urgency(each) < self.urgency(waits)
            and each.rank in nominee.nominated
        )

    def room(self, told, name, urgency):
        assert told.load is not None
        incoming = [move for move in self.moves.values() if move.target == name]
        outgoing = [move for move in self.moves.values() if move.source == name]
        load = told.load
        room = load.free - load.waiting_demand - sum(told.unreported.values())
        room -= self.scheduler.pools[POOL].instances[name].incoming
        moves = incoming or outgoing or told.settling_in or told.settling_out
        if not (load.num_running or load.num_waiting or told.unreported or moves):
            return room
        present = {self.rank_of[each] for each in told.unreported}
        present |= {
            each
            for each, cls in enumerate(self.config.classes)
            if load.classes[cls.priority].num_running
        }
        num_in = self.scheduler.pools[POOL].instances[name].num_in
        growing = self.config.growth_tokens * (load.num_running + len(told.unreported) + num_in)
        room -= -(-growing // self.block_size)
        kept = {each for each in present if each < urgency}
        return room - sum(self.config.classes[each].headroom for each in kept)

    def head(self, rank):
        of_class = [each for each in self.waiting.values() if each.rank == rank]
        return min(of_class, key=lambda each: (each.arrival, each.order), default=None)

    def is_overdue(self, waits):
        return self.now - waits.since >= self.config.classes[waits.rank].max_wait

    def urgency(self, waits):
        aged = max(0, waits.rank - (self.now - waits.arrival) // self.config.age_after)
        return aged, waits.arrival, waits.order

    def check_move(self, command):
        rules = self.config.rescheduling
        source, target = self.instances[command.source], self.instances[command.target]
        assert source.state in {InstanceState.UP, InstanceState.CORDONED, InstanceState.TERMINATING}
        assert target.state is InstanceState.UP
        assert command.source != command.target
        moves = [*self.moves.values(), command]
        assert len(moves) <= rules.max_moves
        assert sum(each.source == command.source for each in moves) <= rules.max_out
        assert sum(each.target == command.target for each in moves) <= rules.max_in
        if command.decision.rule == "balance":
            took, gave = self.took_at.get(command.source), self.gave_at.get(command.target)
            assert took is None or self.now - took >= rules.rest, "ping-pong"
            assert not any(each.target == command.source for each in self.moves.values())
            assert not any(each.source == command.target for each in self.moves.values())
            assert gave is None or self.now - gave >= rules.rest, "ping-pong"
        self.gave_at[command.source] = self.took_at[command.target] = self.now
