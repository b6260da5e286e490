"""What a tenant may take, over time."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llx.cluster.driving.desired import desired_gateways
from llx.gateway.tenants import TenantAccount
from llx.settings import ClusterSettings
from llx.specs import TenantSpec


def test_requests_at_a_time() -> None:
    account = TenantAccount(TenantSpec("t", max_requests=2))
    assert account.enter(0.0) is None
    assert account.enter(0.0) is None
    refusal = account.enter(0.0)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_s) == (429, 1)
    account.leave()
    assert account.enter(0.0) is None


def test_who_overdraws_waits_until_it_is_paid_back() -> None:
    account = TenantAccount(TenantSpec("t", tokens_per_minute=60))
    assert account.enter(0.0) is None
    account.charge(90, 0.0)  # 30 more than a minute's worth
    refusal = account.enter(0.0)
    assert refusal is not None
    assert refusal.message == "t has used up its tokens per minute"
    assert refusal.retry_after_s == 31
    assert account.enter(30.5) is not None
    assert account.enter(31.0) is None


def test_one_without_limits_may_do_anything() -> None:
    account = TenantAccount(TenantSpec("t"))
    for _ in range(1000):
        assert account.enter(0.0) is None
        account.charge(1 << 20, 0.0)


@given(
    st.floats(0.01, 600),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_never_more_than_a_minutes_worth_and_what_has_come_since(
    per_minute: float, gaps: list[float]
) -> None:
    account = TenantAccount(TenantSpec("t", requests_per_minute=per_minute))
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        refusal = account.enter(now)
        if refusal is None:
            taken += 1
        else:  # it is told when to come again
            assert refusal.retry_after_s >= 1
        assert taken <= max(1, per_minute) + per_minute * now / 60 + 1e-6
    # One that does as it is told gets in.
    if (refusal := account.enter(now)) is not None:
        assert account.enter(now + refusal.retry_after_s + 1e-6) is None


def test_what_is_charged_late_is_owed_all_the_same() -> None:
    account = TenantAccount(TenantSpec("t", tokens_per_minute=60))
    assert account.enter(0.0) is None
    account.charge(600, 600.0)  # nine minutes' worth more than there was
    refusal = account.enter(600.0)
    assert refusal is not None
    assert 540 <= refusal.retry_after_s <= 542


@pytest.mark.parametrize(
    ("gateway", "problem"),
    [
        ({"tenants": [{"name": "ann", "max_requests": 1}]}, 'no api key is of "ann"'),
        ({"tenants": [{"name": "anonymous"}] * 2}, '"anonymous" is there twice'),
        ({"tenants": [{"name": "anonymous", "tokens_per_minute": 0}]}, "greater than 0"),
    ],
)
def test_bad_settings(gateway: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ClusterSettings.model_validate(
            {"cluster": "c", "models": [{"name": "m", "model": "/m"}], "gateway": gateway}
        )


def test_each_gateway_gives_its_share() -> None:
    tenant = {"name": "anonymous", "max_requests": 5, "tokens_per_minute": 100}
    settings = ClusterSettings.model_validate(
        {
            "cluster": "c",
            "models": [{"name": "m", "model": "/m"}],
            "hosts": [{"name": "h1", "address": "10.0.0.1"}, {"name": "h2", "address": "10.0.0.2"}],
            "gateway": {"tenants": [tenant]},
        }
    )
    specs = desired_gateways(settings, "")
    expected = TenantSpec("anonymous", max_requests=3, tokens_per_minute=50)
    assert [spec.tenants for spec in specs] == [[expected]] * 2
