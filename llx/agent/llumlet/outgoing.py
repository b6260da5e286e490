"""One migration at its source: the machine's commands carried out, and news of it."""

import time
from collections.abc import Callable
from typing import assert_never

from llx.agent.link import InstanceLink
from llx.agent.llumlet.parts import Deadline, Parts
from llx.core import epochs
from llx.core.migration import Begun, Cut, Progress, Reservation, SourceRules
from llx.core.migration.events import (
    AskArbiter,
    Begin,
    CannotBegin,
    CloseCopy,
    Copy,
    CopyFailed,
    CutRequest,
    HasBegun,
    HasCopied,
    HasCut,
    HasProgressed,
    IsGone,
    Look,
    Release,
    Resume,
    SendAbort,
    SendCommit,
    SendExtend,
    SendReserve,
    SetDeadline,
    TargetCommitted,
    TargetLost,
    TargetRefused,
    TargetReserved,
    TellArbiter,
    TimedOut,
    Unwatch,
)
from llx.core.migration.source import ENDS, Command, Event, Source, SourceState
from llx.core.model import Epoch
from llx.errors import UnreachableError
from llx.log import get_log
from llx.ports import Copied
from llx.wire import (
    AbortMigration,
    AskOwner,
    Commit,
    Committed,
    Dropped,
    Extend,
    FromTarget,
    MigrateOrder,
    MigrationNews,
    MigrationRefused,
    Moving,
    Reserve,
    Reserved,
    ToTarget,
)

log = get_log(__name__)

_NEWS_EVERY_S = 0.05
_TO_AND_FRO = frozenset({"looking", "copying", "cutting"})
"""States that a move goes through again and again."""
_DIAL_S = 5.0
_ABANDONED = "the request is no longer there, or was preempted"


