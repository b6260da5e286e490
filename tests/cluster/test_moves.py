"""Moves in a real head over fake instances: asked for, cancelled; drains and restarts."""

import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llx.api import ClusterState, InstanceState, MigrateRequest, MigrationStatus, MoveOutcome
from llx.client import Cluster
from llx.cluster.placement_file import load_placements
from llx.errors import ConfigError, ConflictError, NotFoundError
from tests.node import ROOT

EXAMPLE = ROOT / "examples/move_longest.py"


def home_of(rig: Any) -> Path:
    """Where `llx` finds the rig's cluster."""
    home = rig.state.path.parent.parent / "home"
    if not home.exists():
        (home / "llx/clusters").mkdir(parents=True)
        (home / "llx/clusters/c").symlink_to(rig.state.path)
    return Path(home)


def idle(count: int = 2, name: str = "m", **engine_args: object) -> dict[str, Any]:
    return {
        "name": name, "model": "/m", "engine": "sim", "instances": {"min": count},
        "engine_args": {"is_idle": True, **engine_args},
    }  # fmt: skip


def request(number: int, **more: object) -> dict[str, object]:
    values = {"id": f"cmpl-c{number}-0-0000000{number}", "name": f"llx-{number}"}
    return {**values, "num_blocks": number, "arrival": float(number), **more}


