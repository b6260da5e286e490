"""An instance of the model world: its engine, and a driver that does what the machines command.

Everything here is what the real llumlet has to do as well, with the threads taken out: actions on
the engine's core run a little later, in order; what the engine says arrives a little later still.
"""

from dataclasses import dataclass, field
from functools import partial

from llx.core import epochs
from llx.core.migration import Reservation, SourceRules
from llx.core.migration import events as e
from llx.core.migration.source import Source
from llx.core.migration.target import Target, TargetState
from llx.wire import (
    Abort,
    AbortMigration,
    AskOwner,
    Commit,
    Committed,
    Dropped,
    Extend,
    MigrationRefused,
    Moving,
    Reserve,
    Reserved,
    Ruling,
)
from tests.core.migration_engine import Engine

BLOCK = 2
MAX_LEN = 64
STEP_S = 0.010
SOON_S = 0.0001
WRITE_S = 0.002
"""A stage that has arrived is written into the blocks for so long."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks on their way, as they were when they were sent."""

    migration: str
    stage: int
    blocks: tuple[int, ...]
    content: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True, slots=True)
class StageIsIn:
    migration: str
    stage: int


@dataclass(frozen=True, slots=True)
class CopyEnds:
    migration: str


@dataclass(slots=True)
class Leaving:
    migration: str
    request: str
    target: str
    session: int
    machine: Source
    blocks: tuple[int, ...] = ()
    deadline: int = 0
    is_copying: bool = True
    log: list = field(default_factory=list)


@dataclass(slots=True)
class Arriving:
    reserve: Reserve
    prompt: tuple[int, ...]
    max_tokens: int
    source: str
    session: int
    peer: int
    machine: Target
    deadline: int = 0
    next_stage: int = 0
    writing: Stage | None = None
    is_open: bool = False
    is_finished: bool = False
    log: list = field(default_factory=list)


