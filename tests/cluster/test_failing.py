"""Units that fail while their hosts do, or whose hosts fall silent while they wait."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, HostState, InstanceState
from llx.cluster.placement_file import PlacedUnit, load_placements, save_placements
from tests.cluster.hosts_rig import HostsRig, host_state, make_rig

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def test_what_ends_while_its_agent_is_away_has_failed_and_waits(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        for pause in ("1 s", "2 s"):
            rig.hosts["h2"].line = "cut"
            rig.eventually(lambda: host_state(client, "h2") is HostState.AGENT_AWAY, "it is away")
            os.kill(rig.hosts["h2"].pid("m-1"), signal.SIGKILL)
            rig.eventually(
                lambda: client.instance("m-1").state is InstanceState.LOST, "it is not heard of"
            )
            rig.hosts["h2"].line = "up"
            expected = f"restarts in {pause}; last: killed by SIGKILL, while its host was away"
            rig.eventually(
                lambda expected=expected: client.instance("m-1").detail == expected,
                lambda: client.instance("m-1").detail,
            )
            rig.reaches(client, ClusterState.READY)


def test_a_start_that_its_agent_falls_silent_of_is_repeated_after_a_pause(rig) -> None:
    rig.add("h1", "h2")
    rig.hosts["h2"].dies_of = "m-1"
    with rig.up(rig.settings()) as client:
        for pause in ("1 s", "2 s", "4 s"):
            rig.eventually(lambda: rig.hosts["h2"].line == "cut", "its agent dies of it")
            rig.hosts["h2"].line = "up"
            expected = f"restarts in {pause}; last: it did not come up: h2: its agent is gone"
            rig.eventually(
                lambda expected=expected: client.instance("m-1").detail.startswith(expected),
                lambda: client.instance("m-1").detail,
            )
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
    known.instances["m-2"] = PlacedUnit("h3", [], past.spec, 4, "killed by SIGKILL", True)
    save_placements(rig.state.placements, known)
    with rig.up() as client:
        rig.eventually(lambda: "restarts in " in client.instance("m-2").detail, "it waits")
        rig.hosts["h3"].line = "cut"
        rig.eventually(lambda: client.instance("m-2").state is InstanceState.LOST, "m-2 is lost")
        assert client.instance("m-2").detail == "h3 is lost; last: killed by SIGKILL"
        rig.hosts["h3"].line = "up"
        status = rig.reaches(client, ClusterState.READY)
        assert (status.instances[2].host, status.instances[2].restarts) == ("h3", 1)
