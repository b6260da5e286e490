"""What a rollout does next: pure; whole rollouts played through, whatever room there is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.cluster.driving.rollout_step import Sight, Step, next_step

BEGUN = Sight(
    former=3, failed=0, new=0, going=0, count=3, has_room=False, is_steady=True,
    is_one_pool=True, is_switched=False,
)  # fmt: skip


def play(count: int, spare: int, *, is_one_pool: bool) -> tuple[list[Step], int]:
    """The steps of a rollout with room for so many more, and how few served at the least."""
    sight = replace(BEGUN, former=count, count=count, is_one_pool=is_one_pool)
    steps: list[Step] = []
    least = count
    while True:
        used = sight.former + sight.new + sight.going
        sight = replace(sight, has_room=used < count + spare)
        step = next_step(sight)
        steps.append(step)
        assert len(steps) < 20 * count, steps
        match step:
            case Step.ADD:
                assert used < count + spare, "there is room"
                sight = replace(sight, new=sight.new + 1)
            case Step.RETIRE:
                sight = replace(sight, former=sight.former - 1, going=sight.going + 1)
            case Step.RETIRE_ALL:
                sight = replace(sight, former=0, going=sight.going + sight.former)
            case Step.SWITCH:
                sight = replace(sight, is_switched=True)
            case Step.WAIT:
                assert sight.going, "for nothing else"
                sight = replace(sight, going=0)
            case _:
                assert (sight.new, sight.former, sight.going) == (count, 0, 0) or step is Step.STUCK
                return steps, least
        serving = sight.former + sight.new
        least = min(least, sight.new if sight.is_switched else serving)


@given(st.integers(1, 8), st.integers(0, 9))
def test_one_by_one_at_most_one_is_missing(count: int, spare: int) -> None:
    steps, least = play(count, spare, is_one_pool=True)
    is_possible = spare > 0 or count > 1
    assert steps[-1] is (Step.DONE if is_possible else Step.STUCK)
    assert least >= count - (spare == 0)
    assert steps.count(Step.ADD) == (count if is_possible else 0)


@given(st.integers(1, 8), st.integers(0, 9))
def test_side_by_side_new_requests_always_have_half(count: int, spare: int) -> None:
    steps, least = play(count, spare, is_one_pool=False)
    if not spare and count == 1:
        assert steps == [Step.STUCK]
        return
    assert steps[-1] is Step.DONE
    assert steps.count(Step.SWITCH) == 1
    assert least >= (count if spare >= count else count // 2)


def test_with_all_the_room_there_is_nobody_leaves_before_the_switch() -> None:
    steps, _ = play(2, 2, is_one_pool=False)
    assert steps == [Step.ADD, Step.ADD, Step.SWITCH, Step.RETIRE_ALL, Step.WAIT, Step.DONE]


@pytest.mark.parametrize("is_one_pool", [True, False])
def test_nothing_happens_until_the_new_ones_are_steady(is_one_pool: bool) -> None:
    sight = replace(BEGUN, is_one_pool=is_one_pool, new=1, has_room=True, is_steady=False)
    assert next_step(sight) is Step.WAIT
    assert next_step(replace(sight, is_switched=True, former=0, going=2)) is Step.WAIT


def test_what_has_failed_goes_first() -> None:
    assert next_step(replace(BEGUN, failed=1, has_room=True)) is Step.RETIRE
    assert next_step(replace(BEGUN, failed=1, going=1)) is Step.WAIT
