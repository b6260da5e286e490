"""A benchmark's faults on hosts: whom they hit, and what is run there."""

import json
from contextlib import nullcontext
from pathlib import PurePath

import pytest

from llx.bench.scenario import Fault
from llx.bootstrap.shell import Completed
from llx.chaos.grounds import Grounds, Place
from llx.chaos.strike import Striker
from llx.errors import ConfigError, NotFoundError
from tests.top.cluster import cluster, host, instance

RUNS = {"state": "running", "child_pid": 7, "child_start": 77, "mark": "m"}


class Hand:
    """A host on which `tiny-0` runs; keeps the script and the words of each fault."""

    def __init__(self):
        self.done = []

    def run(self, argv, *, timeout_s=30.0, stdin=b""):
        if argv[0] == "cat":
            is_known = argv[1] == "/procs/tiny-0/shim.json"
            return Completed(0, json.dumps(RUNS) if is_known else "", "")
        script, _, *words = argv[argv.index("-c") + 1 :]
        if words:  # without any it only asks whether it may
            self.done.append((script, words))
        return Completed(0, "", "")


class Control:
    """The head of three hosts; `tiny-0` is on the first."""

    def __init__(self):
        self.notes = []

    def status(self):
        hosts = [host(f"gpu{n}", address=f"10.0.0.{n}") for n in (1, 2, 3)]
        found = {"hosts": hosts, "instances": [instance("tiny-0"), instance("tiny-1")]}
        return cluster().model_copy(update=found)

    def note(self, verb, text, *, user):
        assert user == "ann"
        self.notes.append((verb, text))


@pytest.fixture
def control():
    return Control()


@pytest.fixture
def hands():
    return {f"gpu{n}": Hand() for n in (1, 2, 3)}


def striker(control, hands, *faults):
    places = {name: Place(hand, PurePath("/procs")) for name, hand in hands.items()}
    return Striker(Grounds(lambda: nullcontext(control), places, "", "ann"), faults)


def fault(do, **more):
    return Fault(at_s=0, do=do, **more)


@pytest.mark.parametrize(
    ("given", "script", "words", "note"),
    [
        (fault("kill", instance="tiny-0"), "kill -KILL", ["7", "77"], "tiny-0"),
        (
            fault("freeze", instance="tiny-0", for_s=15),
            "kill -STOP", ["7", "77", "15"], "tiny-0 for 15 s",
        ),
        (
            fault("slow", instance="tiny-0", for_s=10),
            "sleep 0.05", ["7", "77", "10"], "tiny-0 for 10 s",
        ),
        (
            fault("partition", host="gpu1", for_s=5),
            "nft -f", ["5", "llx_chaos", "ip/10.0.0.2", "ip/10.0.0.3"], "gpu1 for 5 s",
        ),
    ],
    ids=lambda each: each.do if isinstance(each, Fault) else "",
)  # fmt: skip
def test_it_is_done_where_its_victim_is(control, hands, given, script, words, note):
    striker(control, hands, given)(given)
    [(ran, said)] = hands["gpu1"].done
    assert script in ran
    assert said == words
    assert hands["gpu2"].done == hands["gpu3"].done == []
    assert control.notes == [(f"bench {given.do}", note)]


@pytest.mark.parametrize(
    ("name", "why"), [("gateway-0", 'no instance "gateway-0"'), ("tiny-9", 'no "tiny-9"')]
)
def test_who_is_no_instance_is_left_alone(control, hands, name, why):
    kill = fault("kill", instance=name)
    with pytest.raises(NotFoundError, match=why):
        striker(control, hands, kill)(kill)
    assert control.notes == hands["gpu1"].done == []


def test_an_instance_whose_process_has_gone_is_said_to(control, hands):
    kill = fault("kill", instance="tiny-1")
    with pytest.raises(NotFoundError, match="tiny-1 does not run"):
        striker(control, hands, kill)(kill)


@pytest.mark.parametrize(
    "given",
    [
        fault("kill", instance="instance"),
        fault("freeze", instance="gateway", for_s=1),
        fault("partition", host="host", for_s=1),
        fault("partition", host="gateway", for_s=1),
    ],
)
def test_a_roles_name_is_nobodys(control, hands, given):
    with pytest.raises(ConfigError, match="is nobody's name"):
        striker(control, hands, given)


def test_one_machine_cannot_be_cut_off_from_others(control):
    with pytest.raises(ConfigError, match="takes a cluster on hosts"):
        striker(control, {"": Hand()}, fault("partition", host="gpu1", for_s=5))
