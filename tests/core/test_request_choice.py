"""Which requests leave first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import Blocks, RequestId, Tokens
from llx.core.request_choice import CHOICES, Movable, choose


def movable(name, blocks=1, tokens=10, priority=10, arrival=0.0):
    return Movable(RequestId(name), Blocks(blocks), Tokens(tokens), priority, arrival)


REQUESTS = [
    movable("long", blocks=9, tokens=140, priority=0, arrival=3.0),
    movable("short", blocks=2, tokens=20, priority=10, arrival=1.0),
    movable("batch", blocks=5, tokens=70, priority=20, arrival=2.0),
    movable("batch-short", blocks=3, tokens=40, priority=20, arrival=4.0),
    movable("waits", blocks=0, tokens=900, priority=10, arrival=5.0),
]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("shortest", "waits short batch-short batch long"),
        ("longest", "long batch batch-short short waits"),
        ("latest", "waits batch-short long batch short"),
        ("oldest", "short batch long batch-short waits"),
        ("lowest-class", "batch-short batch waits short long"),
        ("next-in-line", "long short waits batch batch-short"),
    ],
)
def test_choices(by, names):
    found = [each.request for each in choose(REQUESTS, CHOICES[by], None)]
    assert found == names.split()
    assert [each.request for each in choose(REQUESTS, CHOICES[by], 1)] == names.split()[:1]


def test_every_choice_is_tested():
    assert set(CHOICES) == {
        "shortest",
        "longest",
        "latest",
        "oldest",
        "lowest-class",
        "next-in-line",
    }


requests = st.lists(
    st.builds(
        movable,
        st.text("abc", min_size=1, max_size=3),
        st.integers(0, 9),
        st.integers(0, 99),
        st.integers(-5, 5),
        st.floats(0, 9),
    ),
    unique_by=lambda each: each.request,
)


@given(requests, st.sampled_from(sorted(CHOICES)), st.one_of(st.none(), st.integers(0, 12)))
def test_the_same_requests_in_any_order_leave_in_the_same_order(given_requests, by, count):
    found = choose(given_requests, CHOICES[by], count)
    assert found == choose(given_requests[::-1], CHOICES[by], count)
    assert len(found) == min(len(given_requests), len(given_requests) if count is None else count)
    assert set(found) <= set(given_requests)