def events(rig: Any, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    return [each for each in lines if each["kind"] == kind]


def up(rig: Any, *models: dict[str, Any]) -> Cluster:
    rig.launch(rig.settings(models=list(models or [idle()])))
    client = rig.client()
    rig.reaches(client, ClusterState.READY)
    rig.eventually(lambda: all(each.load for each in client.status().instances), "they report")
    return client


def is_busy(client: Cluster, name: str, count: int) -> bool:
    load = client.instance(name).load
    return load is not None and load.running == count


def outcomes(rig: Any, client: Cluster, begun: list[MigrationStatus]) -> list[MoveOutcome]:
    ids = [each.id for each in begun]
    rig.eventually(
        lambda: all(each.outcome for each in client.migrations(ids)),
        lambda: str(client.migrations(ids)),
    )
    return [each.outcome for each in client.migrations(ids) if each.outcome]


def test_requests_are_listed_and_move_when_asked(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", request(1), request(2, pinned="it has a pooler"), request(3, priority=20))
        rig.eventually(lambda: is_busy(client, "m-0", 3), "they are reported")
        found = client.requests()
        assert found.not_asked == []
        assert [(each.name, each.instance, each.num_blocks) for each in found.requests] == [
            ("llx-1", "m-0", 1), ("llx-2", "m-0", 2), ("llx-3", "m-0", 3),
        ]  # fmt: skip
        assert [each.priority_class for each in found.requests] == ["normal", "normal", "batch"]
        assert found.requests[1].pinned == "it has a pooler"

        report = client.migrate(MigrateRequest(request="c1", target="m-1", user="ann"))
        (begun,) = report.migrations
        assert (begun.id, begun.source, begun.target, begun.user) == ("m1-1", "m-0", "m-1", "ann")
        assert outcomes(rig, client, report.migrations) == [MoveOutcome.MOVED]
        status = client.migration("m1-1")
        assert (status.blocks_copied, status.size_bytes, status.why) == (2, 8192, "asked for")
        assert (status.transport, status.transport_why) == ("shm", "nccl: no GPU")
        assert client.instance("m-1").moved_by == "shm (nccl: no GPU)"
        assert [each.name for each in client.requests().requests] == ["llx-2", "llx-3"]

        plan = client.migrate(MigrateRequest(source="m-0", target="m-1", is_dry_run=True))
        assert [each.request.name for each in plan.planned] == ["llx-3"]
        assert plan.planned[0].copy_s == pytest.approx(8192 / 1e6, abs=1e-6)
        assert plan.planned[0].downtime_ms is None, "no gateway has told of any"
        assert [(each.name, each.reason) for each in plan.left_out] == [
            ("llx-2", "pinned: it has a pooler")
        ]
        assert len(client.migrations()) == 1, "nothing has begun"
    assert [each["user"] for each in events(rig, "migration.ordered")] == ["ann"]
    assert [each["outcome"] for each in events(rig, "migration.over")] == ["moved"]


@pytest.mark.slow
def test_some_of_an_instance_move_by_choice(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", *(request(number) for number in (1, 2, 3, 4)))
        rig.eventually(lambda: is_busy(client, "m-0", 4), "they are reported")

        def ask(**more: Any) -> list[str]:
            report = client.migrate(MigrateRequest(source="m-0", target="m-1", **more))
            outcomes(rig, client, report.migrations)
            return [each.name for each in report.migrations]

        assert ask(count=1, by="longest") == ["llx-4"]
        assert ask(count=1, by="oldest") == ["llx-1"]
        assert ask() == ["llx-2", "llx-3"]
        assert ask() == []


def test_what_cannot_be_is_refused_with_the_culprit(rig) -> None:
    lite = idle(name="lite", cannot_migrate="its KV cache is of several kinds")
    with up(rig, idle(), idle(1, name="n"), lite) as client:
        rig.give("m-0", request(1))
        rig.eventually(lambda: is_busy(client, "m-0", 1), "it is reported")
        cases: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"source": "m-0", "target": "m-9"}, NotFoundError, 'no instance "m-9"'),
            ({"source": "m-9", "target": "m-1"}, NotFoundError, 'no instance "m-9"'),
            ({"request": "c9", "target": "m-1"}, NotFoundError, 'no request "c9"'),
            ({"source": "m-0", "target": "m-0"}, ConflictError, "both source and target"),
            ({"source": "m-0", "target": "n-0"}, ConflictError, "n-0 serves n"),
            ({"source": "lite-0", "target": "lite-1"}, ConflictError, "lite-0 cannot move"),
            ({"target": "m-1"}, ConfigError, "either a request, or an instance"),
            ({"source": "m-0", "target": "m-1", "by": "x"}, ConfigError, 'no choice "x"'),
        ]
        for words, kind, message in cases:
            with pytest.raises(kind, match=message):
                client.migrate(MigrateRequest(**words))
        client.cordon_instance("m-1", is_on=True, user="ann")
        with pytest.raises(ConflictError, match="m-1 is cordoned") as caught:
            client.migrate(MigrateRequest(request="c1", target="m-1"))
        assert caught.value.remedy == "llx inst uncordon m-1"
        client.cordon_instance("m-1", is_on=False)
        report = client.migrate(MigrateRequest(request="c1", target="m-1", is_dry_run=True))
        assert len(report.planned) == 1
        at_home = client.migrate(MigrateRequest(request="c1", target="m-0"))
        assert [each.reason for each in at_home.left_out] == ["is on m-0 already"]
        assert client.instance("lite-0").cannot_migrate == "its KV cache is of several kinds"
        with pytest.raises(NotFoundError, match="llx mig ls"):
            client.migration("m1-99")


