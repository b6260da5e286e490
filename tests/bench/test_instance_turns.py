"""How many instances a model has for a variant's turns, and that this is put back."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from llx.api import InstanceState
from llx.bench import instance_turns
from llx.bench.instance_turns import InstanceTurns
from llx.bench.scenario import InstanceRange, Scenario, Variant
from llx.errors import ConfigError, ConflictError, DeadlineError, NotFoundError, RemoteError

FOUR = Variant(name="four", instances=4)
RANGE = Variant(name="range", instances={"min": 1, "max": 4})
PLAIN = Variant(name="plain")
NUM_LOOKS = 2
"""Looks at the cluster until a change has come about."""


class Control:
    """A cluster that has two instances of a model, and room for four."""

    def __init__(self):
        self.limits = (2, 3)
        self.names = ["m-0", "m-1"]
        self.looks = 0
        self.checked, self.made = [], []
        self.is_stuck = False

    def status(self):
        low, _ = self.limits
        self.looks += 1
        if self.looks > NUM_LOOKS and not self.is_stuck:
            self.names = [f"m-{number}" for number in range(max(low, 0))]
        ready, starting = InstanceState.READY, InstanceState.STARTING
        instances = [SimpleNamespace(model="m", state=ready) for _ in self.names]
        instances += [SimpleNamespace(model="other", state=starting)]
        instances += [SimpleNamespace(model="m", state=InstanceState.STOPPED)]
        models = [SimpleNamespace(name="m", instances_min=low, instances_max=self.limits[1])]
        return SimpleNamespace(models=models, instances=instances)

    def scale(self, model, request):
        assert (model, request.user) == ("m", "ann")
        wanted = (request.min, request.max)
        if request.max > 4:
            raise ConflictError("no room")
        (self.checked if request.is_dry_run else self.made).append(wanted)
        if not request.is_dry_run:
            self.limits, self.looks = wanted, 0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(instance_turns, "_POLL_S", 0.001)


def turns(control, *variants, model="m"):
    return InstanceTurns(control, model, variants, "ann")


def test_each_turn_begins_with_the_least_it_may_have_and_the_range_is_put_back():
    control = Control()
    with turns(control, FOUR, RANGE, PLAIN) as instances:
        assert (control.checked, control.made) == ([(4, 4), (1, 4)], [])
        instances.begin(FOUR)
        assert (control.made, len(control.names)) == ([(4, 4)], 4)
        instances.begin(FOUR)
        assert control.made == [(4, 4)]
        instances.begin(RANGE)
        assert (control.made[1:], len(control.names)) == ([(1, 1), (1, 4)], 1)
        control.names = ["m-0", "m-1", "m-2"]  # its load was so high
        instances.begin(RANGE)
        assert (control.made[3:], len(control.names)) == ([(1, 1), (1, 4)], 1)
        instances.begin(PLAIN)  # as it was before
        assert control.made[5:] == [(2, 2), (2, 3)]
        instances.begin(FOUR)
    assert control.made[7:] == [(4, 4), (2, 3)]


def test_it_is_put_back_after_a_failure():
    control = Control()

    def fail():
        with turns(control, FOUR) as instances:
            instances.begin(FOUR)
            raise RemoteError("gone")

    with pytest.raises(RemoteError, match="gone"):
        fail()
    assert control.made == [(4, 4), (2, 3)]


def test_instances_that_do_not_come_are_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(instance_turns, "_SETTLED_S", 0.01)
    control = Control()
    control.is_stuck = True
    with turns(control, FOUR) as instances, pytest.raises(DeadlineError, match="ready, ready"):
        instances.begin(FOUR)


def test_what_cannot_be_is_found_before_anything_runs():
    control = Control()
    with pytest.raises(ConflictError, match="no room"), turns(control, FOUR, five := many(5)):
        pass
    with pytest.raises(NotFoundError, match="no model n: m"), turns(control, FOUR, model="n"):
        pass
    assert control.made == []
    with pytest.raises(ConfigError, match="instances need a cluster"):
        turns(None, five)
    with turns(None, PLAIN) as instances:
        instances.begin(PLAIN)


def many(count):
    return Variant(name="many", instances=count)


@pytest.mark.parametrize("wrong", [0, -1, True, "four", {"min": 2, "max": 1}, {"min": 1}, 1.5])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        Variant(name="wrong", instances=wrong)


def test_a_number_is_a_range_of_one():
    assert many(3).instances == InstanceRange(min=3, max=3)
    written = many(3).model_dump(mode="json")
    assert Variant.model_validate(written) == many(3)


def test_instances_are_not_those_of_another_server():
    workload = {"requests": 1, "arrivals": {"rate": 1}, "lengths": {"prompt": 1, "output": 1}}
    variant = {"name": "v", "url": "http://127.0.0.1:1", "instances": 2}
    with pytest.raises(ValidationError, match="instances are of the cluster"):
        Scenario.model_validate({"name": "s", "workload": workload, "variants": [variant]})
