"""`llx scale`, at the head: a fixed number, a range, what is impossible; it is kept."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, InstanceState, ScaleRequest
from llx.client import Cluster
from llx.cluster.placement_file import load_placements
from llx.errors import ConfigError, ConflictError, NotFoundError
from tests.cluster.hosts_rig import HostsRig, events, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def scale(
    client: Cluster, least: int | None, most: int | None, *, is_dry_run: bool = False
) -> list[str]:
    request = ScaleRequest(min=least, max=most, is_dry_run=is_dry_run, user="ann")
    return client.scale("m", request).changes


def names(client: Cluster) -> list[str]:
    return [each.name for each in client.status().instances]


def test_a_number_a_range_and_a_new_head(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        plan = scale(client, 3, 3, is_dry_run=True)
        assert plan == ["model m: 2 → 3 instances", "m-2 is started"]
        assert (names(client), events(rig, "model.scaled")) == (["m-0", "m-1"], [])
        assert scale(client, 3, 3) == plan
        rig.eventually(lambda: client.status().models[0].instances_ready == 3, "three")
        assert scale(client, 3, 3) == []
        assert scale(client, 1, 4) == ["model m: 3 → 1 to 4 instances"]
        model = client.status().models[0]
        assert (model.instances_min, model.instances_max, model.instances_wanted) == (1, 4, 3)
        (first, second) = events(rig, "model.scaled")
        assert (first["user"], first["model"]) == ("ann", "m")
        assert second["changes"] == "model m: 3 → 1 to 4 instances"
    rig.end_head()
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        model = client.status().models[0]
        assert (model.instances_min, model.instances_max, model.instances_wanted) == (1, 4, 3)
        assert scale(client, 1, 1) == [
            "model m: 1 to 4 → 1 instances",
            "m-1 is emptied and ended",
            "m-2 is emptied and ended",
        ]
        rig.eventually(lambda: names(client) == ["m-0"], "one")
    assert events(rig, "process.removed") == []


def end_first(rig: HostsRig, client: Cluster) -> None:
    """m-0 ends, and no host takes it again; m-1 serves."""
    rig.reaches(client, ClusterState.READY)
    for host in rig.hosts.values():
        host.refuses = True
    os.kill(rig.hosts[rig.where(client)["m-0"]].pid("m-0"), signal.SIGKILL)
    rig.eventually(lambda: client.instance("m-0").state is InstanceState.FAILED, "it has failed")


@pytest.mark.slow
def test_whoever_serves_is_kept_before_whoever_has_failed(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        end_first(rig, client)
        pid = rig.hosts[rig.where(client)["m-1"]].pid("m-1")
        assert scale(client, 1, 1) == ["model m: 2 → 1 instances", "m-0 is emptied and ended"]
        rig.eventually(lambda: names(client) == ["m-1"], "one")
        assert rig.reaches(client, ClusterState.READY).instances[0].pid == pid


@pytest.mark.slow
def test_a_new_head_with_a_smaller_range_keeps_whoever_serves(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        end_first(rig, client)
        rig.eventually(
            lambda: load_placements(rig.state.placements).wanted == ["m-1", "m-0"], "it is kept"
        )
        pid = rig.hosts[rig.where(client)["m-1"]].pid("m-1")
    rig.end_head()
    with rig.up(rig.settings(models=[rig.model("m", 1)])) as client:
        rig.eventually(lambda: names(client) == ["m-1"], "one")
        assert rig.reaches(client, ClusterState.READY).instances[0].pid == pid


@pytest.mark.slow
def test_what_is_impossible_is_refused_and_changes_nothing(rig) -> None:
    rig.add("h1", num_gpus=2)
    with rig.up(rig.settings(models=[rig.model("m", 1, engine="vllm")])) as client:
        rig.reaches(client, ClusterState.READY)
        with pytest.raises(ConflictError, match="m: no room for 2 more: needs 1 free GPU"):
            scale(client, 3, 3)
        with pytest.raises(ConfigError, match=r"max \(2\) is below min \(3\)"):
            scale(client, 3, 2)
        with pytest.raises(ConfigError, match="below min"):
            scale(client, 3, None)
        with pytest.raises(ConfigError, match="greater than or equal to 1"):
            scale(client, 0, 0)
        with pytest.raises(NotFoundError, match='no model "mm"; did you mean "m"'):
            client.scale("mm", ScaleRequest(min=1, max=1))
        assert scale(client, 1, 2) == ["model m: 1 → 1 to 2 instances"]
        assert scale(client, 2, None) == ["model m: 1 to 2 → 2 instances", "m-1 is started"]
        rig.eventually(lambda: client.status().models[0].instances_ready == 2, "two")
