"""Requests that begin alike go to the instance that has that beginning cached; real vLLM."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llx.api import PolicyUpdate
from llx.client import Cluster as Head
from tests.e2e.rig import Cluster, cluster_up

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SHARED = 640
"""Tokens of the beginning."""
ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 1000,
    "enforce_eager": True,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two instances with prefix caches."""
    model = {
        "name": "p", "model": "llx/tiny", "instances": {"min": 2}, "engine_args": ENGINE_ARGS,
    }  # fmt: skip
    settings = {
        "models": [model],
        "runtime": {"platform": "cpu", "cpu_threads": 1},
    }
    with cluster_up(tmp_path_factory.mktemp("prefixes"), settings) as cluster:
        yield cluster


class Client:
    """Asks, and looks up why a request went where it went."""

    def __init__(self, cluster: Cluster, http: httpx.AsyncClient) -> None:
        self.cluster = cluster
        self.http = http
        self._draw = random.Random(7)

    def tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(20, 400) for _ in range(count)]

    async def ask(self, prompt: list[int]) -> tuple[str, str]:
        """Returns the instance and the reasons of the first decision that placed it."""
        body = {"model": "p", "prompt": prompt, "max_tokens": 2, "temperature": 0}
        answer = await self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        name = answer.headers["x-llx-request-id"]
        [found] = (await self.head(lambda head: head.explain(name))).requests
        placed = next(each for each in found.decisions if each.what == "placed")
        return placed.instance, placed.why

    async def head(self, ask: Any) -> Any:
        def look() -> Any:
            with Head.for_cluster(self.cluster.directory) as head:
                return ask(head)

        return await asyncio.to_thread(look)

    async def cordon(self, instance: str, *, is_on: bool) -> None:
        """Until gateway and scheduler know: of two requests at once one goes there, or none."""
        await self.head(lambda head: head.cordon_instance(instance, is_on=is_on))
        async with asyncio.timeout(60):
            while True:
                found = await asyncio.gather(*(self.ask(self.tokens(8)) for _ in range(2)))
                if (instance in {name for name, _ in found}) != is_on:
                    break


@pytest.fixture
async def client(pair: Cluster):
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=pair.url, timeout=120, limits=limits) as http:
        yield Client(pair, http)


async def test_what_begins_alike_goes_to_who_has_it_until_too_much_waits_there(
    client: Client,
) -> None:
    shared = client.tokens(SHARED)
    await client.cordon("p-0", is_on=True)
    instance, why = await client.ask([*shared, *client.tokens(40)])
    assert (instance, "cached" in why) == ("p-1", False), why
    update = PolicyUpdate(model="p", changes={"dispatch": "prefix_aware"})
    await client.head(lambda head: head.update_policies(update))
    async with asyncio.timeout(30):
        while True:  # until gateway and scheduler have heard of it, and of what p-1 has
            probe = client.tokens(100)
            await client.ask(probe)
            await asyncio.sleep(0.3)
            if "cached tokens 96" in (await client.ask(probe))[1]:
                break
    await client.cordon("p-0", is_on=False)
    _, why = await client.ask(client.tokens(300))
    assert "cached" not in why
    for _ in range(6):
        instance, why = await client.ask([*shared, *client.tokens(40)])
        assert (instance, f"cached tokens {SHARED}" in why) == ("p-1", True), why
    crowd = [client.ask([*shared, *client.tokens(900)]) for _ in range(16)]
    found = await asyncio.gather(*crowd)
    assert {instance for instance, _ in found} == {"p-0", "p-1"}, "one alone would be slower"
    assert any("cached" not in why for instance, why in found if instance == "p-0")
