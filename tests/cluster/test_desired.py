"""Which instances should run: what was wanted so far, as far as the range allows."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from llx.cluster.driving.desired import desired_instances, instance_index, unused_name
from llx.settings import ClusterSettings


def _settings(least: int, most: int) -> ClusterSettings:
    models = [{"name": "m", "model": "/m", "instances": {"min": least, "max": most}}]
    return ClusterSettings.model_validate({"models": models})


def names(least: int, most: int, *before: str) -> list[str]:
    return [each.name for each in desired_instances(_settings(least, most), before)]


@pytest.mark.parametrize(
    ("least", "most", "before", "after"),
    [
        (2, 2, [], ["m-0", "m-1"]),
        (1, 4, [], ["m-0"]),
        (1, 4, ["m-0", "m-1", "m-2"], ["m-0", "m-1", "m-2"]),
        (1, 4, ["m-3"], ["m-3"]),
        (2, 4, ["m-3"], ["m-0", "m-3"]),
        (1, 2, ["m-10", "m-5", "m-7"], ["m-5", "m-10"]),
        (1, 1, ["m-1", "m-0", "m-1"], ["m-1"]),
        (1, 4, ["n-0", "m-x", "m-01", "m-0-1"], ["m-0"]),
    ],
)
def test_the_range_bounds_what_was_wanted(
    least: int, most: int, before: list[str], after: list[str]
) -> None:
    assert names(least, most, *before) == after


def test_a_large_number_takes_a_few_steps_for_each() -> None:
    """The head does nothing else meanwhile; a number may be a slip, which is refused only then."""
    settings = _settings(1024, 1024)
    num_lines = 0

    def count(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        nonlocal num_lines
        num_lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        found = desired_instances(settings, ["m-1", "m-3"])
    finally:
        sys.settrace(before)
    assert [each.name for each in found] == [f"m-{index}" for index in range(1024)]
    assert num_lines < 100 * 1024


def test_the_lowest_free_index_names_the_next() -> None:
    models = [{"name": "m-1", "model": "/m"}]
    (model,) = ClusterSettings.model_validate({"models": models}).models
    assert unused_name(model, {"m-1-0", "m-1-2"}) == "m-1-1"
    assert instance_index(model, "m-1-12") == 12
    assert instance_index(model, "m-1") is None
