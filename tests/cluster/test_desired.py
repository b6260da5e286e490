"""Which instances should run: what was wanted so far, as far as the range allows."""

import pytest

from llx.cluster.desired import desired_instances, instance_index, unused_name
from llx.settings import ClusterSettings


def names(least: int, most: int, *before: str) -> list[str]:
    models = [{"name": "m", "model": "/m", "instances": {"min": least, "max": most}}]
    settings = ClusterSettings.model_validate({"models": models})
    return [each.name for each in desired_instances(settings, before)]


@pytest.mark.parametrize(
    ("least", "most", "before", "after"),
    [
        (2, 2, [], ["m-0", "m-1"]),
        (1, 4, [], ["m-0"]),
        (1, 4, ["m-0", "m-1", "m-2"], ["m-0", "m-1", "m-2"]),
        (1, 4, ["m-3"], ["m-3"]),
        (2, 4, ["m-3"], ["m-0", "m-3"]),
        (1, 2, ["m-5", "m-10", "m-7"], ["m-5", "m-7"]),
        (1, 1, ["m-0", "m-1"], ["m-0"]),
        (1, 4, ["n-0", "m-x", "m-01", "m-0-1"], ["m-0"]),
    ],
)
def test_the_range_bounds_what_was_wanted(
    least: int, most: int, before: list[str], after: list[str]
) -> None:
    assert names(least, most, *before) == after


def test_the_lowest_free_index_names_the_next() -> None:
    models = [{"name": "m-1", "model": "/m"}]
    (model,) = ClusterSettings.model_validate({"models": models}).models
    assert unused_name(model, {"m-1-0", "m-1-2"}) == "m-1-1"
    assert instance_index(model, "m-1-12") == 12
    assert instance_index(model, "m-1") is None
