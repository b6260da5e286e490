"""Moves that the core wants: as orders, in the record, and back as the core's words."""

from pathlib import Path
from typing import Any

import pytest

from llx.api import InstanceState
from llx.api import MoveOutcome as Outcome
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.migrations import Migrations
from llx.cluster.requests.requests import Requests
from llx.cluster.scheduling.moves import PolicyMoves
from llx.core.model import Blocks, Epoch, InstanceId, MigrationId, Nanos, PoolName, RequestId, Term
from llx.core.scheduler.commands import Move
from llx.core.scheduler.decision import Decision
from llx.core.scheduler.events import MoveEnded, MoveId, MoveOutcome
from llx.core.scheduler.move_rule import MoveRule
from llx.errors import UnreachableError
from llx.settings import ClusterSettings
from llx.specs import EngineKind, InstanceSpec
from llx.wire import ByRule, MigrateOrder, MigrationNews

M = PoolName("m")


class Loads:
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.is_down = False

    def tell_llumlet(self, instance: str, message: Any) -> None:
        if self.is_down:
            raise UnreachableError("not connected")
        self.told.append((instance, message))

    def is_up(self, _: str) -> bool:
        return True

    def info(self, _: str) -> None:
        return None


def unit(name: str) -> Unit:
    found = Unit(InstanceSpec(name, "m", EngineKind.SIM, "/m", {}, 1, "", "", ""))
    found.state, found.host, found.known = InstanceState.READY, "h", [f"in-{name}", f"out-{name}"]
    return found


class Rig:
    def __init__(self, folder: Path) -> None:
        self.loads = Loads()
        settings = ClusterSettings.model_validate({"models": [{"name": "m", "model": "/m"}]})
        nothing: Any = None
        loads: Any = self.loads
        self.fleet = Fleet(
            settings, "cpu", Term(7), {}, {each: unit(each) for each in ("m-0", "m-1")}, {},
            nothing, loads, "", folder,
        )  # fmt: skip
        self.migrations = Migrations(
            self.fleet, AuditTrail(folder / "events"), Requests(self.fleet, tuple)
        )
        self.moves = PolicyMoves(self.fleet, self.migrations)
        self.ended: list[MoveEnded] = []
        self.migrations.tell_over(self.over)

    def over(self, move: Any) -> None:
        ended = self.moves.ended(move)
        if ended is not None:
            self.ended.append(ended)

    def order(self, number: int = 4, target: str = "m-1") -> MoveEnded | None:
        rule = MoveRule("lowest-class", 10, Blocks(3), Blocks(8), Nanos(5))
        why = Decision("balance", "freeness", None)
        ends = InstanceId("m-0"), InstanceId(target)
        return self.moves.order(Move(M, MoveId(number), *ends, rule, why))

    def news(self, **more: Any) -> None:
        request = RequestId(more.pop("request", "r"))
        news = MigrationNews(
            MigrationId("m7-1"), request, f"llx-{request}", InstanceId("m-1"), "copying", Epoch(3),
            **more,
        )  # fmt: skip
        self.migrations.on_news(InstanceId("m-0"), news)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_the_source_gets_the_rule_and_chooses(rig: Rig) -> None:
    assert rig.order() is None
    [(instance, message)] = rig.loads.told
    assert instance == "m-0"
    assert isinstance(message, MigrateOrder)
    assert (message.request, message.target.address_in) == ("", "in-m-1")
    assert message.rule == ByRule("lowest-class", 10, 3, 8, Nanos(5))
    rig.news()
    [move] = rig.migrations.history().migrations
    assert (move.request, move.name, move.user, move.why) == ("r", "llx-r", "policy", "balance")
    assert rig.fleet.moves.open_of("r") is not None


@pytest.mark.parametrize("outcome", ["moved", "kept", "gone"])
def test_how_it_ends_is_told_once_in_the_cores_words(rig: Rig, outcome: str) -> None:
    rig.order()
    rig.news(is_over=True, outcome=outcome)
    rig.news(is_over=True, outcome=outcome)
    assert rig.ended == [MoveEnded(M, MoveId(4), MoveOutcome(outcome))]
    assert [each.outcome for each in rig.migrations.history().migrations] == [Outcome(outcome)]


def test_a_source_that_has_none_to_move_leaves_no_line_in_the_record(rig: Rig) -> None:
    rig.order()
    rig.news(request="", is_over=True, outcome="none", reason="none of 2 may")
    assert rig.ended == [MoveEnded(M, MoveId(4), MoveOutcome.NONE)]
    assert rig.migrations.history().migrations == []
    assert rig.fleet.moves.open() == []


def test_what_cannot_be_ordered_has_ended(rig: Rig) -> None:
    ended = MoveEnded(M, MoveId(4), MoveOutcome.NONE)
    assert rig.order(target="m-9") == ended
    rig.fleet.instances["m-1"].is_cordoned = True
    assert rig.order() == ended
    rig.fleet.instances["m-1"].is_cordoned = False
    rig.loads.is_down = True
    assert rig.order() == ended
    assert rig.migrations.history().migrations == []


def test_a_source_that_is_lost_has_kept_what_it_had(rig: Rig) -> None:
    rig.order()
    rig.news()
    rig.migrations.on_link_down(InstanceId("m-0"), "gone")
    assert rig.ended == [MoveEnded(M, MoveId(4), MoveOutcome.KEPT)]


def test_an_operators_move_is_not_the_cores(rig: Rig) -> None:
    rig.order()
    moved = rig.migrations.get("m7-1")
    moved.outcome = Outcome.MOVED
    assert rig.moves.ended(moved) is not None
    assert rig.moves.ended(moved) is None
