"""A cluster over fake hosts whose control API is to be bothered, one for all of these tests."""

import pytest

from llx.api import ClusterState
from tests.cluster.hosts_rig import HostsRig, make_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    yield from make_rig(tmp_path_factory.mktemp("fuzzed"))


@pytest.fixture(scope="module")
def control(rig: HostsRig):
    """The client of a whole cluster's control API; at the end the cluster must be whole still."""
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        yield client
        assert client.status().cluster == "c"
