"""Metrics of the running cluster: all that the dashboard uses, and none that nobody documents."""

import asyncio
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboard import DOCS, missing

pytestmark = [pytest.mark.e2e, pytest.mark.node]

LONG = {"model": "oracle", "prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}


def page_of(cluster, name):
    done = cluster.llx("metrics", name)
    assert done.returncode == 0, done.stderr
    return list(text_string_to_metric_families(done.stdout))


async def traffic(cluster):
    """Some of everything: both models, a stream that moves."""
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        for model in ("oracle", "simulated", "oracle"):
            body = {"model": model, "prompt": "hello", "max_tokens": 8}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        async with http.stream("POST", "/v1/completions", json=LONG) as answer:
            here = answer.headers["x-llx-instance"]
            there = {"oracle-0": "oracle-1", "oracle-1": "oracle-0"}[here]
            lines = answer.aiter_lines()
            await anext(lines)
            moved = await asyncio.to_thread(
                cluster.llx, "migrate", "--from", here, "--to", there, "--all", "--wait"
            )
            assert moved.returncode == 0, moved.stderr


def test_all_that_the_dashboard_uses_is_there_and_all_that_is_there_is_documented(cluster):
    asyncio.run(traffic(cluster))
    families = [*page_of(cluster, "head"), *page_of(cluster, "gateway-0")]
    there = {}
    for family in families:
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    assert missing(there) == []
    documented = set(re.findall(r"^\| `(llx:\w+)` \|", DOCS.read_text(), flags=re.MULTILINE))
    ours = {each.name for each in families if each.name.startswith("llx:")}
    assert ours - documented == set()


def test_what_was_done_is_counted(cluster):
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in page_of(cluster, "head")
        for sample in family.samples
    }
    assert values["llx:cluster_state", "ready"] == 1
    assert values["llx:instances", "oracle", "ready"] == 2
    assert values["llx:migrations_total", "moved", "request"] >= 1
    assert values["llx:migration_downtime_seconds_count",] >= 1
    assert values["llx:migration_bytes_sum",] > 0
    placed = sum(
        value for key, value in values.items()
        if key[0] == "llx:decisions_total" and "placed" in key
    )  # fmt: skip
    waits = sum(
        value for key, value in values.items() if key[0] == "llx:placement_wait_seconds_count"
    )
    assert placed == waits >= 4
