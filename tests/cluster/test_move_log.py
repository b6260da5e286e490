"""The record of migrations: news and gateways' words in any order, bounded."""

from typing import Any

import pytest

from llx.api import MoveOutcome
from llx.cluster.moves.move_log import Move, MoveLog
from llx.core.model import Epoch, InstanceId, MigrationId, RequestId
from llx.wire import MigrationNews, MoveSeen


def begin(log: MoveLog, id_: str = "m1-1", request: str = "r", at: float = 0.0) -> Move:
    move = Move(
        MigrationId(id_), RequestId(request), "llx-r", InstanceId("a"), InstanceId("b"), "ann",
        "asked for", at, at,
    )  # fmt: skip
    log.begin(move)
    return move


def news(id_: str = "m1-1", request: str = "r", epoch: int = 4, **more: Any) -> MigrationNews:
    values = {"rate": 100.0, **more}
    return MigrationNews(
        MigrationId(id_), RequestId(request), "llx-r", InstanceId("b"), "copying", Epoch(epoch),
        **values,
    )  # fmt: skip


def over(outcome: str, **more: Any) -> MigrationNews:
    return news(is_over=True, outcome=outcome, **more)


def seen(epoch: int = 5, downtime_ms: float = 12.0, **more: Any) -> MoveSeen:
    values = {"source": "a", "target": "b", "request": "r", **more}
    return MoveSeen(epoch=Epoch(epoch), num_tokens=9, downtime_ms=downtime_ms, itl_ms=8.0, **values)


def test_a_move_from_its_order_to_its_figures() -> None:
    log = MoveLog()
    move = begin(log)
    assert (move.status().state, move.status().outcome) == ("ordered", None)
    assert log.open_of("r") is move
    assert [log.leaving("a"), log.coming("b"), log.leaving("b")] == [[move], [move], []]
    assert not log.on_news(move, news(stage=2, blocks_copied=7), at=1.0, now=1.0)
    assert (move.status().state, move.status().stage, move.status().blocks_copied) == (
        "copying", 2, 7,
    )  # fmt: skip
    assert log.on_news(move, over("moved"), at=2.0, now=2.0)
    assert move.over.is_set()
    assert log.open_of("r") is None
    log.on_seen([seen()], at=3.0)
    found = move.status()
    assert (found.outcome, found.ended_at) == (MoveOutcome.MOVED, 2.0)
    assert (found.downtime_ms, found.itl_ms, found.stall_ms) == (12.0, 8.0, 4.0)
    assert log.get("m1-1") is move


def test_it_is_told_how_kv_last_went() -> None:
    log = MoveLog()
    first, second = begin(log), begin(log, "m1-2", "q")
    assert log.moved_by("a") == ""
    log.on_news(first, over("moved", transport="nccl"), at=1.0, now=1.0)
    assert (first.status().transport, first.status().transport_why) == ("nccl", "")
    assert [log.moved_by(name) for name in "abc"] == ["nccl", "nccl", ""]
    why = "cuda-ipc: no GPU; nccl: no GPU"
    log.on_news(second, news("m1-2", "q", transport="shm", transport_why=why), at=2.0, now=2.0)
    assert (second.status().transport, second.status().transport_why) == ("shm", why)
    assert log.moved_by("a") == f"shm ({why})"


@pytest.mark.parametrize("epoch", [4, 5])
def test_a_gateway_may_speak_first_and_repeats_itself(epoch: int) -> None:
    log = MoveLog()
    move = begin(log)
    log.on_seen([seen(epoch)], at=1.0)
    log.on_seen([seen(epoch)], at=1.0)
    log.on_news(move, over("moved"), at=2.0, now=2.0)
    assert move.status().downtime_ms == 12.0


