"""Rules that hold for a variant's turns, over what was in force, and are put back."""

import pytest

from llx.api import PolicyList, PolicyStatus, PolicyUpdate
from llx.bench.policy_turns import PolicyTurns
from llx.bench.scenario import Scenario, Variant
from llx.errors import ConfigError, NotFoundError, RemoteError

STILL = Variant(name="still", policy={"rescheduling.steps": []})
PLAIN = Variant(name="plain")


class Control:
    """A cluster's rules: what `llx policy set` has changed of one model's."""

    def __init__(self, changed=None):
        self.changed = changed or {}
        self.asked = []

    def policies(self):
        status = PolicyStatus(model="m", is_paused=False, scheduling={}, changed=self.changed)
        return PolicyList(policies=[status])

    def update_policies(self, update: PolicyUpdate):
        if "nonsense" in update.changes:
            raise ConfigError("no key nonsense")
        self.asked.append((update.is_dry_run, update.changes))
        assert (update.model, update.is_revert, update.user) == ("m", True, "ann")
        return self.policies()

    @property
    def made(self):
        return [changes for is_dry_run, changes in self.asked if not is_dry_run]


def turns(control, *variants, model="m"):
    return PolicyTurns(control, model, variants, "ann")


def test_rules_hold_for_a_turn_and_are_put_back():
    control = Control({"low": 4.0})
    with turns(control, PLAIN, STILL) as policies:
        assert control.made == []
        policies.begin(PLAIN)
        assert control.made == []
        policies.begin(STILL)
        policies.begin(STILL)
        assert control.made == [{"low": "4.0", "rescheduling.steps": "[]"}]
        policies.begin(PLAIN)
        policies.begin(STILL)
    assert control.made[-1] == {"low": "4.0"}
    assert len(control.made) == 4


def test_they_are_put_back_after_a_failure():
    control = Control()

    def fail():
        with turns(control, STILL) as policies:
            policies.begin(STILL)
            raise RemoteError("gone")

    with pytest.raises(RemoteError, match="gone"):
        fail()
    assert control.made == [{"rescheduling.steps": "[]"}, {}]


def test_a_wrong_rule_is_found_before_anything_runs():
    control = Control()
    wrong = Variant(name="wrong", policy={"nonsense": 1})
    with pytest.raises(ConfigError, match="nonsense"), turns(control, STILL, wrong):
        pass
    assert control.made == []
    with pytest.raises(NotFoundError, match="no model n: m"), turns(control, STILL, model="n"):
        pass


def test_rules_need_a_cluster():
    with pytest.raises(ConfigError, match="policies need a cluster"):
        turns(None, PLAIN, STILL)
    with turns(None, PLAIN) as policies:
        policies.begin(PLAIN)
    with pytest.raises(ValueError, match="a variant with a url has none"):
        Scenario.model_validate(
            {
                "name": "x",
                "workload": {"requests": 1, "arrivals": {"rate": 1}, "lengths": {"mix": "s-s"}},
                "variants": [{"name": "a", "url": "http://x", "policy": {"low": 1}}],
            }
        )
