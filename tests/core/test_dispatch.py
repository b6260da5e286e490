"""Dispatch by freeness: Algorithm 1 of the paper, and no pile-up between two reports."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.dispatch import POLICIES, Candidate, freeness, freest
from llx.core.ledger import InFlightLedger
from llx.core.model import Blocks, InstanceId, InstanceLoad, Tokens


def candidate(name, *, total=100, free=100, running=0, waiting=0, demand=0, sent=0, charged=0):
    load = InstanceLoad(
        total=Blocks(total), free=Blocks(free), block_size=Tokens(16), num_running=running,
        num_waiting=waiting, waiting_demand=Blocks(demand),
    )  # fmt: skip
    return Candidate(InstanceId(name), load, sent, Blocks(charged))


candidates = st.lists(
    st.builds(
        candidate,
        st.text("abc", min_size=1, max_size=4),
        total=st.just(100),
        free=st.integers(0, 100),
        running=st.integers(0, 9),
        waiting=st.integers(0, 9),
        demand=st.integers(0, 500),
        sent=st.integers(0, 9),
        charged=st.integers(0, 500),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda c: c.instance,
)


@pytest.mark.parametrize(
    ("given_candidate", "expected"),
    [
        (candidate("idle"), Fraction(100)),
        (candidate("busy", free=40, running=4), Fraction(10)),
        (candidate("queued", free=40, running=3, waiting=1, demand=20), Fraction(5)),
        (candidate("in-flight", free=40, running=3, sent=1, charged=20), Fraction(5)),
        (candidate("overcommitted", free=0, running=2, waiting=2, demand=20), Fraction(-5)),
    ],
)
def test_freeness_is_memory_less_virtual_usage_per_request(given_candidate, expected):
    assert freeness(given_candidate) == expected


@given(candidates)
def test_nobody_is_freer_than_the_chosen(them):
    decision = freest(them, Blocks(1))
    best = max(freeness(c) for c in them)
    assert decision.scores[0] == (decision.chosen, best)
    assert [score for _, score in decision.scores] == sorted(freeness(c) for c in them)[::-1]


@given(candidates, st.randoms())
def test_the_order_of_candidates_does_not_matter(them, random):
    shuffled = list(them)
    random.shuffle(shuffled)
    assert freest(them, Blocks(1)) == freest(shuffled, Blocks(1))


def test_a_tie_is_said():
    assert freest([candidate("a"), candidate("b")], Blocks(1)).tie_break
    assert not freest([candidate("a"), candidate("b", free=50)], Blocks(1)).tie_break


@given(num_instances=st.integers(2, 6), burst=st.integers(1, 60), demand=st.integers(1, 5))
def test_a_burst_between_two_reports_spreads_evenly(num_instances, burst, demand):
    ledgers = {f"i{n}": InFlightLedger() for n in range(num_instances)}
    for _ in range(burst):
        them = [
            candidate(name, total=1000, free=1000, sent=ledger.num_requests, charged=ledger.demand)
            for name, ledger in ledgers.items()
        ]
        ledgers[freest(them, Blocks(demand)).chosen].charge(Blocks(demand))
    counts = [ledger.num_requests for ledger in ledgers.values()]
    assert max(counts) - min(counts) <= 1


def test_policies_are_found_by_name():
    assert POLICIES["freest"] is freest
