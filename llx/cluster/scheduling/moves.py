"""Moves that the core wants, as orders to llumlets, and what comes of them, in the core's words."""

from dataclasses import dataclass

from llx.api import MoveOutcome as Outcome
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.moves.migrations import Migrations
from llx.cluster.moves.move_log import Move as Ordered
from llx.core.model import MigrationId, PoolName
from llx.core.scheduler.commands import Move
from llx.core.scheduler.events import MoveEnded, MoveId, MoveOutcome
from llx.errors import ConflictError, UnreachableError
from llx.log import get_log
from llx.wire import ByRule

log = get_log(__name__)

_OUTCOMES = {
    Outcome.MOVED: MoveOutcome.MOVED,
    Outcome.KEPT: MoveOutcome.KEPT,
    Outcome.GONE: MoveOutcome.GONE,
    Outcome.NONE: MoveOutcome.NONE,
    Outcome.UNKNOWN: MoveOutcome.KEPT,
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A move of the core's, and its reasons."""

    pool: PoolName
    move: MoveId
    why: str


class PolicyMoves:
    """Moves that are under way because the core wants them."""

    def __init__(self, fleet: Fleet, migrations: Migrations) -> None:
        self._fleet = fleet
        self._migrations = migrations
        self._open: dict[MigrationId, _Wanted] = {}

    def order(self, move: Move) -> MoveEnded | None:
        """Order a move; if that is not possible, how it has ended at once."""
        rule = move.rule
        by_rule = ByRule(
            rule.choice, rule.least_priority, rule.about, rule.at_most, rule.rest, rule.most_tokens
        )
        instances = self._fleet.instances
        source, target = instances.get(move.source), instances.get(move.target)
        if source is None or target is None:
            return MoveEnded(move.pool, move.move, MoveOutcome.NONE)
        try:
            ordered = self._migrations.order_by_rule(source, target, by_rule, move.decision.rule)
        except (ConflictError, UnreachableError) as error:
            log.info("scheduler.move_not_ordered", source=source.name, error=error)
            return MoveEnded(move.pool, move.move, MoveOutcome.NONE)
        self._open[ordered.id] = _Wanted(move.pool, move.move, str(move.decision))
        return None

    def ended(self, move: Ordered) -> MoveEnded | None:
        """A move is over: one of these, or None."""
        if (wanted := self._open.pop(move.id, None)) is None:
            return None
        assert move.outcome is not None, "it is over"
        return MoveEnded(wanted.pool, wanted.move, _OUTCOMES[move.outcome])

    def why(self, move: Ordered) -> str:
        """Why a move was ordered that is not over: the core's reasons, or the operator's."""
        wanted = self._open.get(move.id)
        return f"{move.user}: {move.why}" if wanted is None else wanted.why