def test_going_back_and_forth_is_told_apart_by_the_epoch() -> None:
    log = MoveLog()
    first = begin(log, "m1-1")
    log.on_news(first, news("m1-1", epoch=4, is_over=True, outcome="moved"), 1.0, 1.0)
    third = begin(log, "m1-3")
    log.on_news(third, news("m1-3", epoch=6, is_over=True, outcome="moved"), 3.0, 3.0)
    back = seen(6, source="b", target="a", downtime_ms=99.0)
    log.on_seen([seen(5, downtime_ms=1.0), back, seen(7, downtime_ms=3.0)], at=4.0)
    assert (first.status().downtime_ms, third.status().downtime_ms) == (1.0, 3.0)


def test_what_was_given_up_may_still_tell_how_it_ended() -> None:
    log = MoveLog()
    move = begin(log)
    log.end(move, MoveOutcome.UNKNOWN, "a: disconnected", 1.0)
    assert not log.on_news(move, news(), 2.0, 2.0)
    assert log.on_news(move, over("kept", reason="full"), 3.0, 3.0)
    assert (move.outcome, move.reason) == (MoveOutcome.KEPT, "full")
    assert not log.on_news(move, over("moved"), 4.0, 4.0), "the last word was said"


def test_a_gateway_settles_what_its_source_could_not() -> None:
    log = MoveLog()
    move = begin(log)
    log.on_news(move, news(), 1.0, 1.0)
    log.end(move, MoveOutcome.UNKNOWN, "a: killed", 2.0)
    assert log.on_seen([seen(request="other")], 3.0) == []
    assert log.on_seen([seen()], 3.0) == [move]
    assert (move.outcome, move.reason) == (MoveOutcome.MOVED, "")
    other = begin(log, "m1-2")
    log.on_news(other, news("m1-2", epoch=8), 4.0, 4.0)
    log.on_seen([seen(9)], 4.0)
    log.end(other, MoveOutcome.UNKNOWN, "a: killed", 5.0)
    assert other.outcome is MoveOutcome.MOVED


def test_an_outcome_of_a_later_version_is_unknown() -> None:
    log = MoveLog()
    move = begin(log)
    log.on_news(move, over("teleported"), 1.0, 1.0)
    assert move.outcome is MoveOutcome.UNKNOWN


def test_only_the_last_that_are_over_are_kept() -> None:
    log = MoveLog(max_over=3)
    moves = [begin(log, f"m1-{n}", f"r{n}", at=float(n)) for n in range(5)]
    for move in moves[1:]:
        log.end(move, MoveOutcome.KEPT, "", 9.0)
    assert [each.id for each in log.all()] == ["m1-0", "m1-2", "m1-3", "m1-4"]
    assert log.get("m1-1") is None
    assert log.get("m1-0") is moves[0]


def test_experience_is_the_median_of_the_last_moves() -> None:
    log = MoveLog()
    assert (log.experience().count, log.experience().downtime_ms) == (0, None)
    for number, gap in enumerate([5.0, 50.0, 7.0]):
        move = begin(log, f"m1-{number}", f"r{number}")
        told = news(f"m1-{number}", f"r{number}", is_over=True, outcome="moved", rate=gap * 10)
        log.on_news(move, told, 1.0, 1.0)
        log.on_seen([seen(5, gap, request=f"r{number}")], 1.0)
    kept = begin(log, "m1-9", "r9")
    log.on_news(kept, news("m1-9", "r9", is_over=True, outcome="kept", rate=1.0), 1.0, 1.0)
    found = log.experience()
    assert (found.count, found.downtime_ms, found.rate) == (3, 7.0, 70.0)


def test_the_latest_are_those_under_way_and_the_last_that_are_over() -> None:
    log = MoveLog()
    for number in range(1, 5):
        begin(log, f"m1-{number}", f"r{number}", at=float(number))
    for number in (3, 1, 2):
        log.on_news(
            log.all()[number - 1],
            news(f"m1-{number}", f"r{number}", is_over=True, outcome="kept"),
            at=9.0,
            now=9.0,
        )
    assert [each.id for each in log.latest(2)] == ["m1-1", "m1-2", "m1-4"]
    assert [each.id for each in log.latest(0)] == ["m1-4"]
