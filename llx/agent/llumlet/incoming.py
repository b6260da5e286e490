"""One migration at its target: the machine's commands carried out."""

import secrets
from collections.abc import Callable, Sequence
from typing import assert_never

from llx.agent.llumlet.parts import Deadline, Parts
from llx.core.migration import Reservation
from llx.core.migration.events import (
    Abandon,
    AbortAsked,
    Apply,
    ArbiterLost,
    AskExtend,
    AskReserve,
    CannotApply,
    CannotReserve,
    CommitAsked,
    Drop,
    ExtendAsked,
    Fence,
    FinishCopy,
    HasApplied,
    HasReserved,
    IsFenced,
    IsNotReady,
    SendCommitted,
    SendDropped,
    SendRefused,
    SendReserved,
    SetDeadline,
    SourceLost,
    TimedOut,
)
from llx.core.migration.target import Command, Event, Target, TargetState
from llx.core.model import RequestId
from llx.log import get_log
from llx.wire import (
    AbortMigration,
    Commit,
    Committed,
    Dropped,
    Extend,
    FromTarget,
    MigrationRefused,
    Reserve,
    Reserved,
)

log = get_log(__name__)


class Incoming:
    """Takes one request in.

    Args:
        parts: What it works with.
        source: The source's session.
        gateway: The session of the gateway that holds the stream.
        header: What the source asked for.
        prepared: The request, as the engine has decoded it.
        arrived: Told when the request has come.
    """

    def __init__(
        self,
        parts: Parts,
        source: int,
        gateway: int,
        header: Reserve,
        prepared: object,
        arrived: Callable[[RequestId], None],
    ) -> None:
        self.header = header
        self._parts = parts
        self._source = source
        self._gateway = gateway
        self._prepared: object | None = prepared
        self._arrived = arrived
        self._target = Target(header.num_tokens)
        self._deadline = Deadline(parts.loop)
        self._token = b""

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing of its own any more."""
        return self._target.is_over

    def start(self) -> None:
        """Begin."""
        self._carry_out(self._target.start())

    def handle(self, event: Event) -> None:
        """Tell the machine, and do what it wants."""
        before = self._target.state
        self._carry_out(self._target.handle(event))
        if self._target.state is not before and self._target.is_over:
            self._prepared = None
            has_arrived = self._target.state is TargetState.OWNING
            if has_arrived:
                self._arrived(self.header.request)
            log.info(
                "migration.arrived" if has_arrived else "migration.refused",
                migration=self.header.migration,
                request=self.header.request,
                state=self._target.state.value,
                reason=self._target.reason,
            )

    def hear(self, message: Extend | Commit | AbortMigration) -> None:
        """What the source says."""
        match message:
            case Extend(num_tokens=num_tokens):
                self.handle(ExtendAsked(num_tokens))
            case Commit(stage=stage, outputs=outputs, num_computed=num_computed, priority=priority):
                self.handle(CommitAsked(stage, tuple(outputs), num_computed, priority))
            case AbortMigration(reason=reason):
                self.handle(AbortAsked(reason))
            case _:
                assert_never(message)

    def drop_peer(self, peer: int) -> None:
        """A session is over; it may be one of these two."""
        if peer == self._source:
            self.handle(SourceLost())
        elif peer == self._gateway:
            self.handle(ArbiterLost())

    # ------------------------------------------------------------------ commands

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        migration, transport = self.header.migration, self._parts.transport
        match command:
            case SetDeadline(after_s=after_s):
                self._deadline.set(after_s, self._timed_out)
            case AskReserve(num_tokens=num_tokens, after_s=after_s):
                if after_s:
                    self._parts.loop.call_later(after_s, self._reserve, num_tokens)
                else:
                    self._reserve(num_tokens)
            case AskExtend() | Apply() | Abandon() | Drop():
                self._do_in_engine(command)
            case SendReserved(reservation=reservation):
                self._admit(reservation)
            case SendRefused(reason=reason):
                self._send(MigrationRefused(migration, reason))
            case SendCommitted():
                self._send(Committed(migration))
            case SendDropped(reason=reason):
                self._send(Dropped(migration, reason))
            case FinishCopy():
                transport.finish(migration)
            case Fence():
                transport.fence(migration, lambda: self._parts.post(self.handle, IsFenced()))
            case _:
                assert_never(command)

    def _do_in_engine(self, command: AskExtend | Apply | Abandon | Drop) -> None:
        engine, header = self._parts.engine, self.header
        match command:
            case AskExtend(num_tokens=num_tokens):
                self._parts.ask(
                    lambda: engine.extend(header.migration, num_tokens), self._has_reserved
                )
            case Apply(commit=commit):
                self._parts.ask(lambda: self._commit(commit), self._has_applied)
            case Abandon():
                engine.on_core(lambda: engine.abandon(header.migration))
            case Drop():
                self._parts.sink.abort(self._gateway, [(header.request, header.epoch)])
            case _:
                assert_never(command)

    def _reserve(self, num_tokens: int) -> None:
        prepared = self._prepared
        if self._target.state is not TargetState.PREPARING or prepared is None:
            return  # it was given up while it waited
        engine, migration = self._parts.engine, self.header.migration
        reuse = self._parts.spec.reuse_prefix and self.header.reuse_prefix
        self._parts.ask(
            lambda: engine.reserve(migration, prepared, num_tokens, reuse_prefix=reuse),
            self._has_reserved,
        )

    def _commit(self, commit: CommitAsked) -> str:
        """On the core thread: a gateway that has left since must not become an owner."""
        if self._parts.endpoint.index_of(self.header.gateway) != self._gateway:
            self._parts.engine.abandon(self.header.migration)
            return "the gateway that holds the stream has left"
        engine = self._parts.engine
        refusal = engine.commit(
            self.header.migration,
            self._gateway,
            self.header.epoch,
            commit.outputs,
            commit.num_computed,
        )
        if not refusal:
            engine.set_priority(self.header.request, commit.priority)
        return refusal

    def _admit(self, reservation: Reservation) -> None:
        migration, transport = self.header.migration, self._parts.transport
        is_first = not self._token
        # What is reused is other requests' as well.
        own = reservation.blocks[reservation.num_reused // self._parts.facts.block_size :]
        if is_first:
            self._token = secrets.token_bytes(16)
            transport.expect(migration, self._token, own)
        else:
            transport.allow(migration, own)
        self._send(
            Reserved(
                migration,
                reservation.num_tokens,
                list(reservation.blocks),
                reservation.num_reused,
                transport.routes if is_first else [],
                self._token if is_first else b"",
            )
        )

    def _send(self, message: FromTarget) -> None:
        self._parts.endpoint.emit(self._source, message)

    def _timed_out(self) -> None:
        self.handle(TimedOut())

    # ------------------------------------------------------------------ answers

    def _has_reserved(self, result: Reservation | str | None) -> None:
        if result is None:
            self.handle(IsNotReady())
        elif isinstance(result, str):
            self.handle(CannotReserve(result))
        else:
            self.handle(HasReserved(result))

    def _has_applied(self, refusal: str) -> None:
        self.handle(CannotApply(refusal) if refusal else HasApplied())
