"""Units that fail while their hosts do, or whose hosts fall silent while they wait."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, HostState, InstanceState
from llx.cluster.placement_file import PlacedUnit, load_placements, save_placements
from tests.cluster.hosts_rig import HostsRig, events, host_state, make_rig

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def failures(rig: HostsRig) -> list[tuple[int, str]]:
    """Of m-1, each with how many there were by then, which sets the pause. Details pass by."""
    found = [each for each in events(rig, "instance.failed") if each["name"] == "m-1"]
    return [(each["failures"], each["reason"]) for each in found]


def test_what_ends_while_its_agent_is_away_has_failed_and_waits(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        for times in (1, 2):
            rig.hosts["h2"].line = "cut"
            rig.eventually(lambda: host_state(client, "h2") is HostState.AGENT_AWAY, "it is away")
            os.kill(rig.hosts["h2"].pid("m-1"), signal.SIGKILL)
            rig.eventually(
                lambda: client.instance("m-1").state is InstanceState.LOST, "it is not heard of"
            )
            rig.hosts["h2"].line = "up"
            rig.eventually(lambda times=times: len(failures(rig)) == times, "it has failed")
            assert failures(rig)[-1] == (times, "killed by SIGKILL, while its host was away")
            rig.reaches(client, ClusterState.READY)


def test_a_start_that_its_agent_falls_silent_of_is_repeated_after_a_pause(rig) -> None:
    rig.add("h1", "h2")
    rig.hosts["h2"].dies_of = "m-1"
    with rig.up(rig.settings()) as client:
        for times in (1, 2, 3):
            rig.eventually(lambda: rig.hosts["h2"].line == "cut", "its agent dies of it")
            rig.hosts["h2"].line = "up"
            rig.eventually(lambda times=times: len(failures(rig)) == times, "it has failed")
            count, reason = failures(rig)[-1]
            assert count == times
            assert reason.startswith("it did not come up: h2: its agent is gone")
        rig.hosts["h2"].dies_of = ""
        rig.reaches(client, ClusterState.READY)


def test_what_waits_on_a_host_that_is_lost_is_lost_until_that_is_back(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
    rig.end_head()
    os.kill(rig.hosts["h3"].pid("m-2"), signal.SIGKILL)
    known = load_placements(rig.state.placements)
    past = known.instances["m-2"]
    known.instances["m-2"] = PlacedUnit("h3", [], past.spec, 5, "killed by SIGKILL", True)
    save_placements(rig.state.placements, known)
    with rig.up() as client:
        rig.eventually(lambda: "restarts in " in client.instance("m-2").detail, "it waits")
        rig.hosts["h3"].line = "cut"
        rig.eventually(lambda: client.instance("m-2").state is InstanceState.LOST, "m-2 is lost")
        assert client.instance("m-2").detail == "h3 is lost; last: killed by SIGKILL"
        rig.hosts["h3"].line = "up"
        status = rig.reaches(client, ClusterState.READY)
        assert (status.instances[2].host, status.instances[2].restarts) == ("h3", 1)
