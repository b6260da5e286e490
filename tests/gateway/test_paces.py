"""How fast each instance serves, over windows."""

import pytest

from llx.cluster.fleet.status import pace_status
from llx.core.model import InstanceId
from llx.gateway.paces import Paces

A, B = InstanceId("m-0"), InstanceId("m-1")


def rate(paces, now, instance=A):
    found = paces.told(now).get(instance)
    return None if found is None else found.tokens_per_s


def test_tokens_per_second_are_of_the_last_seconds():
    paces = Paces(100.0)
    assert paces.told(100.0) == {}
    for half in range(20):
        paces.note_tokens(A, 50)
        now = 100.5 + half / 2
        assert rate(paces, now) == pytest.approx(100, rel=0.01)
    assert 0 < rate(paces, now + 1) < 100
    rate(paces, now + 2.5)
    assert rate(paces, now + 5) is None
    assert rate(paces, now + 100) is None


def test_a_gateway_that_nobody_has_asked_for_long_tells_nothing_old():
    paces = Paces(0.0)
    paces.note_tokens(A, 1000)
    paces.note_gap(A, 0.02)
    assert paces.told(500.0) == {}


def test_latencies_last_longer_and_end_too():
    paces = Paces(0.0)
    paces.note_first(A, 0.2)
    for _ in range(99):
        paces.note_gap(A, 0.02)
    paces.note_gap(A, 0.4)
    paces.note_tokens(B, 1)
    found = paces.told(25.0)
    assert set(found) == {A}
    status = pace_status([found[A]])
    assert status.tokens_per_s == 0
    assert status.ttft_p50_ms == status.ttft_p99_ms == pytest.approx(200, rel=0.05)
    assert status.itl_p50_ms == pytest.approx(20, rel=0.05)
    assert status.itl_p99_ms == pytest.approx(20, rel=0.05)
    assert A in paces.told(45.0)
    assert paces.told(76.0) == {}


def test_what_two_gateways_saw_is_taken_together():
    one, other = Paces(0.0), Paces(0.0)
    for paces, gap_s in ((one, 0.01), (other, 0.03)):
        paces.note_tokens(A, 10)
        for _ in range(10):
            paces.note_gap(A, gap_s)
    status = pace_status([one.told(1.0)[A], other.told(1.0)[A]])
    assert status.tokens_per_s == pytest.approx(20, rel=0.01)
    assert status.itl_p50_ms == pytest.approx(10, rel=0.05)
    assert status.itl_p99_ms == pytest.approx(30, rel=0.05)
    assert status.ttft_p50_ms is None
    assert pace_status([]) is None
