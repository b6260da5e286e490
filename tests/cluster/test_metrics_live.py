"""The page of a head that drives: what happens shows, and what leaves does not stay."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llx.api import ClusterState
from llx.client import Cluster
from tests.cluster.hosts_rig import HostsRig, make_rig, put

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def values(client: Cluster) -> dict[str, float]:
    rows = (each.rpartition(" ") for each in client.metrics().splitlines() if each[:1] != "#")
    return {key: float(value) for key, _, value in rows}


def test_a_cluster_and_what_becomes_of_it(rig: HostsRig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        up = 'llx:instance_up{host="h2",instance="m-1",model="m"}'
        rig.eventually(lambda: values(client)[up] == 1, "the head hears of its load")
        found = values(client)
        assert found['llx:instances{model="m",state="ready"}'] == 2
        assert found['llx:gateways{state="ready"}'] == 2
        assert found['llx:events_total{kind="head.started"}'] == 1
        assert found["llx:term"] == 1
        assert httpx.get(f"{client.url}/metrics").status_code == 401

        put(client, rig.settings(models=[rig.model("m", 1)]))
        rig.eventually(lambda: "m-1" not in str(values(client).keys()), "m-1 leaves the page")
        assert values(client)['llx:instances{model="m",state="ready"}'] == 1
        assert values(client)['llx:events_total{kind="settings.changed"}'] == 1
    rig.end_head()
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        found = values(client)
        assert (found["llx:term"], found['llx:events_total{kind="head.started"}']) == (2, 1)
