"""Models whose number of instances is a range: instances come with load and go with it."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llx.api import ClusterState, HostState, InstanceState, ModelStatus, ScaleRequest
from llx.client import Cluster
from llx.core.scheduler.policies import Policies
from llx.errors import ConflictError
from llx.recording import Recording
from llx.settings import ClusterSettings
from llx.sim.replay import replay
from tests.cluster.conftest import write_requests
from tests.cluster.hosts_rig import HostsRig, events, host_state, is_busy, make_rig, put

QUICK = {"low": 10, "high": 60, "sustain_s": 0.4, "grow_after_s": 0.4, "cooldown_s": 0.5}
FULL = {"id": "big", "num_blocks": 95}
"""5 blocks stay free: below the band. An empty instance has 100 free: above it."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def scaled(rig: HostsRig, name: str = "m", **more: Any) -> dict[str, Any]:
    scheduling = {"scaling": {**QUICK, **more.pop("scaling", {})}}
    span = more.pop("span", {"min": 1, "max": 2})
    return {**rig.model(name, 1), "instances": span, "scheduling": scheduling, **more}


def settings(rig: HostsRig, **more: Any) -> ClusterSettings:
    return rig.settings(models=[scaled(rig, **more)])


def give(rig: HostsRig, name: str, *requests: dict[str, Any]) -> None:
    for host in rig.hosts.values():
        if name in host.alive():
            write_requests(host.state.procs / name, requests)


def model(client: Cluster) -> ModelStatus:
    return client.status().models[0]


def states(client: Cluster) -> dict[str, InstanceState]:
    return {each.name: each.state for each in client.status().instances}


def grows(rig: HostsRig, client: Cluster) -> None:
    """From one to two, as m-0 is full."""
    rig.reaches(client, ClusterState.READY)
    give(rig, "m-0", FULL)
    rig.eventually(lambda: model(client).instances_ready == 2, lambda: f"two, not {states(client)}")


@pytest.mark.slow
def test_one_more_under_load_and_one_less_without_the_cheapest(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client:
        assert (model(client).instances_min, model(client).instances_max) == (1, 2)
        time.sleep(1)  # nothing waits, nothing runs: the minimum stays
        rig.reaches(client, ClusterState.READY)
        assert list(states(client)) == ["m-0"]
        grows(rig, client)
        assert set(rig.where(client).values()) == {"h1", "h2"}
        (added,) = events(rig, "instance.added")
        assert added["name"] == "m-1"
        assert "too few for what is there" in str(added["why"])
        give(rig, "m-1", {"id": "one", "num_blocks": 2}, {"id": "two", "num_blocks": 2})
        rig.eventually(lambda: is_busy(client, "m-1"), "they are reported")
        give(rig, "m-0", {"id": "small", "num_blocks": 2})
        rig.eventually(lambda: list(states(client)) == ["m-1"], lambda: f"{states(client)}")
        (removed,) = events(rig, "instance.surplus")
        assert removed["name"] == "m-0"
        assert "freer than the band" in str(removed["why"])
        assert rig.reaches(client, ClusterState.READY).models[0].instances_wanted == 1
        give(rig, "m-1", FULL)
        rig.eventually(lambda: states(client).get("m-0") is InstanceState.READY, "its name")


@pytest.mark.slow
def test_what_is_full_moves_before_its_instance_ends(rig) -> None:
    """The surplus instance has one request; it is given to the other, and ends after that."""
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client:
        grows(rig, client)
        give(rig, "m-1", {"id": "slow", "num_blocks": 3, "takes_s": 1.0})
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        rig.eventually(lambda: client.migrations() != [], "it moves")
        assert [(each.source, each.target) for each in client.migrations()] == [("m-1", "m-0")]
        rig.eventually(lambda: list(states(client)) == ["m-0"], "it has gone")
        assert client.migrations()[0].outcome == "moved"
    assert events(rig, "process.removed") == []


@pytest.mark.slow
def test_a_new_head_goes_on_emptying_and_keeps_what_scaling_has_added(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, span={"min": 1, "max": 3})) as client:
        grows(rig, client)
    rig.end_head()
    known = json.loads(rig.state.placements.read_text())
    assert known["wanted"] == ["m-0", "m-1"]
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        assert model(client).instances_wanted == 2
        stuck = {"id": "stuck", "num_blocks": 3, "ends": "kept"}
        give(rig, "m-1", stuck)
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        rig.eventually(
            lambda: json.loads(rig.state.placements.read_text())["wanted"] == ["m-0"], "it is kept"
        )
    rig.end_head()
    with rig.up() as client:
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains on")
        assert model(client).instances_wanted == 1
        give(rig, "m-1")
        rig.eventually(lambda: list(states(client)) == ["m-0"], "it has gone")
    assert [each["name"] for each in events(rig, "instance.added")] == ["m-1"]
    assert events(rig, "process.removed") == []


