"""Who may be hit: what the cluster can do without, of what the streams ask for."""

import pytest

from llx.api import InstanceState
from llx.chaos.plan import Fault
from llx.chaos.victims import choose
from llx.errors import ConfigError, ConflictError, NotFoundError
from tests.top.cluster import cluster, instance

STATUS = cluster().model_copy(
    update={
        "instances": [
            instance("other-0").model_copy(update={"model": "other"}),
            instance("tiny-0"),
            instance("tiny-1"),
            instance("tiny-2", InstanceState.FAILED),
        ]
    }
)


def chosen(kind, target, *, draw=0.0, hits_last=False, on_hosts=False):
    fault = Fault(kind=kind, target=target, draw=draw)
    return choose(fault, STATUS, "tiny", hits_last=hits_last, on_hosts=on_hosts)


@pytest.mark.parametrize(("draw", "name"), [(0.0, "tiny-0"), (0.49, "tiny-0"), (0.5, "tiny-1")])
def test_an_instance_is_a_ready_one_of_the_streams_model(draw, name):
    victim = chosen("kill", "instance", draw=draw, hits_last=True)
    assert (victim.name, victim.instances) == (name, {name})


@pytest.mark.parametrize("target", ["other-0", "gateway-0", "gateway"])
def test_what_nobody_can_stand_in_for_is_spared(target):
    with pytest.raises(ConflictError, match="only"):
        chosen("kill", target)
    assert chosen("kill", target, hits_last=True).name.startswith(target)


def test_what_is_not_ready_or_not_there_cannot_be_hit():
    with pytest.raises(ConflictError, match="failed"):
        chosen("kill", "tiny-2")
    with pytest.raises(NotFoundError):
        chosen("kill", "tiny-9")


@pytest.mark.parametrize(
    ("kind", "target"), [("partition", "host"), ("kill", "agent"), ("kill", "ray")]
)
def test_what_one_machine_does_not_bear_is_refused_there(kind, target):
    with pytest.raises(ConfigError, match="machine"):
        chosen(kind, target)
    assert chosen(kind, target, on_hosts=True, hits_last=True).name == "gpu1"


def test_a_shims_instance_goes_with_it():
    victim = chosen("kill", "shim", draw=0.5, hits_last=True)
    assert (victim.role, victim.name, victim.instances) == ("shim", "tiny-1", {"tiny-1"})
