"""Preemptions and the use of KV, from looks at a cluster."""

import pytest

from llx.bench.cluster_watch import InstanceLoad, Sight
from llx.bench.sights import num_preemptions, sight_figures


def sight(**instances):
    """`name=(blocks used of 10, preemptions)`."""
    loads = [
        InstanceLoad(
            name=name, state="ready", is_cordoned=False, blocks_used=used, blocks_total=10,
            preemptions=count,
        )
        for name, (used, count) in instances.items()
    ]  # fmt: skip
    return Sight(at_s=0, instances=loads)


def test_what_was_before_the_run_does_not_count():
    seen = [sight(a=(0, 7), b=(0, 0)), sight(a=(0, 7), b=(0, 2)), sight(a=(0, 10), b=(0, 2))]
    assert num_preemptions(seen) == 5
    assert num_preemptions(seen[:1]) == 0


def test_an_engine_that_was_started_anew_counts_from_zero():
    assert num_preemptions([sight(a=(0, 7)), Sight(at_s=1), sight(a=(0, 2))]) == 2


def test_who_has_not_told_is_left_out():
    assert num_preemptions([sight(a=(0, None), b=(0, 1)), sight(a=(0, None), b=(0, 4))]) == 3
    assert num_preemptions([sight(a=(0, None))]) is None
    assert num_preemptions([]) is None


def test_how_full_and_how_uneven():
    found = sight_figures([sight(a=(10, 0), b=(0, 0)), sight(a=(5, 0), b=(5, 1))])
    assert found == {
        "llx_preemptions": 1,
        "llx_instances": 2,
        "llx_kv_used": pytest.approx(0.5),
        "llx_kv_spread": pytest.approx(0.5),
    }
    assert sight_figures([Sight(at_s=0, error="gone")]) == dict.fromkeys(found)


def test_instances_are_counted_over_time_while_they_start_and_end_too():
    def seen(at_s, *states):
        loads = [
            InstanceLoad(name=str(number), state=each, is_cordoned=False)
            for number, each in enumerate(states)
        ]
        return Sight(at_s=at_s, instances=loads)

    sights = [
        seen(0, "ready"),
        seen(1, "ready", "starting"),
        Sight(at_s=2, error="nobody answers"),
        seen(3, "ready", "draining", "stopped", "failed"),
        seen(4, "ready"),
    ]
    assert sight_figures(sights)["llx_instances"] == pytest.approx((1 + 2 * 2 + 2) / 4)
    assert sight_figures(sights[:1])["llx_instances"] == 1