@pytest.mark.slow
def test_a_head_that_remembers_nothing_takes_in_what_runs(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client:
        grows(rig, client)
        pids = {name: host.pid(name) for name, host in _hosts_of(rig, client).items()}
    rig.end_head()
    rig.state.placements.unlink()
    with rig.up() as client:
        rig.eventually(lambda: model(client).instances_ready == 2, "both serve")
        assert {name: host.pid(name) for name, host in _hosts_of(rig, client).items()} == pids
    assert events(rig, "process.removed") == []


@pytest.mark.slow
def test_what_runs_takes_the_place_of_what_would_be_started(rig) -> None:
    """m-1 and m-2 serve; without the file the next head begins with m-0 and m-1."""
    rig.add("h1", "h2")
    with rig.up(settings(rig, span={"min": 3, "max": 3})) as client:
        rig.reaches(client, ClusterState.READY)
        client.cordon_instance("m-0", is_on=True, user="ann")
        client.scale("m", ScaleRequest(min=2, max=2, user="ann"))
        rig.eventually(lambda: list(states(client)) == ["m-1", "m-2"], lambda: f"{states(client)}")
        hosts = _hosts_of(rig, client)
        pids = {name: host.pid(name) for name, host in hosts.items()}
        assert hosts["m-1"] is not hosts["m-2"]
    rig.end_head()
    rig.state.placements.unlink()
    hosts["m-1"].line = "cut"
    with rig.up() as client:
        rig.eventually(lambda: host_state(client, hosts["m-2"].name) is HostState.READY, "it looks")
        time.sleep(0.5)
        hosts["m-1"].line = "up"
        rig.eventually(lambda: model(client).instances_ready == 2, "both serve")
        assert list(states(client)) == ["m-1", "m-2"]
        assert {name: host.pid(name) for name, host in _hosts_of(rig, client).items()} == pids
    assert events(rig, "process.removed") == []


def _hosts_of(rig: HostsRig, client: Cluster) -> dict[str, Any]:
    where = rig.where(client)
    return {name: rig.hosts[host] for name, host in where.items() if name.startswith("m-")}


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 3])
def test_demand_that_comes_back_keeps_who_is_being_emptied(rig, most: int) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, span={"min": 1, "max": most})) as client:
        grows(rig, client)
        pid = _hosts_of(rig, client)["m-1"].pid("m-1")
        give(rig, "m-1", {"id": "stuck", "num_blocks": 3, "ends": "kept"})
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        give(rig, "m-0", FULL)
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.READY, "it is kept")
        assert _hosts_of(rig, client)["m-1"].pid("m-1") == pid
        rig.eventually(lambda: model(client).instances_ready == 2, "two")
    assert [each["name"] for each in events(rig, "instance.wanted_again")] == ["m-1"]
    assert len(events(rig, "instance.added")) == 1
    rig.end_head()
    recording = Recording(rig.state.recordings / "term-1.jsonl")
    seen = replay(recording, Policies(), lambda _: None)
    assert (seen.difference, seen.stopped) == (None, None)
    assert {"AddInstances", "Terminate"} <= set(seen.commands)


@pytest.mark.slow
def test_nothing_is_started_beyond_the_maximum_while_one_cannot_be_kept(rig) -> None:
    """m-1 is being emptied, and so is its host: demand that comes back cannot have it."""
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client, ThreadPoolExecutor(1) as aside:
        grows(rig, client)
        give(rig, "m-1", {"id": "stuck", "num_blocks": 3, "ends": "kept"})
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        host = rig.where(client)["m-1"]
        drain = aside.submit(client.drain_host, host, deadline_s=4, user="ann")
        rig.eventually(lambda: host_state(client, host) is HostState.DRAINING, "its host drains")
        give(rig, "m-0", FULL)
        still = {InstanceState.DRAINING, InstanceState.READY}
        while (seen := states(client)).get("m-1") in still:
            assert set(seen) == {"m-0", "m-1"}
            time.sleep(0.05)
        assert drain.result().cut == 1
        rig.eventually(lambda: model(client).instances_ready == 2, "then one is started")


@pytest.mark.slow
def test_an_operator_keeps_who_is_being_emptied(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, scaling={"cooldown_s": 3})) as client:
        grows(rig, client)
        give(rig, "m-1", {"id": "stuck", "num_blocks": 3, "ends": "kept"})
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        client.cordon_instance("m-1", is_on=False, user="ann")
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.READY, "it is kept")
        put(client, rig.settings(models=[scaled(rig, span={"min": 1, "max": 1})]))
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        with pytest.raises(ConflictError, match="m-1 is being removed"):
            client.cordon_instance("m-1", is_on=False, user="ann")


