"""How many instances a model has for a variant's turns, and that this is put back."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from llx.api import InstanceState
from llx.bench import instance_turns
from llx.bench.instance_turns import InstanceTurns
from llx.bench.scenario import Scenario, Variant
from llx.cluster_file import InstanceRange
from llx.errors import ConfigError, ConflictError, DeadlineError, NotFoundError, UnreachableError

FOUR = Variant(name="four", instances=4)
RANGE = Variant(name="range", instances={"min": 1, "max": 4})
PLAIN = Variant(name="plain")


def instance(number, state=InstanceState.READY, model="m", detail=""):
    return SimpleNamespace(name=f"{model}-{number}", model=model, state=state, detail=detail)


class Control:
    """A cluster with two instances of a model and room for four.

    What is asked for comes about by and by, a look at a time: one starts, one drains, the head is
    away for a moment. Until then what ends keeps its name, and more are refused.
    """

    def __init__(self):
        self.limits = (2, 3)
        self.count = 2
        self.passing = []
        self.checked, self.made = [], []
        self.failed = []
        self.is_paused = False
        self.num_refused = 0

    def status(self):
        low, high = self.limits
        found = [instance(number) for number in range(self.count)] + self.failed
        found += [instance(0, InstanceState.STARTING, "other"), instance(9, InstanceState.STOPPED)]
        if self.passing:
            match self.passing.pop(0):
                case "away":
                    raise UnreachableError("the head is away")
                case state:
                    found.append(instance(5, state))
        elif not self.failed:
            self.count = max(low, min(self.count, high))
        models = [SimpleNamespace(name="m", instances_min=low, instances_max=high)]
        return SimpleNamespace(models=models, instances=found)

    def policies(self):
        return SimpleNamespace(policies=[SimpleNamespace(model="m", is_paused=self.is_paused)])

    def scale(self, model, request):
        assert (model, request.user) == ("m", "ann")
        wanted = (request.min, request.max)
        if request.max > 4:
            raise ConflictError("no room")
        if request.is_dry_run:
            self.checked.append(wanted)
            return
        if self.num_refused:
            self.num_refused -= 1
            raise ConflictError("m-1 is still being removed")
        self.made.append(wanted)
        self.limits = wanted
        self.passing = ["away", InstanceState.STARTING, InstanceState.DRAINING]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(instance_turns, "_POLL_S", 0.001)


def turns(control, *variants, model="m"):
    return InstanceTurns(control, model, variants, "ann")


def turn(instances, variant):
    instances.begin(variant)
    instances.open(variant)


def test_each_turn_begins_with_the_least_it_may_have_and_the_range_is_put_back():
    control = Control()
    with turns(control, FOUR, RANGE, PLAIN) as instances:
        assert (control.checked, control.made) == ([(4, 4), (1, 4)], [])
        turn(instances, FOUR)
        assert (control.made, control.count, control.passing) == ([(4, 4)], 4, [])
        turn(instances, FOUR)
        assert control.made == [(4, 4)]
        instances.begin(RANGE)
        assert (control.made[1:], control.count) == ([(1, 1)], 1), "warm-up adds none"
        instances.open(RANGE)
        assert control.made[2:] == [(1, 4)]
        control.count = 3  # its load was so high
        turn(instances, RANGE)
        assert (control.made[3:], control.count) == ([(1, 1), (1, 4)], 1)
        turn(instances, PLAIN)  # as it was before
        assert control.made[5:] == [(2, 2), (2, 3)]
        turn(instances, FOUR)
    assert control.made[7:] == [(4, 4), (2, 3)]
    assert (control.count, control.passing) == (3, []), "all of it is over"


def test_what_ends_may_keep_its_name_for_a_while():
    control = Control()
    with turns(control, FOUR) as instances:
        control.num_refused = 3
        instances.begin(FOUR)
        assert (control.made, control.count) == ([(4, 4)], 4)
        control.num_refused = 3
    assert control.made == [(4, 4), (2, 3)]


def test_it_is_put_back_after_an_interrupt_and_nobody_waits():
    control = Control()

    def interrupted():
        with turns(control, FOUR) as instances:
            instances.begin(FOUR)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert control.made == [(4, 4), (2, 3)]
    assert control.passing, "not waited for"
    assert not hasattr(caught.value, "__notes__")


def test_an_interrupt_says_what_could_not_be_put_back(monkeypatch):
    monkeypatch.setattr(instance_turns, "_LEAVING_S", 0.01)
    control = Control()

    def interrupted():
        with turns(control, FOUR) as instances:
            instances.begin(FOUR)
            control.num_refused = 10_000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    (note,) = caught.value.__notes__
    assert "still being removed" in note
    assert note.endswith("llx scale m --min 2 --max 3")


def test_a_change_of_which_nothing_was_heard_is_put_back():
    control = Control()

    def scale(model, request):
        Control.scale(control, model, request)
        if control.made == [(4, 4)]:
            raise UnreachableError("no answer in time")

    control.scale = scale
    with pytest.raises(UnreachableError), turns(control, FOUR) as instances:
        instances.begin(FOUR)
    assert control.made == [(4, 4), (2, 3)]


@pytest.mark.parametrize("limit", ["_SETTLED_S", "_FAILED_S"])
def test_instances_that_do_not_come_are_not_waited_for_for_ever(monkeypatch, limit):
    monkeypatch.setattr(instance_turns, limit, 0.01)
    control = Control()
    control.failed = [instance(7, InstanceState.FAILED, detail="no GPU")]
    with pytest.raises(DeadlineError, match="m-7 failed no GPU"), turns(control, FOUR) as instances:
        instances.begin(FOUR)


def test_what_cannot_be_is_found_before_anything_runs():
    control = Control()
    with pytest.raises(ConflictError, match="no room"), turns(control, FOUR, five := many(5)):
        pass
    with pytest.raises(NotFoundError, match="no model n: m"), turns(control, FOUR, model="n"):
        pass
    control.is_paused = True
    with pytest.raises(ConfigError, match="rules are paused"), turns(control, FOUR, RANGE):
        pass
    assert control.made == []
    with turns(control, FOUR) as instances:
        instances.begin(FOUR)
    with pytest.raises(ConfigError, match="instances need a cluster"):
        turns(None, five)
    with turns(None, PLAIN) as instances:
        turn(instances, PLAIN)


def many(count):
    return Variant(name="many", instances=count)


@pytest.mark.parametrize("wrong", [0, -1, True, "four", {"min": 2, "max": 1}, 1.5])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        Variant(name="wrong", instances=wrong)


def test_a_number_is_a_range_of_one():
    assert many(3).instances == many({"min": 3}).instances == InstanceRange(min=3, max=3)
    written = many(3).model_dump(mode="json")
    assert Variant.model_validate(written) == many(3)


def test_instances_are_not_those_of_another_server():
    workload = {"requests": 1, "arrivals": {"rate": 1}, "lengths": {"prompt": 1, "output": 1}}
    variant = {"name": "v", "url": "http://127.0.0.1:1", "instances": 2}
    with pytest.raises(ValidationError, match="instances are of the cluster"):
        Scenario.model_validate({"name": "s", "workload": workload, "variants": [variant]})
