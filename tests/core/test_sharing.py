"""Who gets the next free devices."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import PoolName
from llx.core.sharing import Claim, in_turn

A, B, C = PoolName("a"), PoolName("b"), PoolName("c")


def test_a_declared_minimum_comes_first_whatever_the_weight() -> None:
    rich = Claim(A, num_present=4, num_wanted=1, least=1, weight=100)
    poor = Claim(B, num_present=0, num_wanted=2, least=2, weight=0.1)
    assert in_turn([rich, poor]) == [B, B, A]


def test_beyond_the_minimum_weights_share() -> None:
    light = Claim(A, num_present=1, num_wanted=6, least=1)
    heavy = Claim(B, num_present=2, num_wanted=6, least=2, weight=2)
    assert in_turn([light, heavy])[:6] == [B, A, B, B, A, B]
    behind = Claim(C, num_present=1, num_wanted=3, least=1)
    ahead = Claim(A, num_present=3, num_wanted=1, least=1)
    assert in_turn([ahead, behind]) == [C, C, A, C], "what they have counts; of equals the first"


def test_nobody_wants_any() -> None:
    assert in_turn([]) == []
    assert in_turn([Claim(A, 1, 0, 1)]) == []


@given(
    st.lists(
        st.builds(
            Claim,
            pool=st.sampled_from([A, B, C]),
            num_present=st.integers(0, 5),
            num_wanted=st.integers(0, 5),
            least=st.integers(1, 4),
            weight=st.floats(0.1, 10),
        ),
        max_size=3,
        unique_by=lambda each: each.pool,
    )
)
def test_everybody_is_named_as_often_as_wanted_minimums_first(claims: list[Claim]) -> None:
    order = in_turn(claims)
    assert Counter(order) == Counter({each.pool: each.num_wanted for each in claims})
    of = {each.pool: each for each in claims}
    counts = {each.pool: each.num_present for each in claims}
    was_above = False
    for pool in order:
        counts[pool] += 1
        is_above = counts[pool] > of[pool].least
        assert is_above or not was_above
        was_above = is_above
