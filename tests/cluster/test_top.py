"""`llx top` over a real head with fake instances: moved by keys, and a head that falls."""

import asyncio
import json
import os
import signal

import pytest

from llx.client import Cluster
from llx.top.app import TopApp
from tests.cluster.test_moves import idle, is_busy, request, up
from tests.top.driving import screen_text, shown


def client_of(rig):
    """Without patience: the screen itself tries again."""
    return Cluster.for_cluster(rig.state.path)


@pytest.mark.slow
async def test_a_request_is_moved_by_keys_and_the_next_head_is_found(rig):
    with up(rig, idle()) as client:
        rig.give("m-0", request(1, arrival=9.0), request(2), request(3, state="waiting"))
        rig.eventually(lambda: is_busy(client, "m-0", 3), "they are reported")
    app = TopApp(lambda: client_of(rig), interval_s=0.2, user="ann")
    async with app.run_test(size=(120, 40)) as pilot:
        assert "llx-1" in await shown(pilot, "requests 3")
        await pilot.press("2", "m")
        await shown(pilot, "Where to?")
        await pilot.press("enter")
        await shown(pilot, "from m-0 to m-1?")
        await pilot.press("y")
        text = await shown(pilot, "moved ")
        assert "m-0 → m-1" in text
        moved = next(line.split()[1] for line in text.splitlines() if "m-0 → m-1" in line)

        head = json.loads((rig.state.head / "shim.json").read_text())
        os.kill(head["child_pid"], signal.SIGKILL)
        text = await shown(pilot, "reconnecting")
        assert moved in text, "the last picture stays"
        await asyncio.to_thread(rig.launch)
        await shown(pilot, "term 2")
        await shown(pilot, "live")
        assert "reconnecting" not in screen_text(app)
    kinds = [json.loads(line) for line in rig.state.events.read_text().splitlines()]
    assert [each["user"] for each in kinds if each["kind"] == "migration.ordered"] == ["ann"]


@pytest.mark.slow
def test_filters_and_snapshots_of_a_real_head(rig):
    with up(rig) as client:
        rig.give("m-0", *(request(number) for number in (1, 2, 3)))
        rig.give("m-1", request(4, priority=20))
        rig.eventually(lambda: is_busy(client, "m-0", 3), "they are reported")
        rig.eventually(lambda: is_busy(client, "m-1", 1), "it is reported")

        def names(**wanted):
            found = client.requests(**wanted)
            return [each.name for each in found.requests], found.num_found

        assert names(limit=2, offset=1) == (["llx-2", "llx-3"], 4)
        assert names(instance="m-1") == (["llx-4"], 1)
        assert names(priority_class="batch") == (["llx-4"], 1)
        assert client.request("c2").requests[0].name == "llx-2"
        found = client.snapshot(max_requests=1, max_over=10, match="m-0")
        assert [each.name for each in found.requests.requests] == ["llx-1"]
        assert found.requests.num_found == 3
        assert found.status.cluster == "c"
        assert found.migrations == []
