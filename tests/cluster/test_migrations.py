"""Orders and news without instances: who is told, what is given up, what an earlier head began."""

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llx.api import InstanceState, MigrateRequest, MoveOutcome
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.migrations import Migrations
from llx.cluster.moves.move_log import Move
from llx.cluster.moves.moving_off import MovingOff
from llx.cluster.requests.listing import Located
from llx.cluster.requests.requests import Requests
from llx.cluster.scheduling.queue_view import Waiting
from llx.core.model import (
    Blocks,
    ClassName,
    Epoch,
    InstanceId,
    InstanceLoad,
    MigrationId,
    PoolName,
    RequestId,
    Term,
    Tokens,
)
from llx.errors import ConflictError, UnreachableError
from llx.settings import ClusterSettings
from llx.specs import EngineKind, InstanceSpec
from llx.wire import CancelMigration, MigrateOrder, MigrationNews, MoveSeen, RequestView


class Loads:
    """Instances that are told things and have a load."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.down: set[str] = set()
        self.free: dict[str, int] = {}

    def tell_llumlet(self, instance: str, message: Any) -> None:
        if instance in self.down:
            raise UnreachableError(f"instance {instance} is not connected")
        self.told.append((instance, message))

    def is_up(self, instance: str) -> bool:
        return instance not in self.down

    def info(self, _instance: str) -> None:
        return None

    def load(self, instance: str) -> tuple[InstanceLoad, float] | None:
        free = self.free.get(instance, 100)
        return InstanceLoad(Blocks(100), Blocks(free), Tokens(16), num_running=1), 0.0


def unit(name: str) -> Unit:
    pool = name.partition("-")[0]
    found = Unit(InstanceSpec(name, pool, EngineKind.SIM, "/m", {}, 1, "", "", ""))
    found.state, found.host, found.known = InstanceState.READY, "h", [f"in-{name}", f"out-{name}"]
    return found


def view(id_: str = "r", blocks: int = 2) -> RequestView:
    return RequestView(id_, f"llx-{id_}", 1, 10, "running", 5, 16 * blocks, blocks, 4096, 1.0)


def news(move: str, **more: Any) -> MigrationNews:
    return MigrationNews(
        MigrationId(move), RequestId("r"), "llx-r", InstanceId("m-1"), "copying", Epoch(3), **more
    )


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def fleet(loads: Any, tmp_path: Path) -> Fleet:
    settings = ClusterSettings.model_validate(
        {"models": [{"name": "m", "model": "/m"}], "migration": {"max_in": 2}}
    )
    instances = {name: unit(name) for name in ("m-0", "m-1", "m-2")}
    nothing: Any = None
    return Fleet(settings, "cpu", Term(7), {}, instances, {}, nothing, loads, "", tmp_path)


@pytest.fixture
def migrations(fleet: Fleet, tmp_path: Path) -> Migrations:
    return Migrations(fleet, AuditTrail(tmp_path / "events"), Requests(fleet, tuple), silent_s=60)


def order(migrations: Migrations, fleet: Fleet, id_: str = "r") -> Move:
    located = Located(view(id_), InstanceId("m-0"))
    return migrations.order(located, fleet.instances["m-1"], user="ann", why="asked for")


def test_an_order_names_the_target_and_the_term(migrations, fleet, loads) -> None:
    move = order(migrations, fleet)
    ((instance, message),) = loads.told
    assert isinstance(message, MigrateOrder)
    assert (instance, message.migration, message.term) == ("m-0", "m7-1", Term(7))
    assert (message.target.instance, message.target.address_in) == ("m-1", "in-m-1")
    assert order(migrations, fleet, "s").id == "m7-2"
    assert fleet.moves.open_of("r") is move


def test_an_order_that_cannot_be_sent_is_none(migrations, fleet, loads) -> None:
    loads.down.add("m-0")
    with pytest.raises(UnreachableError):
        order(migrations, fleet)
    assert fleet.moves.all() == []


def test_silence_ends_a_move_and_its_source_is_told(migrations, fleet, loads) -> None:
    move = order(migrations, fleet)
    migrations.sweep()
    assert move.is_open
    move.heard_at -= 100
    migrations.on_news(InstanceId("m-0"), news("m7-1"))
    migrations.sweep()
    assert move.is_open, "it was just heard of"
    move.heard_at -= 100
    migrations._heard.clear()
    migrations.sweep()
    assert move.outcome is MoveOutcome.UNKNOWN
    assert re.fullmatch(r"nothing was heard of it for 1\d\d s", move.reason)
    assert loads.told[-1] == ("m-0", CancelMigration(MigrationId("m7-1")))


def test_one_that_waits_for_its_turn_behind_others_is_not_given_up(migrations, fleet) -> None:
    first, second = order(migrations, fleet), order(migrations, fleet, "s")
    second.heard_at -= 100
    migrations.on_news(InstanceId("m-0"), news(first.id))
    migrations.sweep()
    assert second.is_open


def test_what_an_earlier_head_began_is_in_the_record(migrations, fleet) -> None:
    before = time.time()
    migrations.on_news(InstanceId("m-0"), news("m6-9", elapsed_ms=2000.0))
    move = migrations.get("m6-9")
    assert (move.source, move.target, move.why) == ("m-0", "m-1", "ordered by an earlier head")
    assert before - 2.1 < move.begun_at < time.time() - 1.9
    migrations.on_news(InstanceId("m-2"), news("m6-9", is_over=True, outcome="kept"))
    assert move.is_open, "that is none of its source's"
    migrations.on_news(InstanceId("m-0"), news("m6-9", is_over=True, outcome="moved"))
    assert move.outcome is MoveOutcome.MOVED
    seen = MoveSeen(
        RequestId("r"), Epoch(4), InstanceId("m-0"), InstanceId("m-1"), 9, downtime_ms=7.0,
        itl_ms=5.0,
    )  # fmt: skip
    migrations.on_seen([seen])
    assert migrations.history(["m6-9", "m6-10"]).migrations[0].stall_ms == 2.0


async def test_nothing_moves_while_the_cluster_stops(migrations, fleet) -> None:
    fleet.is_stopping = True
    with pytest.raises(ConflictError, match="is being stopped"):
        await migrations.migrate(MigrateRequest(request="r", target="m-1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, _: setattr(f.instances["m-1"], "state", InstanceState.LOADING), "m-1 is load"),
        (lambda _, ls: ls.down.add("m-1"), "m-1 is not connected"),
        (lambda _, ls: ls.down.add("m-0"), "m-0 is not connected"),
        (lambda f, _: setattr(f.instances["m-0"], "state", InstanceState.FAILED), "m-0 is failed"),
        (lambda f, _: setattr(f.instances["m-1"], "is_leaving", True), "m-1 is cordoned"),
    ],
)
async def test_both_ends_must_serve(migrations, fleet, loads, change, words) -> None:
    change(fleet, loads)
    with pytest.raises(ConflictError, match=words):
        await migrations.migrate(MigrateRequest(source="m-0", target="m-1"))


class TestWhereTo:
    """Where `MovingOff` sends a request."""

    @pytest.fixture
    def target(self, fleet, migrations):
        mover = MovingOff(fleet, migrations, fleet.instances["m-0"], user="", why="")

        def find(blocks=2):
            found = mover.target_for(Located(view(blocks=blocks), InstanceId("m-0")))
            return found if isinstance(found, str) else found.name

        return find

    def test_to_the_freest_with_what_is_on_its_way_counted(
        self, target, fleet, migrations, loads
    ) -> None:
        loads.free = {"m-1": 60, "m-2": 50}
        assert target() == "m-1"
        located = Located(view("s", blocks=30), InstanceId("m-0"))
        migrations.order(located, fleet.instances["m-1"])
        assert target() == "m-2"

    def test_only_where_there_is_room(self, target, fleet, migrations, loads) -> None:
        loads.free = {"m-1": 9, "m-2": 1}
        assert target(blocks=9) == "m-1"
        assert target(blocks=10) == "no other instance has room for it"
        for name in ("m-1", "m-2"):
            for number in range(2):
                order_to = fleet.instances[name]
                migrations.order(Located(view(f"{name}-{number}"), InstanceId("m-0")), order_to)
        assert target(blocks=1) == "no other instance has room for it", "max_in are on their way"

    def test_never_where_nothing_new_goes(self, target, fleet) -> None:
        fleet.instances["m-1"].is_cordoned = True
        assert target() == "m-2"
        fleet.instances["m-2"].state = InstanceState.DRAINING
        assert target() == "m-1 is cordoned: it takes nothing new; m-2 is draining"
        del fleet.instances["m-1"], fleet.instances["m-2"]
        assert target() == "m-0 is the only instance of m"


async def test_what_waits_centrally_is_left_out_with_the_reason(fleet, loads, tmp_path) -> None:
    waits = Waiting(
        RequestId("r"), "llx-r", PoolName("m"), ClassName("normal"), 10, Tokens(9), 1.0, 1, "m-0"
    )

    async def nothing(*_: object) -> list[bytes]:
        return [msgspec.msgpack.encode([])]

    loads.call = nothing
    migrations = Migrations(
        fleet, AuditTrail(tmp_path / "events"), Requests(fleet, lambda: [waits])
    )
    report = await migrations.migrate(MigrateRequest(request="llx-r", target="m-1"))
    assert [each.reason for each in report.left_out] == [
        "waits in the central queue: it goes where there is room first"
    ]
    assert (report.migrations, loads.told) == ([], [])