class Outgoing:
    """Moves one request away.

    Args:
        parts: What it works with.
        order: What to move, and where.
        link: The session with the target, up or not yet.
        over: Called once, with this, when nothing more will come.
    """

    def __init__(
        self,
        parts: Parts,
        order: MigrateOrder,
        link: InstanceLink,
        over: Callable[["Outgoing"], None],
    ) -> None:
        self.order = order
        self.link = link
        self._parts = parts
        self._over = over
        self._source = Source(
            Epoch(0),
            SourceRules(
                block_size=parts.facts.block_size,
                max_model_len=parts.facts.max_model_len,
                max_stages=parts.spec.max_stages,
                aborts_if_diverging=parts.spec.on_divergence == "abort",
                is_blocking=order.is_blocking,
                is_checked=order.is_checked,
            ),
        )
        self._deadline = Deadline(parts.loop)
        self._begun: Begun | None = None
        self._blocks: tuple[int, ...] = ()
        self._num_tokens = 0
        self._seen_tokens = 0
        self._is_open = False
        self._landed = 0
        self._copy_began = 0.0
        self._copying_s = 0.0
        self._copied: Copied | None = None
        self._started = time.monotonic()
        self._cut_at = 0.0
        self._told_at = 0.0
        self._told_state = ""

    @property
    def request(self) -> str:
        """What is moved."""
        return self.order.request

    def start(self) -> None:
        """Begin."""
        log.info(
            "migration.begins",
            migration=self.order.migration,
            request=self.request,
            target=self.order.target.instance,
        )
        self._carry_out(self._source.start())

    def handle(self, event: Event) -> None:
        """Tell the machine, and do what it wants."""
        if self._source.is_over:
            return
        self._carry_out(self._source.handle(event))
        self._tell()
        if self._source.state in ENDS:
            self._conclude()

    def _conclude(self) -> None:
        log.info(
            "migration.ended",
            migration=self.order.migration,
            request=self.request,
            outcome=self._source.state.value,
            reason=self._source.reason,
        )
        self._over(self)

    def hear(self, message: FromTarget) -> None:
        """What the target says."""
        match message:
            case Reserved():
                self._reserved(message)
            case MigrationRefused(reason=reason):
                self.handle(TargetRefused(f"{self.order.target.instance}: {reason}"))
            case Committed():
                self.handle(TargetCommitted())
            case Dropped(reason=reason):
                self.handle(TargetLost(f"{self.order.target.instance} dropped it ({reason})"))
            case _:
                assert_never(message)

    def link_is_down(self, reason: str) -> None:
        """The session with the target is over."""
        self.handle(TargetLost(f"{self.order.target.instance} is lost ({reason})"))

    def link_is_up(self) -> None:
        """The session with the target stands: what was to be said first can be."""
        if self._source.state is SourceState.RESERVING:
            self._send_reserve()

    def _give_up_dialling(self) -> None:
        if not self.link.is_ready and not self._source.is_over:
            self.link_is_down(self.link.refusal or "it does not answer")

    # ------------------------------------------------------------------ commands

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case SetDeadline(after_s=after_s):
                self._deadline.set(after_s, self._timed_out)
            case Begin() | Look() | CutRequest() | Resume() | Release() | Unwatch():
                self._do_in_engine(command)
            case SendReserve(num_tokens=num_tokens):
                self._num_tokens = num_tokens
                if self.link.is_ready:
                    self._send_reserve()
                else:
                    self._parts.loop.call_later(_DIAL_S, self._give_up_dialling)
            case SendExtend(num_tokens=num_tokens):
                self._send(Extend(self.order.migration, num_tokens))
            case Copy():
                self._copy(command)
            case SendCommit(stage=stage, cut=cut):
                outputs = list(cut.outputs)
                self._send(
                    Commit(self.order.migration, stage, outputs, cut.num_computed, cut.priority)
                )
            case SendAbort(reason=reason):
                self._send(AbortMigration(self.order.migration, reason), is_vital=False)
            case TellArbiter() | AskArbiter():
                self._do_with_arbiter(command)
            case CloseCopy():
                if self._is_open:
                    self._parts.transport.close(self.order.migration)
            case _:
                assert_never(command)

    def _do_in_engine(
        self, command: Begin | Look | CutRequest | Resume | Release | Unwatch
    ) -> None:
        engine, request = self._parts.engine, self.order.request
        match command:
            case Begin():
                self._parts.ask(lambda: engine.begin(request), self._has_begun)
            case Look(after_s=after_s):
                if after_s:
                    self._parts.loop.call_later(after_s, self._look)
                else:
                    self._look()
            case CutRequest(max_tokens=max_tokens):
                engine.on_core(lambda: self._cut(max_tokens))
            case Resume(epoch=epoch):
                granted = self._source.epoch if epoch is None else epoch
                engine.on_core(lambda: engine.resume(request, granted))
            case Release():
                engine.on_core(lambda: engine.release(request))
            case Unwatch():
                engine.on_core(lambda: engine.unwatch(request))
            case _:
                assert_never(command)

    def _cut(self, max_tokens: int | None) -> None:
        """On the core thread: cut the request, unless it has grown too much."""
        engine, request, post = self._parts.engine, self.order.request, self._parts.post
        if max_tokens is not None:
            progress = engine.progress(request)
            if progress is None or progress.num_tokens > max_tokens:
                post(self._has_progressed, progress)
                return
        engine.cut(request, lambda cut: post(self._has_cut, cut))

    def _look(self) -> None:
        if not self._source.is_over:
            engine, request = self._parts.engine, self.order.request
            self._parts.ask(lambda: engine.progress(request), self._has_progressed)

    def _do_with_arbiter(self, command: TellArbiter | AskArbiter) -> None:
        assert self._begun is not None, "it has a stream"
        peer, request, epoch = self._begun.peer, self.order.request, self._source.epoch
        if isinstance(command, AskArbiter):
            self._parts.endpoint.emit(peer, AskOwner(request, epoch))
        else:
            target = self.order.target.instance
            self._parts.endpoint.emit(peer, Moving(request, epoch, target))

    def _send_reserve(self) -> None:
        begun = self._begun
        assert begun is not None, "it has begun"
        header = Reserve(
            self.order.migration,
            self.order.request,
            epochs.next_owner(begun.epoch),
            self._parts.endpoint.name_of(begun.peer),
            begun.name,
            self._parts.facts.compatibility,
            self._num_tokens,
            self.order.reuse_prefix,
        )
        self._send(header, begun.payload)

    def _send(
        self,
        message: ToTarget,
        payload: tuple[bytes | memoryview, ...] = (),
        *,
        is_vital: bool = True,
    ) -> None:
        try:
            self.link.tell_llumlet(message, payload)
        except UnreachableError:
            if is_vital:
                self._parts.loop.call_soon(self.link_is_down, "the session is over")

    def _copy(self, command: Copy) -> None:
        reservation = self._source.reservation
        assert reservation is not None, "blocks were reserved"
        span = slice(command.first, command.last)
        stage, num_blocks = command.stage, command.last
        self._copy_began = time.monotonic()

        def done(result: Copied | str) -> None:
            self._parts.post(self._has_copied, stage, num_blocks, result)

        self._parts.transport.send(
            self.order.migration,
            stage,
            self._blocks[span],
            reservation.blocks[span],
            state_of=self.order.request if command.is_final else None,
            done=done,
        )

    def _timed_out(self) -> None:
        self.handle(TimedOut())

    # ------------------------------------------------------------------ answers

    def _has_begun(self, begun: Begun | str) -> None:
        if isinstance(begun, str):
            self.handle(CannotBegin(begun))
            return
        self._begun = begun
        self._source.epoch = begun.epoch
        self._see(begun.progress)
        self.handle(HasBegun(begun.progress))

    def _has_progressed(self, progress: Progress | None) -> None:
        if progress is None:
            self.handle(IsGone(_ABANDONED))
            return
        self._see(progress)
        self.handle(HasProgressed(progress))

    def _has_cut(self, cut: Cut | None) -> None:
        if cut is None:
            self.handle(IsGone(_ABANDONED))
            return
        self._cut_at = time.monotonic()
        self._blocks = cut.blocks
        self.handle(HasCut(cut))

    def _see(self, progress: Progress) -> None:
        self._blocks = progress.blocks
        self._seen_tokens = progress.num_tokens

    def _reserved(self, message: Reserved) -> None:
        reservation = Reservation(
            message.num_tokens, tuple(message.blocks), message.num_reused_tokens
        )
        if not self._is_open:
            self._is_open = True
            self._parts.transport.open(
                self.order.migration,
                message.routes,
                message.token,
                is_checked=self.order.is_checked,
            )
        self.handle(TargetReserved(reservation))

    def _has_copied(self, stage: int, num_blocks: int, result: Copied | str) -> None:
        self._copying_s += time.monotonic() - self._copy_began
        if isinstance(result, str):
            self.handle(CopyFailed(stage, result))
            return
        self._landed, self._copied = num_blocks, result
        self.handle(HasCopied(stage, result.size_bytes))

    # ------------------------------------------------------------------ news

    def _tell(self) -> None:
        now, state = time.monotonic(), self._source.state.value
        is_old = {state, self._told_state} <= _TO_AND_FRO
        if is_old and now - self._told_at < _NEWS_EVERY_S:
            return
        self._told_at, self._told_state = now, state
        news = self._news(now)
        for peer in self._parts.endpoint.peers_of("scheduler"):
            self._parts.endpoint.emit(peer, news)

    def _news(self, now: float) -> MigrationNews:
        source = self._source
        size, spent_s = source.size_bytes, self._copying_s
        return MigrationNews(
            migration=self.order.migration,
            request=self.order.request,
            name=self._begun.name if self._begun is not None else "",
            target=self.order.target.instance,
            state=source.state.value,
            epoch=source.epoch,
            stage=source.num_stages,
            num_stages=source.num_stages,
            blocks_copied=max(0, self._landed - source.num_reused),
            blocks_reused=source.num_reused,
            num_tokens=self._seen_tokens,
            size_bytes=size,
            rate=size / spent_s if spent_s > 0 else 0.0,
            elapsed_ms=(now - self._started) * 1e3,
            cut_ms=(self._cut_at - self._started) * 1e3 if self._cut_at else 0.0,
            is_over=source.is_over,
            outcome=source.state.value if source.is_over else "",
            reason=source.reason,
            transport=self._copied.medium if self._copied is not None else "",
            transport_why=self._copied.why if self._copied is not None else "",
        )