class Instance:
    """One instance. The world calls `receive`, the `…_lost` methods, `order` and `cancel`."""

    def __init__(self, world, name, num_blocks, **rules):
        self.world, self.name = world, name
        self.rules = SourceRules(BLOCK, MAX_LEN, **rules)
        self.engine = Engine(num_blocks, BLOCK, self._request_gone)
        self.is_dead = False
        self.peer = 0
        """The gateway's session here; None: it has none."""
        self.leaving: dict[str, Leaving] = {}
        self.arriving: dict[str, Arriving] = {}
        self.ended: set[str] = set()
        """Arrivals that are over, or were called off before they began."""
        self._is_stepping = False

    # ------------------------------------------------------------------ engine

    def _later(self, delay, action):
        self.world.after(delay, lambda: None if self.is_dead else action())

    def core(self, action):
        def run():
            action()
            self.wake()

        self._later(SOON_S, run)

    def wake(self):
        if self._is_stepping or not self.engine.step_begins():
            return
        self._is_stepping = True
        self._later(STEP_S, self._step_ends)

    def _step_ends(self):
        self._is_stepping = False
        for output in self.engine.step_ends():
            if output.peer == self.peer:
                self.world.send(self.name, "gateway", output)
        self.wake()

    def _request_gone(self, request, reason):
        for leaving in list(self.leaving.values()):
            if leaving.request == request and not leaving.machine.is_over:
                self._later(SOON_S, partial(self._tell_source, leaving, e.IsGone(reason)))

    # ------------------------------------------------------------------ messages

    def receive(self, sender, session, message):
        match message:
            case Abort(requests=requests):
                for request, epoch in requests:
                    self.core(partial(self.engine.abort, self.peer, request, epoch))
            case Ruling():
                for leaving in list(self.leaving.values()):
                    if leaving.request == message.request:
                        self._tell_source(leaving, e.Ruled(message.epoch, message.is_yours))
            case Reserve():
                self._reserve(sender, session, message)
            case Stage():
                self._write(sender, session, message)
            case _ if (leaving := self.leaving.get(message.migration)) is not None:
                self._from_target(leaving, message)
            case _ if (arriving := self.arriving.get(message.migration)) is not None:
                self._from_source(arriving, message)
            case AbortMigration():
                self.ended.add(message.migration)

    def _from_target(self, leaving, message):
        match message:
            case Reserved():
                event = e.TargetReserved(message_reservation(message))
            case MigrationRefused():
                event = e.TargetRefused(message.reason)
            case Committed():
                event = e.TargetCommitted()
            case Dropped():
                event = e.TargetLost(message.reason)
            case StageIsIn():
                event = e.HasCopied(message.stage, 1)
            case _:
                return
        self._tell_source(leaving, event)

    def _from_source(self, arriving, message):
        match message:
            case Extend():
                event = e.ExtendAsked(message.num_tokens)
            case Commit():
                event = e.CommitAsked(message.stage, tuple(message.outputs), message.num_computed)
            case AbortMigration():
                event = e.AbortAsked(message.reason)
            case CopyEnds():
                if not arriving.is_open or arriving.is_finished:
                    return
                event = e.IsBroken("the source has ended the copy")
            case _:
                return
        self._tell_target(arriving, event)

    # ------------------------------------------------------------------ sessions

    def peer_lost(self, other, session):
        """The session with another instance is over."""
        for leaving in list(self.leaving.values()):
            if (leaving.target, leaving.session) == (other, session):
                self._tell_source(leaving, e.TargetLost("the session is over"))
        for arriving in list(self.arriving.values()):
            if (arriving.source, arriving.session) == (other, session):
                self._tell_target(arriving, e.SourceLost())

    def copy_lost(self, other):
        """The connections of every copy with another instance have broken."""
        for leaving in list(self.leaving.values()):
            if leaving.target == other:
                leaving.is_copying = False
                failed = e.CopyFailed(leaving.machine.num_stages, "the connection broke")
                self._tell_source(leaving, failed)
        for arriving in list(self.arriving.values()):
            if arriving.source == other and arriving.is_open and not arriving.is_finished:
                self._tell_target(arriving, e.IsBroken("the connection broke"))

    def gateway_lost(self, peer):
        """The gateway's session is over: its requests end, whatever they are doing."""
        if self.peer == peer:
            self.peer = None
        self.core(partial(self.engine.drop_peer, peer))
        for arriving in list(self.arriving.values()):
            if arriving.peer == peer:
                self._tell_target(arriving, e.ArbiterLost())

    # ------------------------------------------------------------------ source

    def order(self, migration, request, target, session):
        """Move a request, unless it is being moved."""
        held = self.engine.held.get(request)
        busy = any(
            each.request == request and not each.machine.is_over for each in self.leaving.values()
        )
        if held is None or busy or migration in self.leaving:
            return
        leaving = Leaving(migration, request, target, session, Source(held.epoch, self.rules))
        self.leaving[migration] = leaving
        self._do_source(leaving, leaving.machine.start())

    def cancel(self, migration):
        if (leaving := self.leaving.get(migration)) is not None:
            self._tell_source(leaving, e.Cancelled("cancelled"))

    def _tell_source(self, leaving, event):
        leaving.log.append((leaving.machine.state, type(event)))
        self._do_source(leaving, leaving.machine.handle(event))

    def _do_source(self, leaving, commands):
        for command in commands:
            self._do_at_source(leaving, command)

    def _do_at_source(self, leaving, command):  # noqa: C901 one line per command
        engine, request = self.engine, leaving.request
        tell = partial(self._tell_source, leaving)
        match command:
            case e.SetDeadline(after_s=after_s):
                self._set_deadline(leaving, after_s, tell)
            case e.Begin():
                self.core(partial(self._begin, leaving))
            case e.Look(after_s=after_s):
                self._later(after_s, lambda: self.core(partial(self._look, leaving)))
            case e.SendReserve(num_tokens=num_tokens):
                epoch = epochs.next_owner(leaving.machine.epoch)
                self._to_target(leaving, self._reserve_message(leaving, epoch, num_tokens))
            case e.SendExtend(num_tokens=num_tokens):
                self._to_target(leaving, Extend(leaving.migration, num_tokens))
            case e.Copy():
                self._later(SOON_S, partial(self._transmit, leaving, command))
            case e.CutRequest(max_tokens=max_tokens):
                self.core(partial(self._cut, leaving, max_tokens))
            case e.TellArbiter():
                self._to_gateway(Moving(request, leaving.machine.epoch, leaving.target))
            case e.SendCommit(stage=stage, cut=cut):
                commit = Commit(leaving.migration, stage, list(cut.outputs), cut.num_computed)
                self._to_target(leaving, commit)
            case e.SendAbort(reason=reason):
                self._to_target(leaving, AbortMigration(leaving.migration, reason))
            case e.AskArbiter():
                self._to_gateway(AskOwner(request, leaving.machine.epoch))
            case e.Resume(epoch=epoch):
                self.core(partial(engine.resume, request, epoch))
            case e.Release():
                self.core(partial(engine.release, request))
            case e.Unwatch():
                self.core(partial(engine.unwatch, request))
            case e.CloseCopy():
                leaving.is_copying = False
                self._to_target(leaving, CopyEnds(leaving.migration))

    def _reserve_message(self, leaving, epoch, num_tokens):
        return Reserve(
            leaving.migration,
            leaving.request,
            epoch,
            "gateway",
            leaving.request,
            "same",
            num_tokens,
        )

    def _begin(self, leaving):
        begun = self.engine.begin(leaving.request)
        if isinstance(begun, str):
            event = e.CannotBegin(begun)
        else:
            leaving.machine.epoch = begun.epoch
            leaving.blocks = begun.progress.blocks
            event = e.HasBegun(begun.progress)
        self._later(SOON_S, partial(self._tell_source, leaving, event))

    def _look(self, leaving):
        self._has_progressed(leaving, self.engine.progress(leaving.request))

    def _cut(self, leaving, max_tokens):
        if max_tokens is not None:
            progress = self.engine.progress(leaving.request)
            if progress is None or progress.num_tokens > max_tokens:
                self._has_progressed(leaving, progress)
                return
        self.engine.cut(leaving.request, partial(self._has_cut, leaving))

    def _has_progressed(self, leaving, progress):
        if progress is None:
            event = e.IsGone("it is there no more")
        else:
            leaving.blocks = progress.blocks
            event = e.HasProgressed(progress)
        self._later(SOON_S, partial(self._tell_source, leaving, event))

    def _has_cut(self, leaving, cut):
        if cut is None:
            event = e.IsGone("it ended before it was cut")
        else:
            leaving.blocks = cut.blocks
            event = e.HasCut(cut)
        self._later(SOON_S, partial(self._tell_source, leaving, event))

    def _transmit(self, leaving, copy):
        if not leaving.is_copying:
            return
        ours = leaving.blocks[copy.first : copy.last]
        theirs = leaving.machine.reservation.blocks[copy.first : copy.last]
        assert len(ours) == len(theirs), "blocks are copied that nobody has"
        content = tuple(tuple(self.engine.memory[block]) for block in ours)
        self._to_target(leaving, Stage(leaving.migration, copy.stage, theirs, content))

    def _to_target(self, leaving, message):
        self.world.send(self.name, leaving.target, message, session=leaving.session)

    def _to_gateway(self, message):
        if self.peer is not None:
            self.world.send(self.name, "gateway", message)

    # ------------------------------------------------------------------ target

    def _reserve(self, sender, session, message):
        if message.migration in self.ended or message.migration in self.arriving:
            return
        if self.peer is None:
            self.ended.add(message.migration)
            refused = MigrationRefused(message.migration, "the gateway is not connected here")
            self.world.send(self.name, sender, refused, session=session)
            return
        prompt, max_tokens = self.world.requests[message.request]
        arriving = Arriving(
            message, prompt, max_tokens, sender, session, self.peer, Target(message.num_tokens)
        )
        self.arriving[message.migration] = arriving
        self._do_target(arriving, arriving.machine.start())

    def _tell_target(self, arriving, event):
        arriving.log.append((arriving.machine.state, type(event)))
        self._do_target(arriving, arriving.machine.handle(event))

    def _do_target(self, arriving, commands):
        for command in commands:
            self._do_at_target(arriving, command)
        if arriving.machine.is_over:
            self.ended.add(arriving.reserve.migration)

    def _do_at_target(self, arriving, command):
        tell = partial(self._tell_target, arriving)
        migration, request = arriving.reserve.migration, arriving.reserve.request
        match command:
            case e.SetDeadline(after_s=after_s):
                self._set_deadline(arriving, after_s, tell)
            case e.AskReserve(after_s=after_s):
                self._later(after_s, lambda: self.core(partial(self._ask_reserve, arriving)))
            case e.AskExtend(num_tokens=num_tokens):
                self.core(lambda: self._answer(tell, self.engine.extend(migration, num_tokens)))
            case e.SendReserved() | e.SendRefused() | e.SendCommitted() | e.SendDropped():
                arriving.is_open |= isinstance(command, e.SendReserved)
                self._to_source(arriving, said_by_target(migration, command))
            case e.Apply(commit=commit):
                self.core(partial(self._apply, arriving, commit))
            case e.FinishCopy():
                arriving.is_finished = True
            case e.Fence():
                arriving.is_open = False
                wait_s = SOON_S if arriving.writing is None else WRITE_S + SOON_S
                self._later(wait_s, partial(tell, e.IsFenced()))
            case e.Abandon():
                self.core(partial(self.engine.abandon, migration))
            case e.Drop():
                epoch = arriving.reserve.epoch
                self.core(partial(self.engine.abort, arriving.peer, request, epoch))

    def _ask_reserve(self, arriving):
        if arriving.machine.state is not TargetState.PREPARING:
            return
        tell = partial(self._tell_target, arriving)
        if self.world.is_not_ready():
            self._later(SOON_S, partial(tell, e.IsNotReady()))
            return
        reserve = arriving.reserve
        answer = self.engine.reserve(
            reserve.migration, reserve.request, arriving.prompt, arriving.max_tokens,
            reserve.num_tokens,
        )  # fmt: skip
        self._answer(tell, answer)

    def _answer(self, tell, answer):
        is_refused = isinstance(answer, str)
        event = e.CannotReserve(answer) if is_refused else e.HasReserved(answer)
        self._later(SOON_S, partial(tell, event))

    def _apply(self, arriving, commit):
        reserve = arriving.reserve
        error = self.engine.commit(
            reserve.migration, arriving.peer, reserve.epoch, commit.outputs, commit.num_computed
        )
        event = e.CannotApply(error) if error else e.HasApplied()
        self._later(SOON_S, partial(self._tell_target, arriving, event))

    def _write(self, sender, session, stage):
        """The transport: admits what is expected, once, until it is fenced."""
        arriving = self.arriving.get(stage.migration)
        if (
            arriving is None
            or not arriving.is_open
            or arriving.is_finished
            or stage.stage != arriving.next_stage
        ):
            return
        arriving.next_stage += 1
        arriving.writing = stage
        self._later(WRITE_S, partial(self._written, arriving, stage))

    def _written(self, arriving, stage):
        for block, content in zip(stage.blocks, stage.content, strict=True):
            assert block not in self.engine.free, "a block is written that is free"
            self.engine.memory[block] = list(content)
        arriving.writing = None
        self._later(SOON_S, partial(self._tell_target, arriving, e.HasArrived(stage.stage)))
        self._to_source(arriving, StageIsIn(stage.migration, stage.stage))

    def _to_source(self, arriving, message):
        self.world.send(self.name, arriving.source, message, session=arriving.session)

    # ------------------------------------------------------------------ both

    def _set_deadline(self, end, after_s, tell):
        end.deadline += 1
        number = end.deadline
        if after_s is not None:
            self._later(after_s, lambda: tell(e.TimedOut()) if end.deadline == number else None)

    def left_behind(self):
        """What should not be there when all is over."""
        engine = self.engine
        held = sum(len(each.blocks) for each in engine.held.values())
        return {
            "lost blocks": engine.num_blocks - len(engine.free) - held,
            "shadows": sorted(engine.shadows),
            "watched": sorted(name for name, each in engine.held.items() if each.is_watched),
            "cut": sorted(n for n, each in engine.held.items() if each.state.value == "cut"),
            "sources": [x.migration for x in self.leaving.values() if not x.machine.is_over],
            "targets": [
                x.reserve.migration for x in self.arriving.values() if not x.machine.is_over
            ],
        }


def message_reservation(message):
    return Reservation(message.num_tokens, tuple(message.blocks), message.num_reused_tokens)


def said_by_target(migration, command):
    match command:
        case e.SendReserved(reservation=given):
            blocks = list(given.blocks)
            return Reserved(migration, given.num_tokens, blocks, given.num_reused)
        case e.SendRefused(reason=reason):
            return MigrationRefused(migration, reason)
        case e.SendCommitted():
            return Committed(migration)
        case e.SendDropped(reason=reason):
            return Dropped(migration, reason)
