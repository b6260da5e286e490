"""Requests move off hosts that are drained or removed; what gateways saw of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llx.api import ClusterState, MoveOutcome
from llx.client import Cluster
from tests.cluster.conftest import write_requests
from tests.cluster.hosts_rig import HostsRig, events, make_rig, put

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def give(rig: HostsRig, client: Cluster, host: str, name: str, *requests: Any) -> None:
    write_requests(rig.hosts[host].state.procs / name, requests)
    rig.eventually(lambda: running(client, name) == len(requests), "they are reported")


def running(client: Cluster, name: str) -> int | None:
    load = client.instance(name).load
    return None if load is None else load.running


def some(count: int, prefix: str = "r", **more: object) -> list[dict[str, object]]:
    return [{"id": f"{prefix}{n}", "name": f"llx-{prefix}{n}", **more} for n in range(count)]


def test_a_host_is_drained_by_moving_to_other_hosts(rig) -> None:
    rig.add("h1", num_gpus=2)
    rig.add("h2", "h3", num_gpus=1)  # full: what leaves h1 does not come back as a target there
    with rig.up(rig.settings(models=[rig.model("m", 4, engine="vllm")])) as client:
        rig.reaches(client, ClusterState.READY)
        assert {rig.where(client)[each] for each in ("m-0", "m-3")} == {"h1"}
        give(rig, client, "h1", "m-0", *some(6, "a"))
        give(rig, client, "h1", "m-3", *some(6, "b", ends=["kept", "moved"]))
        report = client.drain_host("h1", deadline_s=30, user="ann")
        assert (report.moved, report.cut, report.not_moved) == (12, 0, [])
        moves = client.migrations()
        assert {each.target for each in moves} == {"m-1", "m-2"}, "not to its neighbour"
        assert len([each for each in moves if each.outcome is MoveOutcome.KEPT]) == 6
        assert {(each.user, each.why) for each in moves} == {
            ("ann", "m-0 is emptied"),
            ("ann", "m-3 is emptied"),
        }
        assert rig.hosts["h1"].alive() == set()
    (event,) = events(rig, "host.drained")
    assert (event["user"], event["moved"], event["cut"]) == ("ann", 12, 0)


def test_what_is_pinned_is_cut_at_the_deadline_and_named(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        give(rig, client, "h2", "m-1", *some(2), {"id": "x", "name": "llx-x", "pinned": "LoRA"})
        report = client.drain_host("h2", deadline_s=10)
        assert (report.moved, report.finished, report.cut) == (2, 0, 1)
        assert report.not_moved == ["llx-x: pinned: LoRA"]


def test_what_is_under_way_at_the_deadline_arrives(rig, monkeypatch) -> None:
    monkeypatch.setattr("llx.cluster.driving.draining._LAST_MOVES_S", 30.0)
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        give(rig, client, "h2", "m-1", *some(1, takes_s=5))
        (rig.hosts["h2"].state.procs / "m-1/mute").touch()  # its load still says one
        report = client.drain_host("h2", deadline_s=3)
        assert (report.moved, report.finished, report.cut) == (1, 0, 0)


def test_a_host_that_is_removed_moves_its_requests_first(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings(models=[rig.model("m", 2)])) as client:
        rig.reaches(client, ClusterState.READY)
        give(rig, client, "h2", "m-1", *some(5, takes_s=0.2))
        put(client, rig.settings("h1"))
        rig.eventually(lambda: len(client.status().hosts) == 1, "h2 is gone")
        assert [each.outcome for each in client.migrations()] == [MoveOutcome.MOVED] * 5
    (event,) = events(rig, "host.removed")
    assert (event["moved"], event["cut"]) == (5, 0)


def test_an_instance_that_is_no_longer_asked_for_moves_its_requests_first(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        give(rig, client, "h2", "m-1", *some(3))
        put(client, rig.settings(models=[rig.model("m", 1)]))
        rig.eventually(lambda: len(client.status().instances) == 1, "it is gone")
        assert {each.target for each in client.migrations()} == {"m-0"}


def test_what_is_said_about_migrations_is_for_instances_that_start_later(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        words = put(client, rig.settings(migration={"max_out": 2}))
        assert words == ["migration.max_out changes, for instances that are started from now on"]
        rig.eventually(lambda: "older settings" in client.instance("m-1").detail, "it says so")
        client.restart_instance("m-1")
        rig.eventually(lambda: client.instance("m-1").restarts == 1, "it is restarted")
        rig.reaches(client, ClusterState.READY)
        assert client.instance("m-1").detail == ""
        assert "older settings" in client.instance("m-0").detail
