from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError
from llx.sim.run import prepare, run_once
from llx.sim.scenario import Flags, planned
from llx.sim.sizing import Target, sizes, smallest

pytestmark = pytest.mark.sim


@given(st.integers(1, 300), st.integers(1, 300), st.none() | st.integers(1, 400))
def test_the_smallest_is_found_without_asking_twice(most, least, guess):
    asked = []

    def is_met(count):
        asked.append(count)
        return count >= least

    assert smallest(most, is_met, guess) == (least if least <= most else None)
    assert len(asked) == len(set(asked))
    assert all(1 <= each <= most for each in asked)
    assert len(asked) <= 2 * most.bit_length() + 2


def test_a_good_guess_is_confirmed_by_a_look_below():
    asked = []
    assert smallest(1000, lambda count: asked.append(count) or count >= 37, 37) == 37
    assert asked == [37, 36]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ttft_p99", ("all", "prefill_p99_s")),
        ("high:tpot_mean", ("high", "decode_mean_s")),
        ("e2e_p50", ("all", "request_p50_s")),
    ],
)
def test_targets(text, parts):
    target = Target.parse(text, 2.0)
    assert (target.priority_class, target.figure) == parts


def found(targets, most, **flags):
    plan = planned(None, Flags(mix="s-s", requests=60, rates=(12.0,), **flags))
    policies = Policies()
    return (
        plan,
        prepare(plan, policies),
        sizes(plan, prepare(plan, policies), policies, targets, most, lambda _name, _count: None),
    )


def test_what_is_found_is_enough_and_one_less_is_not():
    targets = [Target.parse("e2e_mean", 5.45)]
    plan, supply, (size,) = found(targets, 6, seeds="0-1")
    assert size.instances >= max(size.by_seed) > 1

    def value(seed, count):
        variant = plan.variants[0]
        variant = replace(variant, cluster=replace(variant.cluster, num_instances=count))
        return targets[0].of(run_once(plan, variant, supply.requests(seed, 12.0), Policies(), seed))

    assert all(value(seed, size.instances) <= 5.45 for seed in (0, 1))
    for seed, fewest in zip((0, 1), size.by_seed, strict=True):
        assert value(seed, fewest) <= 5.45 < value(seed, fewest - 1)
    assert size.reached[0].value.mean == pytest.approx(
        sum(value(seed, size.instances) for seed in (0, 1)) / 2
    )


def test_what_is_not_enough_has_no_number():
    _, _, (size,) = found([Target.parse("ttft_p50", 1e-4)], 2)
    assert (size.instances, size.by_seed, size.mean, size.reached) == (None, (None,), None, ())


def test_refusals_meet_nothing(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("classes: {only: {priority: 0, queue_limit: 1}}")
    plan = planned(path, Flags(requests=60, rates=(100.0,)))
    policies = Policies()
    targets = [Target.parse("e2e_mean", 1e6)]
    (size,) = sizes(plan, prepare(plan, policies), policies, targets, 1, lambda _name, _count: None)
    assert size.instances is None


def test_a_policy_that_scales_has_no_number(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("policies: {x: {scaling: {rule: band}}}")
    plan = planned(path, Flags(requests=5))
    with pytest.raises(ConfigError, match="scales by itself"):
        sizes(plan, prepare(plan, Policies()), Policies(), [], 1, lambda _name, _count: None)