@pytest.mark.slow
def test_a_host_that_is_drained_does_not_wait_for_whoever_leaves_it_slowly(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client:
        grows(rig, client)
        give(rig, "m-1", {"id": "stuck", "num_blocks": 3, "ends": "kept"})
        give(rig, "m-0", {"id": "other", "num_blocks": 20})
        rig.eventually(lambda: states(client).get("m-1") is InstanceState.DRAINING, "it drains")
        begun = time.monotonic()
        report = client.drain_host(rig.where(client)["m-1"], deadline_s=1, user="ann")
        assert (report.cut, time.monotonic() - begun < 60) == (1, True)
        rig.eventually(lambda: list(states(client)) == ["m-0"], "it has gone")


@pytest.mark.slow
def test_no_room_is_said_and_tried_again(rig) -> None:
    rig.add("h1", num_gpus=1)
    values = settings(rig, engine="vllm", sim={})
    with rig.up(values) as client:
        rig.reaches(client, ClusterState.READY)
        give(rig, "m-0", FULL)
        rig.eventually(
            lambda: model(client).shortage.startswith("needs 1 free GPU(s)"),
            lambda: repr(model(client)),
        )
        assert list(states(client)) == ["m-0"]
        assert client.status().state is ClusterState.READY
        give(rig, "m-0")
        rig.eventually(lambda: model(client).shortage == "", "none is wanted any more")
        give(rig, "m-0", FULL)
        rig.eventually(lambda: bool(model(client).shortage), "it is short again")
        rig.add("h2", num_gpus=1)
        put(client, values.model_copy(update={"hosts": rig.settings().hosts}))
        rig.eventually(lambda: model(client).instances_ready == 2, "there is room")
        rig.eventually(lambda: model(client).shortage == "", "that is over")


@pytest.mark.slow
def test_a_start_that_fails_is_said_given_up_and_tried_later(rig) -> None:
    rig.add("h1")
    with rig.up(settings(rig)) as client:
        rig.reaches(client, ClusterState.READY)
        put(client, settings(rig, scaling={"cooldown_s": 1}))
        rig.hosts["h1"].refuses = True
        give(rig, "m-0", FULL)
        rig.eventually(lambda: "m-1" in model(client).shortage, lambda: repr(model(client)))
        assert "needs GPUs, none is free" in model(client).shortage
        rig.eventually(lambda: list(states(client)) == ["m-0"], "it is given up")
        rig.hosts["h1"].refuses = False
        rig.eventually(lambda: model(client).instances_ready == 2, "it is tried again")
    assert events(rig, "instance.given_up")


@pytest.mark.slow
def test_a_paused_model_is_not_scaled(rig) -> None:
    rig.add("h1")
    with rig.up(settings(rig)) as client:
        rig.reaches(client, ClusterState.READY)
        client.steer("pause", user="ann")
        give(rig, "m-0", FULL)
        time.sleep(1.5)
        assert list(states(client)) == ["m-0"]
        client.steer("resume", user="ann")
        rig.eventually(lambda: model(client).instances_ready == 2, "two")


@pytest.mark.slow
def test_a_restart_is_no_reason_to_start_another(rig) -> None:
    rig.add("h1")
    with rig.up(settings(rig)) as client:
        rig.reaches(client, ClusterState.READY)
        client.restart_instance("m-0", user="ann", deadline_s=5)
        rig.eventually(lambda: client.instance("m-0").restarts == 1, "it starts again")
        rig.reaches(client, ClusterState.READY)
    assert events(rig, "instance.added") == []


@pytest.mark.slow
def test_the_last_device_goes_to_whom_weight_gives_it(rig) -> None:
    rig.add("h1", num_gpus=3)
    light = scaled(rig, "m", engine="vllm")
    heavy = scaled(rig, "n", engine="vllm", scaling={"weight": 2})
    with rig.up(rig.settings(models=[light, heavy])) as client:
        rig.reaches(client, ClusterState.READY)
        client.steer("pause", user="ann")
        give(rig, "m-0", FULL)
        give(rig, "n-0", FULL)
        rig.eventually(
            lambda: all(each.load and each.load.blocks_used for each in client.status().instances),
            "both are full",
        )
        client.steer("resume", user="ann")  # both want one more at the same moment
        rig.eventually(lambda: states(client).get("n-1") is InstanceState.READY, "it is added")
        assert list(states(client)) == ["m-0", "n-0", "n-1"]
        assert model(client).shortage.startswith("needs 1 free GPU(s)")
