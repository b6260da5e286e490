"""A model scaled by its load, over simulated engines: no stream feels it, nor a head's death."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from llx.api import InstanceState
from llx.bench.run_directory import read_results
from llx.client import Cluster as Head
from llx.specs import ProcessStatus, load_spec
from tests.e2e.rig import Cluster, cluster_up
from tests.e2e.test_scheduling import Client

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SLOTS = 3
"""Requests that an instance runs together."""

LASTING = 3800
"""Tokens of a stream that outlasts all that happens here: 150 s."""


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One simulated instance, or two; a move between them takes seconds."""
    scaling = {"low": 20, "high": 60, "sustain_s": 1, "cooldown_s": 2}
    model = {
        "name": "m",
        "model": "llx/tiny",
        "engine": "sim",
        "instances": {"min": 1, "max": 2},
        "engine_args": {"max_model_len": 4096},
        "sim": {"step_base_ms": 40.0, "num_blocks": 256, "max_num_seqs": SLOTS},
        "scheduling": {"scaling": scaling, "rescheduling": {"steps": []}},
    }
    settings = {
        "models": [model],
        "migration": {"bandwidth_mib_s": 0.04},
        "runtime": {"platform": "cpu"},
    }
    with cluster_up(tmp_path_factory.mktemp("scaled"), settings) as cluster:
        yield cluster


async def kill_head_and_go_on(cluster: Cluster) -> None:
    status = load_spec(cluster.directory / "procs/head/status.json", ProcessStatus)
    os.kill(status.pid, signal.SIGKILL)
    done = await asyncio.to_thread(cluster.llx, "up", "-y", str(cluster.config), timeout_s=600)
    assert done.returncode == 0, done.stderr


def running(head: Head) -> dict[str, int]:
    return {
        each.name: 0 if each.load is None else each.load.running
        for each in head.status().instances
        if each.state is InstanceState.READY
    }


def draining(head: Head) -> list[str]:
    instances = head.status().instances
    return [each.name for each in instances if each.state is InstanceState.DRAINING]


async def test_load_brings_an_instance_and_takes_it_again_under_three_heads(
    scaled: Cluster,
) -> None:
    async with httpx.AsyncClient(base_url=scaled.url, timeout=240) as http:
        client = Client(scaled, http)
        assert list(await client.head(running)) == ["m-0"]
        # Two of them wait, until a second instance is there; then one on each lasts.
        lengths = [300, LASTING, 300, LASTING, 700]
        come = [0] * len(lengths)
        streams = []
        for number, each in enumerate(lengths):
            if number == SLOTS:
                await client.until(lambda head: running(head) == {"m-0": SLOTS})
            stream = client.stream(each, count=partial(come.__setitem__, number))
            streams.append(asyncio.create_task(stream))
        both = {"m-0": SLOTS, "m-1": len(lengths) - SLOTS}
        await client.until(lambda head: running(head) == both)
        [added] = events(scaled, "instance.added")
        assert (added["name"], "a queue stays" in added["why"]) == ("m-1", True)
        await client.head(lambda head: head.steer("pause"))
        await kill_head_and_go_on(scaled)
        model = (await client.head(lambda head: head.status())).models[0]
        assert model.instances_wanted == 2
        await client.until(lambda head: sum(running(head).values()) == lengths.count(LASTING))
        await client.head(lambda head: head.steer("resume"))
        [surplus] = await client.until(draining)
        # What is begun goes on when nothing more is: the first token of `llx up` may have to wait.
        await client.head(lambda head: head.steer("pause"))
        await kill_head_and_go_on(scaled)
        await client.until(lambda head: len(head.status().instances) == 1)
        [stays] = await client.head(lambda head: [i.name for i in head.status().instances])
        assert stays != surplus
        log = (scaled.directory / "procs" / stays / "log").read_text()
        assert "migration.arrived" in log, "its request has moved"
        # The last ones' clients leave when more has come from where both are now.
        before = list(come)
        last = [number for number, each in enumerate(lengths) if each == LASTING]
        async with asyncio.timeout(60):
            while any(come[each] < before[each] + SLOTS for each in last):
                await asyncio.sleep(0.1)
        ended = [await each for each in streams if each.done()]
        assert ended == [each for each in lengths if each != LASTING]
        for each in last:
            streams[each].cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        [gateway] = (await client.head(lambda head: head.status())).gateways
        assert gateway.failed == 0
        await client.head(lambda head: head.steer("resume"))
    assert events(scaled, "process.removed") == []
    assert [each["name"] for each in events(scaled, "instance.surplus")] == [surplus]


def test_a_benchmark_has_as_many_instances_as_its_variants_say(scaled: Cluster) -> None:
    scenario = {
        "name": "scaled",
        "workload": {
            "requests": 20,
            "arrivals": {
                "rate": 2,
                "phases": [{"share": 0.5, "for_s": 2}, {"share": 1, "for_s": 8}],
            },
            "lengths": {"prompt": 20, "output": 60},
        },
        "variants": [
            {"name": "two", "instances": 2},
            {"name": "one", "instances": 1},
            {"name": "grows", "instances": {"min": 1, "max": 2}},
        ],
    }
    path, out = scaled.config.parent / "scaled.yaml", scaled.config.parent / "out"
    path.write_text(json.dumps(scenario))
    done = scaled.llx("bench", "run", str(path), "--out", str(out), timeout_s=600)
    assert done.returncode == 0, done.stderr
    runs = {each.summary["llx_variant"]: each for each in read_results(out).runs}
    assert {name: each.figure("completed") for name, each in runs.items()} == dict.fromkeys(
        runs, 20
    )
    counts = {name: each.figure("llx_instances") for name, each in runs.items()}
    assert (counts["two"], counts["one"]) == pytest.approx((2, 1))
    assert 1 < counts["grows"] < 2
    with Head.for_cluster(scaled.directory) as head:
        [model] = head.status().models
    assert (model.instances_min, model.instances_max) == (1, 2)


def events(cluster: Cluster, kind: str) -> list[dict[str, str]]:
    text = (cluster.directory / "events.jsonl").read_text()
    lines = [json.loads(each) for each in text.splitlines()]
    return [each for each in lines if each["kind"] == kind]
