"""A run that was interrupted goes on, and judges by the cluster that it goes on with."""

import json
from pathlib import PurePath

import pytest

from llx.api import ClusterState
from llx.bootstrap.shell import Completed
from llx.chaos.faults import FaultRecord
from llx.chaos.grounds import Grounds, Place
from llx.chaos.leaks import Idle
from llx.chaos.plan import ChaosPlan, Fault, FaultKind, Traffic
from llx.chaos.record import About, RunDirectory
from llx.chaos.run import run_plan
from llx.errors import ConflictError
from llx.openai_client import Tokens
from tests.top.cluster import cluster, instance, load

STATUS = cluster().model_copy(
    update={
        "state": ClusterState.READY,
        "instances": [instance("tiny-0", load=load(0, 0)), instance("tiny-1", load=load(0, 0))],
        "gateways": [each.model_copy(update={"in_flight": 0}) for each in cluster().gateways],
    }
)
PLAN = ChaosPlan(
    faults=[Fault(kind=FaultKind.KILL, target="instance")],
    traffic=Traffic(streams=1, prompts=1, output_tokens=3),
    bounds={"settled_s": 0.1},
)
ANSWER = (5, 6, 7)


class Host:
    """Where tiny-1 runs, in a run of mark `new`."""

    def run(self, argv, *, timeout_s=30.0, stdin=b""):
        return Completed(0, 'shim tiny-1 {"mark": "new"}\nproc 7 S new\n', "")


class Head:
    def status(self):
        return STATUS

    def migrations(self):
        return []

    def close(self):
        pass


class Gateway:
    def stream_completion(self, request):
        yield Tokens(ANSWER, "", 0.0, "length", len(ANSWER))


@pytest.fixture
def directory(tmp_path):
    """Of a run whose only fault is over; tiny-0 was on the host then."""
    directory = RunDirectory(tmp_path / "run")
    directory.begin(PLAN)
    idle = Idle(blocks={}, units=frozenset(), shims={"h1": frozenset({"tiny-0"})})
    directory.keep_about(About(cluster="prod", model="tiny", references=[ANSWER], idle=idle))
    directory.add_fault(
        FaultRecord(number=0, kind=FaultKind.KILL, role="instance", began_at=1.0, ended_at=2.0)
    )
    return directory


def go_on(directory, model="tiny"):
    grounds = Grounds(Head, {"h1": Place(Host(), PurePath("/procs"))}, "h1", "ann")
    return run_plan(grounds, {"gateway-0": Gateway()}, model, directory)


def test_a_cluster_that_was_brought_up_anew_is_compared_with_itself(directory):
    directory.add_marks({"old"})
    assert go_on(directory).leaks == []
    assert directory.about().idle.shims == {"h1": frozenset({"tiny-1"})}


def test_the_cluster_that_there_was_is_compared_with_how_it_was(directory):
    directory.add_marks({"old", "new"})
    assert go_on(directory).leaks == ["files: tiny-1 on h1"]


def test_another_model_is_refused_and_nothing_kept_of_it(directory):
    before = json.loads((directory.path / "about.json").read_text())
    with pytest.raises(ConflictError, match="is of tiny on prod"):
        go_on(directory, "other")
    assert json.loads((directory.path / "about.json").read_text()) == before
