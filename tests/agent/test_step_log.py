"""The ring of an instance's last steps: bounded, and no nanosecond in two of them."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from llx.agent.step_log import StepLog
from llx.wire import StepRows

WORK = (0, 1, 10, 0, 10)


def rows(log: StepLog) -> StepRows:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(log.answer()), type=StepRows)


def test_only_the_last_are_kept_and_their_numbers_go_on() -> None:
    log = StepLog(max_steps=3)
    log.begin(0)
    for number in range(8):
        log.note((number, 0, 0, 0, 0), number + 1)
    kept = rows(log)
    assert kept.first == 5
    assert [each.num_prefill_tokens for each in kept.rows] == [5, 6, 7]


def test_steps_follow_each_other_without_a_gap_but_for_pauses() -> None:
    log = StepLog()
    log.begin(100)
    log.note(WORK, 130)
    log.begin(135)  # scheduled a little later: what was between is the next step's
    log.note(WORK, 150)
    log.pause()
    log.begin(900)
    log.begin(950)  # a second one scheduled while the first runs
    log.note(WORK, 1000)
    log.note(WORK, 1010)
    assert [each.duration_ns for each in rows(log).rows] == [30, 20, 100, 10]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_durations_of_a_busy_engine_add_up(gaps: list[int]) -> None:
    log, now = StepLog(), 7
    log.begin(now)
    for gap in gaps:
        now += gap
        log.note(WORK, now)
    assert sum(each.duration_ns for each in rows(log).rows) == now - 7