@pytest.mark.slow
def test_of_several_generations_those_move_that_are_elsewhere(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", {"id": "0_chatcmpl-two-0123abcd", "name": "llx-two"})
        rig.give("m-1", {"id": "1_chatcmpl-two-0123abcd", "name": "llx-two"})
        rig.eventually(lambda: is_busy(client, "m-1", 1), "they are reported")
        rig.eventually(lambda: is_busy(client, "m-0", 1), "they are reported")
        report = client.migrate(MigrateRequest(request="two", target="m-1"))
        assert [each.request for each in report.migrations] == ["0_chatcmpl-two-0123abcd"]
        assert report.left_out == []


@pytest.mark.slow
def test_a_move_can_be_cancelled_and_one_request_moves_once_at_a_time(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", request(1, takes_s=60))
        rig.eventually(lambda: is_busy(client, "m-0", 1), "it is reported")
        (begun,) = client.migrate(MigrateRequest(request="llx-1", target="m-1")).migrations
        rig.eventually(lambda: client.migration(begun.id).state == "copying", "it is heard of")
        assert client.instance("m-0").moving_out == 1
        assert client.requests().requests[0].migration == begun.id
        again = client.migrate(MigrateRequest(request="llx-1", target="m-1"))
        assert [each.reason for each in again.left_out] == [f"is being moved already ({begun.id})"]
        client.cancel_migration(begun.id, user="ann")
        assert outcomes(rig, client, [begun]) == [MoveOutcome.KEPT]
        assert client.migration(begun.id).reason == "cancelled"
        with pytest.raises(ConflictError, match="is over: kept"):
            client.cancel_migration(begun.id)


@pytest.mark.slow
def test_a_source_that_falls_ends_its_moves(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", request(1, takes_s=60))
        rig.eventually(lambda: is_busy(client, "m-0", 1), "it is reported")
        report = client.migrate(MigrateRequest(source="m-0", target="m-1"))
        client.restart_instance("m-0", deadline_s=0)
        assert outcomes(rig, client, report.migrations) == [MoveOutcome.UNKNOWN]
        assert client.migration("m1-1").reason.startswith("m-0: ")


@pytest.mark.slow
def test_a_drained_instance_is_empty_up_and_cordoned(rig) -> None:
    with up(rig, idle(3)) as client:
        rig.give("m-0", *(request(number % 9 + 1, id=f"r{number}", name=f"llx-{number}")
                          for number in range(12)))  # fmt: skip
        rig.eventually(lambda: is_busy(client, "m-0", 12), "they are reported")
        begun = time.monotonic()
        report = client.drain_instance("m-0", deadline_s=120, user="ann")
        assert time.monotonic() - begun < 60
        assert (report.moved, report.finished, report.cut, report.remaining) == (12, 0, 0, 0)
        assert report.not_moved == []
        targets = [each.target for each in client.migrations()]
        assert min(targets.count("m-1"), targets.count("m-2")) >= 3, "they are spread"
        status = client.instance("m-0")
        assert (status.state, status.is_cordoned) == (InstanceState.READY, True)
        rig.eventually(lambda: "cordoned: m-0\n" in rig.log("gateway-0"), "gateways know it")
        status = client.cordon_instance("m-0", is_on=False)
        assert not status.is_cordoned
        rig.eventually(lambda: rig.log("gateway-0").endswith("cordoned: \n"), "they know this, too")
    (event,) = events(rig, "instance.drained")
    assert (event["user"], event["moved"]) == ("ann", 12)
    assert events(rig, "migration.ordered")[0]["why"] == "m-0 is drained"


@pytest.mark.slow
def test_a_drain_tries_again_waits_for_what_is_pinned_and_says_what_stayed(rig) -> None:
    with up(rig) as client, rig.client() as other:
        rig.give(
            "m-0",
            request(1, ends=["kept", "moved"]),
            request(2, pinned="prompt logprobs"),
            request(3, ends="gone"),
            request(4, ends="kept"),
        )
        rig.eventually(lambda: is_busy(client, "m-0", 4), "they are reported")
        reports: list[Any] = []
        draining = threading.Thread(
            target=lambda: reports.append(client.drain_instance("m-0", deadline_s=60))
        )
        draining.start()

        def tried() -> list[float]:
            return [each.begun_at for each in other.migrations() if each.name == "llx-4"]

        rig.eventually(lambda: is_busy(other, "m-0", 2), "two are gone")
        count = max(1, len(tried()))
        rig.eventually(lambda: len(tried()) > count, "the last is tried again")
        other.cordon_instance("m-0", is_on=False)
        draining.join(60)
        (report,) = reports
        assert (report.moved, report.finished, report.remaining) == (1, 1, 2)
        assert sorted(report.not_moved) == [
            "llx-2: pinned: prompt logprobs",
            "llx-4: the target is full",
        ]
        assert min(b - a for a, b in pairwise(tried())) >= 0.5, "after a pause each time"


@pytest.mark.slow
def test_a_drain_ends_when_the_instance_is_used_again(rig) -> None:
    with up(rig) as client, rig.client() as other:
        rig.give("m-0", request(1, pinned="because"))
        rig.eventually(lambda: is_busy(client, "m-0", 1), "it is reported")
        reports: list[Any] = []
        draining = threading.Thread(
            target=lambda: reports.append(client.drain_instance("m-0", deadline_s=60))
        )
        draining.start()
        rig.eventually(lambda: other.instance("m-0").is_cordoned, "it has begun")
        with pytest.raises(ConflictError, match="is being drained already"):
            other.drain_instance("m-0")
        other.cordon_instance("m-0", is_on=False)
        draining.join(60)
        assert reports[0].remaining == 1


@pytest.mark.slow
def test_without_another_instance_they_finish_where_they_are(rig) -> None:
    with up(rig, idle(1)) as client:
        rig.give("m-0", request(1))
        rig.eventually(lambda: is_busy(client, "m-0", 1), "it is reported")
        report = client.drain_instance("m-0", deadline_s=5)
        assert (report.moved, report.remaining) == (0, 1)
        assert report.not_moved == ["llx-1: m-0 is the only instance of m"]


@pytest.mark.slow
def test_a_restart_drains_first_and_uncordons(rig) -> None:
    with up(rig) as client:
        rig.give("m-0", request(1, takes_s=0.3), request(2, takes_s=0.3))
        rig.eventually(lambda: is_busy(client, "m-0", 2), "they are reported")
        client.cordon_instance("m-0", is_on=True)
        begun = client.restart_instance("m-0", user="ann", deadline_s=20)
        assert begun.state is InstanceState.DRAINING
        with pytest.raises(ConflictError, match="being stopped or started"):
            client.restart_instance("m-0")
        rig.eventually(lambda: client.instance("m-0").restarts == 1, "it is restarted")
        rig.reaches(client, ClusterState.READY)
        assert not client.instance("m-0").is_cordoned
        assert [each.outcome for each in client.migrations()] == [MoveOutcome.MOVED] * 2
    (event,) = events(rig, "instance.drained")
    assert (event["user"], event["moved"], event["cut"]) == ("ann", 2, 0)


@pytest.mark.slow
def test_a_cordon_outlives_the_head(rig) -> None:
    head = rig.launch(rig.settings(models=[idle()]))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        client.cordon_instance("m-1", is_on=True, user="ann")
        time.sleep(0.3)
    head.stop(10)
    rig.launch(rig.settings(models=[idle()]))
    with rig.client() as client:
        rig.reaches(client, ClusterState.READY)
        assert [each.is_cordoned for each in client.status().instances] == [False, True]
    assert [each["user"] for each in events(rig, "instance.cordoned")] == ["ann"]


def test_a_cordon_that_an_operator_has_heard_of_outlives_the_head(rig) -> None:
    """Each is in the file at once: a head that falls a moment later has told the next one."""
    with up(rig) as client:
        for _ in range(5):
            for is_on in (True, False):
                client.cordon_instance("m-1", is_on=is_on)
                kept = load_placements(rig.state.placements).instances["m-1"]
                assert kept.is_cordoned is is_on


def test_the_example_moves_the_longest_of_the_fullest(rig) -> None:
    """`examples/move_longest.py`, as somebody runs it who has nothing but the cluster's name."""

    def script(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-W", "error", str(EXAMPLE), *words]
        variables = {
            **os.environ,
            "XDG_STATE_HOME": str(home_of(rig)),
            "PYTHONPATH": str(ROOT),
            **more,
        }
        return subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=120)

    with up(rig) as client:
        rig.give("m-0", request(1), request(3), request(2))
        rig.eventually(lambda: is_busy(client, "m-0", 3), "they are reported")
        done = script("c")
        assert (done.stdout, done.stderr) == ("llx-3: m-0 to m-1: moved\n", "")
        assert done.returncode == 0
        assert client.migrations()[0].user == "move_longest.py"
        done = script(LLX_CONTEXT="nope")
        assert (done.returncode, done.stdout.partition(" (")[0]) == (4, 'no cluster "nope"')
