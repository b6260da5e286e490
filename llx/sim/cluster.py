"""A cluster in virtual time: the real scheduler, engines, and what goes between them.

    arrivals ─► Scheduler ── Dispatch, a hop ──► engine ─► tokens
                   ▲   └──── Move, a hop ──────► its source ─► `Moves`
                   └──── loads, every so often, a hop late; ends of moves; ticks

It is the driver that the scheduler has in a simulation: it carries out its commands, and keeps what
the gateways of a live cluster keep, the streams and whose they are.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, assert_never

from llx.core import epochs
from llx.core.engine_model import TokenOutput
from llx.core.engine_state import EngineRequest
from llx.core.migration import SourceRules
from llx.core.model import Blocks, Epoch, InstanceId, InstanceLoad, Nanos, RequestId, Tokens
from llx.core.request_choice import Movable
from llx.core.scheduler.commands import (
    AddInstances,
    Command,
    Dispatch,
    Emptied,
    Hold,
    Move,
    Refuse,
    Terminate,
)
from llx.core.scheduler.events import (
    Event,
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
    LoadReported,
    MoveEnded,
    MoveOutcome,
    PoolConfigured,
    RequestArrived,
    Ticked,
)
from llx.core.scheduler.move_rule import pick
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.pool import Pool
from llx.core.scheduler.scheduler import Scheduler
from llx.sim.config import ClusterConfig
from llx.sim.engine import SimEngine
from llx.sim.kernel import Kernel
from llx.sim.links import Links
from llx.sim.moves import MoveConfig, Moves
from llx.sim.record import Record, Result, Spread, by_class, class_result, trace_hash
from llx.sim.workload import SimRequest

_SECOND: Final = 1_000_000_000

Observer = Callable[[Event, Nanos, Sequence[Command]], None]


class Audience(Protocol):
    """Told what clients, engines and sources of a live cluster would see."""

    def preempted(self, instance: InstanceId, count: int) -> None:
        """So many requests have lost their blocks there."""

    def taken_over(self, request: RequestId, downtime: Nanos) -> None:
        """The first token of a target has come, so long after the source's last."""

    def move_ended(
        self, order: Move, request: RequestId | None, outcome: MoveOutcome, now: Nanos
    ) -> None:
        """A move has ended; None: it had found no request."""


class _Member:
    """An instance, and what it has said of itself."""

    def __init__(self, engine: SimEngine) -> None:
        self.engine: Final = engine
        self.covers: list[RequestId] = []
        """Taken in since the last report."""
        self.said: tuple[InstanceLoad, Blocks | None] | None = None
        self.is_busy = False
        """Whether it has any request, by what it has said."""
        self.is_due = False


