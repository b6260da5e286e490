"""The instances of a model replaced under load, on real vLLM: no stream fails, no token differs.

On the cluster of the directory, whose instances have other names afterwards: this file is the last.
"""

import httpx
import pytest

from tests.e2e.rig import Cluster
from tests.e2e.rollout_load import Load, roll_out

pytestmark = [pytest.mark.e2e, pytest.mark.node]


async def test_an_engine_argument_changes_and_no_stream_notices(cluster: Cluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=240) as http:
        load = Load(http, [f"part {number}" for number in range(8)])
        await load.learn()
        before = {each["name"]: each["pid"] for each in instances(cluster)}
        async with load.running():
            found = await roll_out(cluster, "--set", "max_num_seqs=30")
        assert (load.failed, load.wrong) == ([], [])
        assert load.streams > len(load.prompts), "there was no load"
        assert (found["state"], found["is_apart"], found["cut"]) == ("done", False, 0)
        assert found["moved"] > 0, found
        after = {each["name"]: each["pid"] for each in instances(cluster)}
        assert len(after) == len(before)
        assert not set(after.values()) & set(before.values()), "all were replaced"


def instances(cluster: Cluster) -> list[dict]:
    found = cluster.llx.json("status")["instances"]
    return [each for each in found if each["model"] == "oracle"]
