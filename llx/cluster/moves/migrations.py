"""Migrations as operators ask for them: what may move, orders to instances, what becomes of them.

An order is a message to the source's llumlet; from there the two instances and the gateway that
holds the stream see to it, and their news ends up in the record (`llx.cluster.moves.move_log`). The
scheduler is not needed for a move to end well: one that falls, or does not hear, harms no request.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from llx.api import (
    LeftOut,
    MigrateReport,
    MigrateRequest,
    MigrationList,
    MigrationStatus,
    MoveOutcome,
    PlannedMove,
)
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.movability import check_ends, why_pinned
from llx.cluster.moves.move_log import POLICY, Experience, Move
from llx.cluster.requests.finding import find
from llx.cluster.requests.listing import Located, list_requests
from llx.cluster.requests.requests import Requests
from llx.core.model import Blocks, InstanceId, MigrationId, RequestId, Tokens
from llx.core.request_choice import CHOICES, Movable, choose
from llx.errors import ConfigError, ConflictError, NotFoundError, UnreachableError
from llx.log import get_log
from llx.wire import ByRule, CancelMigration, MigrateOrder, MigrationNews, MoveSeen, Target

log = get_log(__name__)

_SILENT_S = 60.0
"""A move is given up when so long neither it nor any other from its source was heard of."""
_LOST_S = 600.0
"""Likewise it alone: it may wait for its turn behind others."""


@dataclass(slots=True)
class _Plan:
    """Who moves, and who was meant and does not."""

    chosen: list[Located] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


class Migrations:
    """Orders migrations in a fleet and hears how they get on."""

    def __init__(
        self, fleet: Fleet, audit: AuditTrail, requests: Requests, *, silent_s: float = _SILENT_S
    ) -> None:
        self._fleet = fleet
        self._requests = requests
        self._audit = audit
        self._silent_s = silent_s
        self._numbers = itertools.count(1)
        self._on_over: Callable[[Move], None] = lambda _: None
        self._heard: dict[InstanceId, float] = {}

    def tell_over(self, on_over: Callable[[Move], None]) -> None:
        """Tell `on_over` of every move that is over, from now on."""
        self._on_over = on_over

    # ------------------------------------------------------------------ what operators ask

    def latest(self, max_over: int) -> list[MigrationStatus]:
        """Migrations under way and the last `max_over` that are over, the oldest first."""
        return [each.status() for each in self._fleet.moves.latest(max_over)]

    async def migrate(self, ask: MigrateRequest) -> MigrateReport:
        """Order what is asked for, or say what would be; answers when the orders are out.

        Raises:
            ConfigError: It names both or neither of request and source, or an unknown choice.
            NotFoundError: There is no such request or instance.
            ConflictError: Nothing can move between these instances, which is named; the id is that
                of several requests; the cluster stops.
            UnreachableError: The source does not say what it has.
        """
        if self._fleet.is_stopping:
            raise ConflictError(f"{self._fleet.settings.cluster} is being stopped")
        target = self._fleet.instance_unit(ask.target)
        plan = await self._plan(ask, target)
        experience = self._fleet.moves.experience()
        if ask.is_dry_run:
            planned = [self._planned(each, target, experience) for each in plan.chosen]
            return MigrateReport(planned=planned, left_out=plan.left_out, num_seen=experience.count)
        begun = []
        for each in plan.chosen:
            try:
                move = self.order(
                    each, target, user=ask.user, why="asked for",
                    is_checked=ask.is_checked, is_blocking=ask.is_blocking,
                    reuse_prefix=ask.reuse_prefix,
                )  # fmt: skip
            except UnreachableError as error:
                plan.left_out.append(_left_out(each, error.message))
            else:
                begun.append(move.status())
        return MigrateReport(migrations=begun, left_out=plan.left_out, num_seen=experience.count)

    def cancel(self, migration: str, user: str) -> Move:
        """Ask the source of a migration to give it up, if it still can.

        Raises:
            NotFoundError: There is none of that id, or it is long over.
            ConflictError: It is over.
            UnreachableError: Its source is not connected.
        """
        move = self.get(migration)
        if move.outcome is not None:
            raise ConflictError(f"{migration} is over: {move.outcome}")
        self._fleet.loads.tell_llumlet(move.source, CancelMigration(move.id))
        self._note("cancel_asked", move, user=user)
        return move

    def history(self, ids: Sequence[str] = ()) -> MigrationList:
        """Migrations, the oldest first: all in the record, or those of `ids` that are in it."""
        moves = self._fleet.moves.all()
        if ids:
            wanted = set(ids)
            moves = [each for each in moves if each.id in wanted]
        return MigrationList(migrations=[each.status() for each in moves])

    def get(self, migration: str) -> Move:
        """A migration.

        Raises:
            NotFoundError: There is none of that id, or it is long over.
        """
        move = self._fleet.moves.get(migration)
        if move is None:
            raise NotFoundError(f'no migration "{migration}"', remedy="llx mig ls")
        return move

    # ------------------------------------------------------------------ orders

    def order(
        self,
        located: Located,
        target: Unit,
        *,
        user: str = "",
        why: str = "",
        is_checked: bool = False,
        is_blocking: bool = False,
        reuse_prefix: bool = True,
    ) -> Move:
        """Order one move.

        Raises:
            UnreachableError: The source is not connected.
        """
        view = located.view
        move = self._new_move(located.instance, target, user=user, why=why)
        move.request, move.name, move.num_blocks = located.request, view.name, view.num_blocks
        order = self._new_order(move, target)
        self._fleet.loads.tell_llumlet(
            move.source,
            msgspec.structs.replace(
                order, is_checked=is_checked, is_blocking=is_blocking, reuse_prefix=reuse_prefix
            ),
        )
        self._fleet.moves.begin(move)
        self._note("ordered", move, user=user, why=why)
        return move

    def order_by_rule(self, source: Unit, target: Unit, rule: ByRule, why: str) -> Move:
        """Order a move of a request that the source is to choose.

        Raises:
            UnreachableError: The source is not connected.
            ConflictError: Nothing can move between these two now.
        """
        check_ends(self._fleet, source, target)
        move = self._new_move(InstanceId(source.name), target, user=POLICY, why=why)
        order = msgspec.structs.replace(self._new_order(move, target), rule=rule)
        self._fleet.loads.tell_llumlet(move.source, order)
        self._fleet.moves.begin(move)
        return move

    def _new_move(self, source: InstanceId, target: Unit, *, user: str, why: str) -> Move:
        return Move(
            id=MigrationId(f"m{self._fleet.term}-{next(self._numbers)}"),
            request=RequestId(""),
            name="",
            source=source,
            target=InstanceId(target.name),
            user=user,
            why=why,
            begun_at=time.time(),
            heard_at=time.monotonic(),
        )

    def _new_order(self, move: Move, target: Unit) -> MigrateOrder:
        inward, outward = target.known[:2]
        to = Target(move.target, inward, outward)
        return MigrateOrder(move.id, move.request, to, self._fleet.term)

    # ------------------------------------------------------------------ what is heard

    def on_news(self, instance: InstanceId, news: MigrationNews) -> None:
        """A source says how a migration gets on, perhaps one that an earlier head ordered."""
        now = time.monotonic()
        self._heard[instance] = now
        move = self._fleet.moves.get(news.migration)
        if move is None:
            move = self._adopted(instance, news, now)
        if move.source != instance:
            log.warning("migration.strange_news", migration=news.migration, instance=instance)
            return
        if not move.request and news.request and news.outcome != MoveOutcome.NONE:
            move.request, move.name = news.request, news.name
            self._note("ordered", move, user=move.user, why=move.why)
        if self._fleet.moves.on_news(move, news, time.time(), now):
            self._note_over(move)

    def on_link_down(self, instance: InstanceId, reason: str) -> None:
        """A source cannot be heard: nobody knows how its moves end. It may tell when it is back."""
        self._heard.pop(instance, None)
        for move in self._fleet.moves.leaving(instance):
            self._give_up(move, f"{instance}: {reason}")

    def on_seen(self, moves: Sequence[MoveSeen]) -> None:
        """Gateways say what they saw."""
        for move in self._fleet.moves.on_seen(moves, time.time()):
            self._note_over(move)

    def sweep(self) -> None:
        """Give up moves of which nothing was heard for long."""
        now = time.monotonic()
        for move in self._fleet.moves.open():
            silent_s = now - move.heard_at
            source_silent_s = min(silent_s, now - self._heard.get(move.source, 0.0))
            if source_silent_s < self._silent_s and silent_s < _LOST_S:
                continue
            with contextlib.suppress(UnreachableError):
                self._fleet.loads.tell_llumlet(move.source, CancelMigration(move.id))
            self._give_up(move, f"nothing was heard of it for {silent_s:.0f} s")

    # ------------------------------------------------------------------ planning

    async def _plan(self, ask: MigrateRequest, target: Unit) -> _Plan:
        if bool(ask.request) is bool(ask.source):
            raise ConfigError("name either a request, or an instance that requests are to leave")
        if ask.by not in CHOICES:
            known = ", ".join(CHOICES)
            raise ConfigError(f'by: no choice "{ask.by}"', remedy=f"there are: {known}")
        if ask.request:
            return await self._plan_request(ask.request, target)
        source = self._fleet.instance_unit(ask.source)
        check_ends(self._fleet, source, target)
        listing = await list_requests(self._fleet.loads, [source.name])
        if listing.not_asked:
            raise UnreachableError(
                f"the requests of {listing.not_asked[0]}", remedy=f"llx inst get {source.name}"
            )
        return self._plan_some(listing.requests, ask)

    async def _plan_request(self, given: str, target: Unit) -> _Plan:
        plan = _Plan()
        found = find(await self._requests.listing(), given)
        away = [each for each in found if each.instance != target.name]
        if not away:  # of several generations, those that are there are where they should be
            plan.left_out = [_left_out(each, f"is on {target.name} already") for each in found]
        for each in away:
            if each.waits is not None:
                plan.left_out.append(_left_out(each, why_pinned(self._fleet, each)))
                continue
            check_ends(self._fleet, self._fleet.instance_unit(each.instance), target)
            reason = why_pinned(self._fleet, each)
            if reason:
                plan.left_out.append(_left_out(each, reason))
            else:
                plan.chosen.append(each)
        return plan

    def _plan_some(self, requests: Sequence[Located], ask: MigrateRequest) -> _Plan:
        """Those left out are named if they are missed: if fewer move than were asked for."""
        reasons = {each.request: why_pinned(self._fleet, each) for each in requests}
        by_id = {each.request: each for each in requests}
        movable = [as_movable(each) for each in requests if not reasons[each.request]]
        chosen = choose(movable, CHOICES[ask.by], ask.count)
        plan = _Plan(chosen=[by_id[each.request] for each in chosen])
        if ask.count is None or len(chosen) < ask.count:
            plan.left_out = [
                _left_out(each, reasons[each.request]) for each in requests if reasons[each.request]
            ]
        return plan

    def _planned(self, located: Located, target: Unit, experience: Experience) -> PlannedMove:
        rate, size_bytes = experience.rate, located.view.size_bytes
        return PlannedMove(
            request=self._requests.status(located),
            target=target.name,
            copy_s=None if rate is None else round(size_bytes / rate, 6),
            downtime_ms=experience.downtime_ms,
        )

    # ------------------------------------------------------------------ leaves

    def _adopted(self, instance: InstanceId, news: MigrationNews, now: float) -> Move:
        move = Move(
            id=news.migration,
            request=news.request,
            name=news.name,
            source=instance,
            target=news.target,
            user="",
            why="ordered by an earlier head",
            begun_at=time.time() - news.elapsed_ms / 1000,
            heard_at=now,
        )
        self._fleet.moves.begin(move)
        return move

    def _give_up(self, move: Move, reason: str) -> None:
        self._fleet.moves.end(move, MoveOutcome.UNKNOWN, reason, time.time())
        self._note_over(move)

    def _note_over(self, move: Move) -> None:
        self._on_over(move)
        if not move.request:
            self._fleet.moves.drop(move)
            return
        self._note("over", move, outcome=str(move.outcome), reason=move.reason)

    def _note(self, what: str, move: Move, *, user: str = "", **fields: str) -> None:
        told = {
            "migration": move.id,
            "request": move.request,
            "name": move.name,
            "source": move.source,
            "target": move.target,
            **fields,
        }
        log.info(f"migration.{what}", **told)
        self._audit.record(f"migration.{what}", user=user, **told)


def as_movable(located: Located) -> Movable:
    """The request as a choice sees it."""
    view = located.view
    return Movable(
        located.request,
        Blocks(view.num_blocks),
        Tokens(view.num_tokens),
        view.priority,
        view.arrival,
    )


def _left_out(located: Located, reason: str) -> LeftOut:
    view = located.view
    return LeftOut(request=view.id, name=view.name, instance=located.instance, reason=reason)