class Cluster:
    """One run; `run` it once.

    Args:
        config: What is simulated.
        requests: In the order of their arrival.
        watch: Told now and then how many requests have ended.
        observe: Told every event of the scheduler, when it was, and what the scheduler answered.
        policies: That the pool's configuration may name.
        audience: Told what goes on besides.
    """

    def __init__(
        self,
        config: ClusterConfig,
        requests: Iterator[SimRequest],
        watch: Callable[[int], None] | None = None,
        observe: Observer | None = None,
        policies: Policies | None = None,
        audience: Audience | None = None,
    ) -> None:
        self.records: list[Record] = []
        self._config = config
        self._requests = requests
        self._watch = watch
        self._observe = observe
        self._audience = audience
        self._kernel = Kernel()
        self._scheduler = Scheduler(policies)
        self._members: dict[InstanceId, _Member] = {}
        self._leaving: list[InstanceId] = []
        """Being emptied."""
        self._num_joined = 0
        self._num_ended = 0
        self._is_all_here = False
        self._is_ticking = False
        self._reports_at = Nanos(0)
        self._due: list[_Member] = []
        """Who reports then."""
        self._num_unmoved = 0
        self._num_rounds = self._num_fragmented = 0
        self._instance_ns = 0
        self._num_up = 0
        self._changed_at = Nanos(0)
        self._priorities = {each.name: each.priority for each in config.pool.classes}
        hop = config.link.hop
        rules = SourceRules(config.engine.block_size, config.engine.max_model_len)
        self._moves = Moves(
            self._kernel,
            Links(self._kernel, config.link),
            MoveConfig(config.block_bytes, hop, rules),
            self,
            self._move_ended,
        )

    def run(self, seed: int) -> Result:
        """Until every request and every move has ended.

        Args:
            seed: Named in the result; what came of it are the requests.
        """
        self._tell(PoolConfigured(self._config.pool))
        for _ in range(self._config.num_instances):
            self._count(1)
            self._join()
        self._kernel.after(self._config.link.hop, self._await_next)
        self._kernel.run()
        self.check_end()
        return self._result(seed)

    @property
    def pool(self) -> Pool:
        """As its scheduler knows it."""
        return self._scheduler.pools[self._config.pool.name]

    def check_end(self) -> None:
        """Every request has ended once, and left nothing behind."""
        assert self._num_ended == len(self.records), "a request has not ended"
        assert not self._moves.num_open, "a move has not ended"
        for name, member in self._members.items():
            load, _ = member.engine.load_and_head()
            assert load.free == load.total, f"{name} has lost {load.used} blocks"
            assert not member.engine.epochs, f"{name} still holds {member.engine.epochs}"

    # ------------------------------------------------------------------ arrivals

    def _await_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._is_all_here = True
            return
        begin = self._config.link.hop
        at = Nanos(max(self._kernel.now, request.arrival + begin))
        self._kernel.at(at, self._arrive, request)

    def _arrive(self, request: SimRequest) -> None:
        name = RequestId(f"{len(self.records)}")
        request = SimRequest(
            self._kernel.now, request.num_prompt, request.num_outputs, request.priority_class
        )
        self.records.append(Record(request))
        self._tick_later()
        self._tell(
            RequestArrived(
                self._config.pool.name,
                name,
                request.priority_class,
                request.num_prompt,
            )
        )
        self._await_next()

    def _record(self, request: RequestId) -> Record:
        return self.records[int(request)]

    def _end(self, record: Record) -> None:
        assert record.ended_at is None, "a request ends once"
        record.ended_at = self._kernel.now
        self._num_ended += 1
        if self._watch is not None and self._num_ended % 64 == 0:
            self._watch(self._num_ended)

    # ------------------------------------------------------------------ scheduler

    def _tell(self, event: Event) -> None:
        commands = self._scheduler.handle(event, self._kernel.now)
        if self._observe is not None:
            self._observe(event, self._kernel.now, commands)
        for command in commands:
            self._obey(command)

    def _tell_later(self, event: Event) -> None:
        self._kernel.after(self._config.link.hop, self._tell, event)

    def _obey(self, command: Command) -> None:
        hop = self._config.link.hop
        match command:
            case Dispatch(request=request, instance=instance):
                on_its_way = Nanos(hop + self._config.link.gateway)
                self._kernel.after(on_its_way, self._add, request, instance)
            case Hold():
                pass
            case Refuse(request=request, reason=reason):
                record = self._record(request)
                record.refusal = reason
                self._end(record)
            case Move():
                self._kernel.after(hop, self._move, command)
            case AddInstances(count=count):
                self._grow(count)
            case Terminate(instance=instance):  # the scheduler empties it, and says when it is
                self._leaving.append(instance)
            case Emptied(instance=instance):
                self._leaving.remove(instance)
                self._leave(instance)
            case _:
                assert_never(command)

    def _tick_later(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._kernel.after(self._config.round_every, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        if self._is_all_here and self._num_ended == len(self.records):
            return
        self._tick_later()
        self._tell(Ticked())
        self._num_rounds += 1
        self._num_fragmented += _is_fragmented(self.pool, self._kernel.now)

    # ------------------------------------------------------------------ instances

    def _grow(self, count: int) -> None:
        """Whoever is being emptied is used again before another starts, as in a live cluster."""
        kept, self._leaving = self._leaving[:count], self._leaving[count:]
        for name in kept:
            self._tell(InstanceChanged(name, InstanceState.UP))
        for _ in range(count - len(kept)):
            self._count(1)
            self._kernel.after(self._config.start_takes, self._join)

    def _join(self) -> None:
        name = InstanceId(f"{self._config.pool.name}-{self._num_joined}")
        engine = SimEngine(
            self._kernel,
            self._num_joined,
            name,
            self._config.engine,
            self,
            leaps=self._config.leaps,
        )
        self._num_joined += 1
        engine.act(
            lambda model: model.moves.watch(
                lambda request, why: self._moves.gone(engine, request, why)
            )
        )
        self._members[name] = _Member(engine)
        self._tell(InstanceJoined(self._config.pool.name, name))
        self._report([self._members[name]])

    def _leave(self, name: InstanceId) -> None:
        member = self._members.pop(name)
        assert not member.engine.epochs, f"{name} leaves with requests"
        self._count(-1)
        self._tell_later(InstanceLeft(name))

    def _count(self, change: int) -> None:
        self._instance_ns += self._num_up * (self._kernel.now - self._changed_at)
        self._changed_at = self._kernel.now
        self._num_up += change

    def _add(self, request: RequestId, instance: InstanceId) -> None:
        record, member = self._record(request), self._members[instance]
        asked = EngineRequest(
            request,
            bytes(record.request.num_prompt),
            record.request.num_outputs,
            record.request.arrival,
            self._priorities[record.request.priority_class],
        )
        record.owner = instance
        member.engine.epochs[request] = record.epoch
        member.covers.append(request)
        member.engine.act(lambda model: model.add(asked))
        self._report_later(member)

    def _report_later(self, member: _Member) -> None:
        if not member.is_due:
            member.is_due = True
            self._next_reports().append(member)

    def _next_reports(self) -> list[_Member]:
        """Who reports at the next instant for that."""
        every = self._config.report_every
        at = Nanos((self._kernel.now // every + 1) * every)
        if at != self._reports_at:
            self._reports_at, self._due = at, []
            self._kernel.at(at, self._report, self._due)
        return self._due

    def _report(self, due: Sequence[_Member]) -> None:
        """Those that are due say how they are, in the order in which they became so."""
        reports: list[LoadReported] = []
        again: list[_Member] = []
        now = self._kernel.now
        for member in due:
            if member.engine.same_until <= now or member.covers or member.said is None:
                self._say(member, reports)
            member.is_due = member.is_busy
            if member.is_due:
                again.append(member)
        if again:
            self._next_reports().extend(again)
        if reports:
            self._kernel.after(self._config.link.hop, self._hear, reports)

    def _say(self, member: _Member, reports: list[LoadReported]) -> None:
        """Report an instance's load, if it has changed or somebody is to be covered."""
        said, before = member.engine.load_and_head(), member.said
        if said is before and not member.covers:
            return
        load, head = said
        if member.covers or before is None or load.free != before[0].free or said != before:
            covers, member.covers = tuple(member.covers), []
            reports.append(LoadReported(member.engine.name, load, covers, head))
        member.is_busy = bool(load.num_running or load.num_waiting or load.free != load.total)
        member.said = said

    def _hear(self, reports: Sequence[LoadReported]) -> None:
        handle, observe, now = self._scheduler.handle, self._observe, self._kernel.now
        for each in reports:  # as `_tell`, of which it is the most frequent use
            commands = handle(each, now)
            if observe is not None:
                observe(each, now, commands)
            for command in commands:
                self._obey(command)

    # ------------------------------------------------------------------ what engines say

    def planned(self, engine: SimEngine, preempted: Sequence[RequestId]) -> None:
        """`Listener`."""
        for request in preempted:
            self._record(request).preempted(self._kernel.now)
        if preempted and self._audience is not None:
            self._audience.preempted(engine.name, len(preempted))

    def said(self, engine: SimEngine, outputs: Sequence[TokenOutput]) -> None:
        """`Listener`: the gateway's part, which lets through what the owner says."""
        name, now = engine.name, self._kernel.now
        for each in outputs:
            request, finish = each.request, each.finish
            epoch = engine.epochs[request]
            if finish is not None:
                del engine.epochs[request]
            record = self._record(request)
            is_owner = record.owner == name and record.epoch == epoch
            if not is_owner and not self._takes_over(engine, request, epoch):
                self._kernel.after(self._config.link.hop, self._abort, engine, request, epoch)
                continue
            record.token(now)
            if finish is not None:
                self._end(record)

    def _takes_over(self, engine: SimEngine, request: RequestId, epoch: Epoch) -> bool:
        record = self._record(request)
        if record.ended_at is not None or not epochs.follows(epoch, record.epoch):
            return False
        former = record.owner
        assert former is not None, "whoever moves was somewhere"
        now = self._kernel.now
        if record.first_at is not None:
            record.downtime = Nanos(max(record.downtime, now - record.last_at))
            if self._audience is not None:
                self._audience.taken_over(request, Nanos(now - record.last_at))
        record.owner, record.epoch = engine.name, epoch
        source = self._members[former].engine
        self._moves.ruled(source, request, epoch, is_yours=False)
        return True

    def _abort(self, engine: SimEngine, request: RequestId, epoch: Epoch) -> None:
        if engine.epochs.get(request) == epoch:
            del engine.epochs[request]
            engine.act(lambda model: model.abort(request))

    def ask(self, request: RequestId, engine: SimEngine, epoch: Epoch) -> tuple[Epoch, bool]:
        """`Arbiter`: a source that does not hear the outcome has its request back."""
        record = self._record(request)
        if record.owner == engine.name and record.epoch == epoch:
            record.epoch = epochs.next_reign(epoch)
            return record.epoch, True
        return record.epoch, record.owner == engine.name

    # ------------------------------------------------------------------ moves

    def _move(self, order: Move) -> None:
        source, target = (self._members.get(name) for name in (order.source, order.target))
        picked = self._pick(order, source.engine) if source and target else None
        if picked is None or source is None or target is None:
            self._num_unmoved += 1
            if self._audience is not None:
                self._audience.move_ended(order, None, MoveOutcome.NONE, self._kernel.now)
            self._tell_later(MoveEnded(order.pool, order.move, MoveOutcome.NONE))
            return
        asked = source.engine.look(lambda model: model.asked(picked.request))
        self._moves.start(order, asked, source.engine, target.engine)
        self._report_later(target)

    def _pick(self, order: Move, source: SimEngine) -> Movable | None:
        held = source.look(lambda model: model.requests())
        movable = [
            Movable(
                each.asked.request,
                Blocks(each.num_blocks),
                Tokens(each.num_tokens),
                each.asked.priority,
                each.asked.arrival / _SECOND,
            )
            for each in held
            if each.state != "leaving"
            and (each.num_blocks or self._config.moves_waiting)
            and not self._moves.is_leaving(source, each.asked.request)
        ]
        now, rest = self._kernel.now, order.rule.rest
        moved = ((each.request, self._record(each.request).moved_at) for each in movable)
        resting = {request for request, at in moved if at is not None and now - at < rest}
        return pick(order.rule, movable, resting)

    def _move_ended(self, order: Move, request: RequestId, outcome: MoveOutcome) -> None:
        record = self._record(request)
        if outcome is MoveOutcome.MOVED:
            record.num_moves += 1
            record.moved_at = self._kernel.now
        else:
            self._num_unmoved += 1
        if self._audience is not None:
            self._audience.move_ended(order, request, outcome, self._kernel.now)
        for name in (order.source, order.target):
            if name in self._members:
                self._report_later(self._members[name])
        self._tell_later(MoveEnded(order.pool, order.move, outcome))

    # ------------------------------------------------------------------ result

    def _result(self, seed: int) -> Result:
        self._count(0)
        records = self.records
        begin = records[0].request.arrival if records else 0
        end = max((each.ended_at or 0 for each in records), default=0)
        moved = [each.downtime / _SECOND for each in records if each.downtime]
        return Result(
            seed=seed,
            overall=class_result(records),
            classes=by_class(records),
            num_preemptions=sum(each.num_preemptions for each in records),
            num_moves=sum(each.num_moves for each in records),
            num_unmoved=self._num_unmoved,
            downtime=Spread.of(moved),
            mean_instances=self._instance_ns / max(1, self._kernel.now),
            fragmented=self._num_fragmented / max(1, self._num_rounds),
            duration_s=(end - begin) / _SECOND,
            num_events=self._kernel.num_events,
            trace_hash=trace_hash(records),
        )


def _is_fragmented(pool: Pool, now: Nanos) -> bool:
    """Whether somebody waits for blocks that are free, but not in one place.

    In a central queue, or first in an instance's own and for more than that has.
    """
    instances = pool.instances.values()
    wanted = [pool.demand(head) for head in pool.queues.heads(now)]
    wanted += [
        each.queue_head for each in instances if each.queue_head > each.load.free and each.is_usable
    ]
    if not wanted:
        return False
    return min(wanted) <= sum(each.load.free for each in instances if each.is_usable)
