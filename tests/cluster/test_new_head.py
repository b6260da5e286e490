"""What a head leaves to the next one, over several hosts: what is being retired, who has failed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, HostState, InstanceState
from llx.client import Cluster
from llx.cluster.placement_file import PlacedUnit, load_placements, save_placements
from tests.cluster.hosts_rig import HostsRig, events, host_state, is_busy, make_rig, put

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def test_an_instance_that_is_being_retired_finishes_under_the_next_head(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        busy = rig.hosts["h2"].state.procs / "m-1" / "busy"
        busy.touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
        put(client, rig.settings(models=[rig.model("m", 1)]))
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
    rig.end_head()
    with rig.up() as client:
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
        rig.eventually(lambda: client.instance("m-1").load is not None, "it is heard of")
        time.sleep(0.5)
        assert "m-1" in rig.hosts["h2"].alive()
        busy.unlink()
        rig.eventually(lambda: len(client.status().instances) == 1, "it is gone")
        assert rig.hosts["h2"].alive() == {"gateway-1"}
        assert rig.hosts["h2"].agent.ledger.held() == {}
        log = rig.hosts["h1"].log("gateway-0").partition("members term=2")[2]
        assert log.startswith(" m-0,m-1\ncordoned: m-1"), "its streams are not taken from it"
    assert events(rig, "process.removed") == []


def test_what_new_settings_leave_out_is_retired_by_a_new_head(rig) -> None:
    """As when the head falls between writing the settings down and beginning to act on them."""
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        busy = rig.hosts["h2"].state.procs / "m-1" / "busy"
        busy.touch()
        rig.eventually(lambda: is_busy(client, "m-1"), "it is busy")
    rig.end_head()
    with rig.up(rig.settings(models=[rig.model("m", 1)])) as client:
        rig.eventually(lambda: client.instance("m-1").state is InstanceState.DRAINING, "it drains")
        time.sleep(0.5)
        assert "m-1" in rig.hosts["h2"].alive()
        busy.unlink()
        rig.eventually(lambda: len(client.status().instances) == 1, "it is gone")


def test_a_gateway_that_is_being_retired_finishes_under_the_next_head(rig) -> None:
    rig.add("h1", "h2")
    busy = [rig.model("m", 2, serve_args={"in_flight": 3, "finish_s": 600})]
    with rig.up(rig.settings(models=busy)) as client:
        rig.reaches(client, ClusterState.READY)
        put(client, rig.settings(models=busy, gateway={"host": "0.0.0.0", "count": 1}))
        rig.eventually(
            lambda: client.status().gateways[1].state is InstanceState.DRAINING, "it drains"
        )
    rig.end_head()
    with rig.up() as client:
        rig.eventually(
            lambda: client.status().gateways[1].state is InstanceState.DRAINING, "it drains"
        )
        assert rig.hosts["h2"].alive() == {"gateway-1", "m-1"}
        (rig.hosts["h2"].state.procs / "gateway-1" / "finish").touch()
        rig.eventually(lambda: len(client.status().gateways) == 1, "it is gone")
    assert events(rig, "process.removed") == []
    (retired,) = [each for each in events(rig, "gateway.removed") if each["name"] == "gateway-1"]
    assert retired["host"] == "h2"


def pause_s(client: Cluster, name: str) -> int:
    """Seconds that are left of a killed instance's pause, which counts down; 0: it has none."""
    detail = client.instance(name).detail
    found = re.fullmatch(r"restarts in (\d+) s; last: killed by SIGKILL", detail)
    return int(found[1]) if found else 0


def test_failures_are_remembered_and_so_is_the_pause(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        os.kill(rig.hosts["h2"].pid("m-1"), signal.SIGKILL)
        rig.eventually(
            lambda: load_placements(rig.state.placements).instances["m-1"].failures == 1, "kept"
        )
    rig.end_head()
    if "m-1" in rig.hosts["h2"].alive():  # that pause is over already
        os.kill(rig.hosts["h2"].pid("m-1"), signal.SIGKILL)
        rig.eventually(lambda: "m-1" not in rig.hosts["h2"].alive(), "it is gone")
    known = load_placements(rig.state.placements)
    past = known.instances["m-1"]
    assert (past.failures, past.last_failure, past.was_ready) == (1, "killed by SIGKILL", True)
    known.instances["m-1"] = PlacedUnit(past.host, [], past.spec, 4, "killed by SIGKILL", True)
    save_placements(rig.state.placements, known)
    with rig.up() as client:
        rig.eventually(lambda: 2 <= pause_s(client, "m-1") <= 8, "the pause comes first")
        assert client.instance("m-1").last_failure == "killed by SIGKILL"
        rig.eventually(lambda: "m-1" in rig.hosts["h2"].alive(), "it is started")
        # It has been ready before: one more end is not the last.
        os.kill(rig.hosts["h2"].pid("m-1"), signal.SIGKILL)
        rig.eventually(lambda: 9 <= pause_s(client, "m-1") <= 16, "it waits for longer")


def test_a_gateway_stays_where_an_agent_of_another_release_is_until_its_host_is_lost(rig) -> None:
    """No head hears of it yet, and such an agent cannot give it away; yet there it serves."""
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 1)])) as client:
        rig.reaches(client, ClusterState.READY)
        assert rig.where(client)["gateway-1"] == "h2"
    rig.end_head()
    pid = rig.hosts["h2"].pid("gateway-1")
    os.kill(pid, signal.SIGSTOP)
    rig.hosts["h2"].release = "0.0.9"
    with rig.up() as client:
        rig.eventually(lambda: host_state(client, "h2") is HostState.FAILED, "it cannot be used")
        rig.eventually(lambda: client.status().gateways[0].state is InstanceState.READY, "h1's is")
        time.sleep(1.5)  # some rounds of the driver
        assert rig.where(client)["gateway-1"] == "h2"
        assert "gateway-1" not in rig.hosts["h3"].alive(), "there would be two"
        assert events(rig, "gateway.placed")[2:] == []

        rig.hosts["h2"].off()
        rig.eventually(lambda: host_state(client, "h2") is HostState.LOST, "it is lost")
        rig.eventually(lambda: "gateway-1" in rig.hosts["h3"].alive(), "it starts elsewhere")
