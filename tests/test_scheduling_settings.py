"""cluster.yaml's `scheduling` and classes, and the core's configuration made of them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llx.core.model import ClassName, PoolName, Tokens
from llx.core.scheduler.config import (
    SECOND,
    PoolConfig,
    PriorityClass,
    Rescheduling,
    Scaling,
    Slo,
)
from llx.errors import ConfigError
from llx.scheduling_settings import (
    PriorityClassSettings,
    ReschedulingSettings,
    ScalingSettings,
    SchedulingSettings,
    pool_config,
)
from llx.settings import ClusterSettings
from llx.yaml_reader import read_yaml

CLASSES = [PriorityClassSettings(name="b", priority=9), PriorityClassSettings(name="a", priority=1)]


def config(**scheduling: Any) -> PoolConfig:
    settings = SchedulingSettings.model_validate(scheduling)
    return pool_config("m", settings, CLASSES, step_tokens=512, max_requests=8)


def test_the_defaults_are_the_cores_but_for_drains_which_the_driver_does() -> None:
    found = config()
    own = PoolConfig(
        name=PoolName("m"),
        classes=(PriorityClass(ClassName("a"), 1), PriorityClass(ClassName("b"), 9)),
        step_tokens=Tokens(512),
        max_requests=8,
        rescheduling=Rescheduling(steps=("preempt", "requeue", "make_room", "balance")),
    )
    assert found == own


def test_every_rule_of_the_core_can_be_set() -> None:
    known = {each.removesuffix("_s") for each in ReschedulingSettings.model_fields}
    assert known == {each.name for each in fields(Rescheduling)}


def test_a_range_of_instances_is_scaled_by_the_cores_defaults_and_a_number_is_not() -> None:
    def scaling(least: int, most: int, **given: float) -> Scaling:
        settings = SchedulingSettings(scaling=ScalingSettings.model_validate(given))
        return pool_config(
            "m", settings, CLASSES, step_tokens=1, max_requests=1, num_instances=(least, most)
        ).scaling

    assert scaling(1, 4) == Scaling(rule="demand", min_instances=1, max_instances=4)
    assert scaling(3, 3) == Scaling(rule="none", min_instances=3, max_instances=3)
    other = scaling(1, 2, low=1.5, high=9, sustain_s=0.5, cooldown_s=2, lost_grace_s=1)
    assert (other.low, other.high, other.sustain) == (1.5, 9, SECOND // 2)
    assert (other.cooldown, other.lost_grace) == (2 * SECOND, SECOND)


def test_units_and_words_become_the_cores() -> None:
    found = config(
        binding="immediate", age_after_s=0.5, step_time={"base_ms": 2, "per_block_us": 0.5},
        rescheduling={"rest_s": 1.5, "steps": ["balance"]},
    )  # fmt: skip
    assert found.is_immediate
    assert found.age_after == SECOND // 2
    assert (found.step_time.base, found.step_time.per_block) == (2_000_000, 500)
    assert (found.rescheduling.rest, found.rescheduling.steps) == (1_500_000_000, ("balance",))
    settings = PriorityClassSettings.model_validate(
        {
            "name": "a", "priority": 1, "headroom_blocks": 7, "headroom_share": 0.5,
            "queue_limit": 3, "max_wait_s": 2, "slo": {"ttft_ms": 500, "tpot_ms": 50},
        }
    )  # fmt: skip
    [each] = pool_config(
        "m", SchedulingSettings(), [settings], step_tokens=1, max_requests=1
    ).classes
    assert (each.headroom, each.queue_limit, each.max_wait) == (7, 3, 2 * SECOND)
    assert each.headroom_share == 0.5
    assert isinstance(each.slo, Slo)
    assert each.slo.ttft == SECOND // 2


@pytest.mark.parametrize(
    ("scheduling", "why"),
    [
        ({"dispach": "freest"}, 'unknown key "dispach"'),
        ({"dispatch": "nicest"}, "models.m.scheduling: no dispatch policy 'nicest' (one of"),
        ({"binding": "early"}, "binding"),
        ({"rescheduling": {"low": 9}}, "low must be below high"),
        ({"rescheduling": {"steps": ["blance"]}}, "no rescheduling rule 'blance'"),
        ({"rescheduling": {"steps": ["drain"]}}, "llx inst drain"),
        ({"scaling": {"low": 70}}, "scaling.low is above scaling.high"),
        ({"scaling": {"rule": "bend"}}, "no scaling rule 'bend'"),
        ({"scaling": {"weight": 0}}, "weight"),
        ({"rescheduling": {"choice": "tallest"}}, "no choice of requests 'tallest'"),
    ],
)
def test_what_is_wrong_is_refused_when_the_file_is_read(
    scheduling: dict[str, Any], why: str
) -> None:
    model = {"name": "m", "model": "/m", "instances": {"min": 1, "max": 2}}
    values = {"models": [{**model, "scheduling": scheduling}]}
    with pytest.raises(ConfigError) as error:
        read_yaml("c.yaml", ClusterSettings, base=Path("/"), values=values)
    assert why in str(error.value)
