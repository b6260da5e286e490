"""The scheduler at work over simulated engines: queues, classes, moves, and its death."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from llx.api import MigrateRequest, PolicyUpdate, RequestChange, RequestStatus, RequestVerb
from llx.client import Cluster as Head
from llx.specs import ProcessStatus, load_spec
from tests.e2e.rig import Cluster, cluster_up

pytestmark = [pytest.mark.e2e, pytest.mark.node]

ROOM = 4
"""Requests that both instances run together."""
BATCH_LIMIT = 6
LONG = 1600
"""Tokens of a request that lasts: 32 s."""


@pytest.fixture(scope="module")
def sims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two simulated instances that run two requests each, and move them readily."""
    model = {
        "name": "m",
        "model": "llx/tiny",
        "engine": "sim",
        "instances": {"min": 2},
        "engine_args": {"max_model_len": 2048},
        "sim": {"step_base_ms": 20.0, "num_blocks": 192, "max_num_seqs": 2},
        "scheduling": {"rescheduling": {"low": 50, "high": 100}},
    }
    classes = [
        {"name": "interactive", "priority": 0},
        {"name": "normal", "priority": 10, "default": True},
        {"name": "batch", "priority": 20, "queue_limit": BATCH_LIMIT},
    ]
    settings = {
        "models": [model],
        "priority_classes": classes,
        "runtime": {"platform": "cpu"},
    }
    with cluster_up(tmp_path_factory.mktemp("sims"), settings) as cluster:
        yield cluster


class Client:
    """A client of the gateway, and the operator's look at the head."""

    def __init__(self, cluster: Cluster, http: httpx.AsyncClient, model: str = "m") -> None:
        self.cluster = cluster
        self.model = model
        self.http = http

    def body(self, tokens: int, prompt: str | list[int]) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True,
            "temperature": 0,
        }  # fmt: skip

    async def ask(
        self, tokens: int, cls: str = "normal", prompt: str | list[int] = "x"
    ) -> httpx.Response:
        headers = {"x-llx-priority": cls}
        return await self.http.post(
            "/v1/completions", json=self.body(tokens, prompt), headers=headers
        )

    async def placed(self, tokens: int, cls: str) -> float:
        """When a request of that class, which is done by now, was placed."""
        answer = await self.ask(tokens, cls)
        assert answer.status_code == 200
        name = answer.headers["x-llx-request-id"]
        [found] = (await self.head(lambda head: head.explain(name))).requests
        return next(each.at for each in found.decisions if each.what == "placed")

    async def stream(
        self, tokens: int, cls: str = "normal", count: Callable[[int], None] = lambda tokens: None
    ) -> int:
        """Tokens that have come, by the last piece's word; ``count`` hears each piece's."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = self.body(tokens, "x") | {"stream": True, "stream_options": options}
        usage = 0
        async with self.http.stream(
            "POST", "/v1/completions", json=body, headers={"x-llx-priority": cls}
        ) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data.startswith("{"):
                    piece = json.loads(data)
                    assert "error" not in piece, piece
                    usage = (piece.get("usage") or {}).get("completion_tokens", usage)
                    count(usage)
        return usage

    @asynccontextmanager
    async def busy(self, count: int = ROOM):
        """So many requests that last run meanwhile; in the end their clients leave."""
        tasks = [asyncio.create_task(self.ask(LONG)) for _ in range(count)]
        try:
            await self.until(lambda head: sum(loads(head)) == count)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.until(lambda head: sum(loads(head)) == 0)

    async def head(self, ask: Any) -> Any:
        def look() -> Any:
            with Head.for_cluster(self.cluster.directory) as head:
                return ask(head)

        return await asyncio.to_thread(look)

    async def cordon(self, instance: str) -> None:
        """Until its gateway and the scheduler know: of two at once one went there before."""
        await self.head(lambda head: head.cordon_instance(instance, is_on=True))
        async with asyncio.timeout(60):
            while True:
                answers = await asyncio.gather(*(self.ask(4) for _ in range(2)))
                assert [each.status_code for each in answers] == [200, 200]
                if instance not in {each.headers["x-llx-instance"] for each in answers}:
                    break

    async def until(self, ask: Any) -> Any:
        async with asyncio.timeout(60):
            while not (found := await self.head(ask)):
                await asyncio.sleep(0.1)
        return found


def loads(head: Head) -> list[int]:
    return [each.load.running for each in head.status().instances if each.load is not None]


def waiting(head: Head) -> dict[str, int]:
    return {each.priority_class: each.waiting for each in head.queues().queues}


@pytest.fixture
async def client(sims: Cluster):
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=sims.url, timeout=120, limits=limits) as http:
        yield Client(sims, http)


async def test_what_has_no_room_waits_centrally_and_goes_in_class_order(client: Client) -> None:
    classes = ("batch", "normal", "interactive")
    async with client.busy():
        tasks = [
            asyncio.create_task(client.placed(10, cls)) for cls in classes for _ in range(ROOM)
        ]
        wanted = {"interactive": ROOM, "normal": ROOM, "batch": ROOM}
        await client.until(lambda head: waiting(head) == wanted)
        found = await client.head(lambda head: [each.load for each in head.status().instances])
        assert [each.waiting for each in found] == [0, 0], "engines have no queue of their own"
    at = await asyncio.gather(*tasks)
    batch, normal, interactive = at[:ROOM], at[ROOM:-ROOM], at[-ROOM:]
    assert max(interactive) <= min(normal)
    assert max(normal) <= min(batch)


async def test_a_full_queue_refuses_and_who_leaves_it_is_forgotten(client: Client) -> None:
    async with client.busy():
        held = [asyncio.create_task(client.ask(4, "batch")) for _ in range(BATCH_LIMIT)]
        await client.until(lambda head: waiting(head)["batch"] == BATCH_LIMIT)
        answer = await client.ask(4, "batch")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["message"] == "the queue of m is full"
        held.pop().cancel()
        await client.until(lambda head: waiting(head)["batch"] == BATCH_LIMIT - 1)
    assert {each.status_code for each in await asyncio.gather(*held)} == {200}


async def test_what_does_not_end_in_the_clients_time_is_ended_and_frees_its_place(
    client: Client,
) -> None:
    headers = {"x-llx-timeout": "5"}
    body = client.body(LONG, "x")
    async with client.busy():
        waits = await client.http.post("/v1/completions", json=body, headers=headers)
        assert waits.status_code == 504
        await client.until(lambda head: sum(waiting(head).values()) == 0)
    lines = []
    url, body = "/v1/completions", body | {"stream": True}
    async with client.http.stream("POST", url, json=body, headers=headers) as runs:
        assert runs.status_code == 200
        lines = [each async for each in runs.aiter_lines() if each]
    assert json.loads(lines[0].removeprefix("data: "))["choices"]
    message = "the request did not end within the 5 s that it was given"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["message"] == message
    assert lines[-1] == "data: [DONE]"
    await client.until(lambda head: sum(loads(head)) == 0)


async def test_a_full_instance_gives_to_an_empty_one_unless_that_is_paused(client: Client) -> None:
    async def skew(stack: AsyncExitStack) -> None:
        await client.cordon("m-1")
        await stack.enter_async_context(client.busy(2))
        assert await client.head(loads) == [2, 0]
        await client.head(lambda head: head.cordon_instance("m-1", is_on=False))

    async def moves() -> list[Any]:
        found = await client.head(lambda head: head.migrations())
        return [each for each in found if each.user == "policy"]

    before = len(await moves())
    await client.head(lambda head: head.steer("pause"))
    async with AsyncExitStack() as stack:
        await skew(stack)
        await asyncio.sleep(2)
        assert len(await moves()) == before
        await client.head(lambda head: head.steer("resume"))
        await client.until(lambda head: loads(head) == [1, 1])
    move = (await moves())[before]
    assert (move.source, move.target, move.why, move.outcome) == ("m-0", "m-1", "balance", "moved")
    [explained] = (await client.head(lambda head: head.explain(move.name))).requests
    assert [each.what for each in explained.decisions][-2:] == ["placed", "move"]
    assert "balance" in explained.decisions[-1].why


async def test_what_was_preempted_goes_on_where_its_blocks_are_free(client: Client) -> None:
    """Two that fit m-0 grow until one of them has to go; it waits there, while m-1 is empty."""
    prompt = [5] * 1400
    rules = {"steps": "[requeue]", "low": "3", "high": "40"}
    update = PolicyUpdate(
        model="m", changes={f"rescheduling.{key}": value for key, value in rules.items()}
    )

    def has_preempted(head: Head) -> bool:
        return head.instance("m-0").load.waiting == 1

    await client.cordon("m-1")
    try:
        await client.head(lambda head: head.update_policies(update))
        asked = [asyncio.create_task(client.ask(640, prompt=prompt)) for _ in range(2)]
        await client.until(has_preempted)
        await client.head(lambda head: head.cordon_instance("m-1", is_on=False))
        await client.until(lambda head: loads(head) == [1, 1])
    finally:
        await client.head(lambda head: head.cordon_instance("m-1", is_on=False))
        await client.head(lambda head: head.update_policies(PolicyUpdate(is_revert=True)))
    answers = [each.json() for each in await asyncio.gather(*asked)]
    assert [each["usage"]["completion_tokens"] for each in answers] == [640, 640]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    move = (await client.head(lambda head: head.migrations()))[-1]
    assert (move.source, move.target, move.why, move.outcome) == ("m-0", "m-1", "requeue", "moved")
    assert move.blocks_copied == 0, "what is computed anew need not be copied"


# ---------------------------------------------------------------- what operators do to requests


class Live:
    """A stream that is being read."""

    def __init__(self, client: Client, cls: str = "normal") -> None:
        self.client = client
        self.cls = cls
        self.name = ""
        self.pieces: list[Any] = []
        self.has_begun = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        body = self.client.body(LONG, "x") | {"stream": True}
        async with self.client.http.stream(
            "POST", "/v1/completions", json=body, headers={"x-llx-priority": self.cls}
        ) as answer:
            assert answer.status_code == 200
            self.name = answer.headers["x-llx-request-id"]
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    self.pieces.append(data if data == "[DONE]" else json.loads(data))
                    self.has_begun.set()

    async def begun(self) -> "Live":
        await asyncio.wait_for(self.has_begun.wait(), 60)
        return self

    async def cancelled(self) -> None:
        """It ends so, and explicitly."""
        await asyncio.wait_for(self.task, 60)
        *tokens, error, done = self.pieces
        assert tokens
        assert done == "[DONE]"
        assert error["error"] == {
            "message": "the request was cancelled by an operator", "type": "CancelledError",
            "param": None, "code": 499,
        }  # fmt: skip

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def change(client: Client, verb: RequestVerb, *ids: str, cls: str = "") -> Any:
    ask = RequestChange(ids=list(ids), priority_class=cls, user="ann")
    return await client.head(lambda head: head.change_requests(verb, ask))


async def look(client: Client, name: str) -> RequestStatus:
    return (await client.head(lambda head: head.request(name))).requests[0]


def is_empty(head: Head) -> bool:
    found = [each.load for each in head.status().instances]
    return all(each is not None and each.blocks_used == each.running == 0 for each in found)


async def test_a_stream_is_cancelled_where_it_runs_waits_or_moves(client: Client) -> None:
    streams = [await Live(client).begun() for _ in range(ROOM)]
    queued = []
    for place in (1, 2):
        queued.append(asyncio.create_task(client.ask(4, "batch")))
        await client.until(lambda head, place=place: waiting(head)["batch"] == place)
    listed = (await client.head(lambda head: head.requests(state="queued"))).requests
    assert [(each.priority_class, each.position, each.instance) for each in listed] == [
        ("batch", 1, ""), ("batch", 2, ""),
    ]  # fmt: skip
    report = await change(client, RequestVerb.CANCEL, listed[1].id)
    assert [each.state for each in report.changed] == ["queued"]
    await client.until(lambda head: waiting(head)["batch"] == 1)

    at = (await look(client, streams[0].name)).instance
    await change(client, RequestVerb.CANCEL, streams[0].name)
    await streams[0].cancelled()
    assert [each.status_code for each in await asyncio.gather(queued[0])] == [200], (
        "it had its turn"
    )
    answer = await queued[1]
    assert (answer.status_code, answer.json()["error"]["type"]) == (499, "CancelledError")
    again = await change(client, RequestVerb.CANCEL, streams[1].name, streams[0].name)
    assert [each.error for each in again.not_changed] == ["not_found"]
    await streams[1].cancelled()

    for stream in streams[2:]:
        found = await look(client, stream.name)
        ask = MigrateRequest(
            request=stream.name, target="m-1" if found.instance == "m-0" else "m-0", user="ann"
        )
        await client.head(lambda head, ask=ask: head.migrate(ask))
        assert not (await change(client, RequestVerb.CANCEL, stream.name)).not_changed
        await stream.cancelled()
    await client.until(is_empty)
    assert at in {"m-0", "m-1"}


async def test_an_answer_of_several_generations_is_cancelled_whole(client: Client) -> None:
    body = client.body(LONG, "x") | {"n": 2, "temperature": 1}
    asked = asyncio.create_task(client.http.post("/v1/completions", json=body))
    await client.until(lambda head: sum(loads(head)) == 2)
    first, second = (await client.head(lambda head: head.requests())).requests
    assert first.name == second.name
    report = await change(client, RequestVerb.CANCEL, first.id)
    assert [each.id for each in report.changed] == [first.id]
    assert (await asyncio.wait_for(asked, 10)).status_code == 499
    await client.until(is_empty)


async def test_another_class_counts_in_the_queue_at_once(client: Client) -> None:
    async with client.busy():
        tasks = [asyncio.create_task(client.placed(10, "normal")) for _ in range(ROOM)]
        await client.until(lambda head: waiting(head)["normal"] == ROOM)
        late = asyncio.create_task(client.placed(10, "batch"))
        await client.until(lambda head: waiting(head)["batch"] == 1)
        begun = time.time()
        [found] = (await client.head(lambda head: head.requests(priority_class="batch"))).requests
        report = await change(client, RequestVerb.SET_PRIORITY, found.id, cls="interactive")
        [now] = report.changed
        assert (now.priority_class, now.position, now.state) == ("interactive", 1, "queued")
        assert now.arrived_at < begun, "it keeps its age"
        passed_s = time.time() - begun
        assert now.arrived_at == pytest.approx(found.arrived_at, abs=0.5 + passed_s)
        await client.until(lambda head: waiting(head)["interactive"] == 1)
        await asyncio.sleep(2.5)  # its gateway has asked anew for it since
        assert (await client.head(waiting))["interactive"] == 1
    *at, last = await asyncio.gather(*tasks, late)
    assert last <= min(at), "the first, though it came last"


async def test_another_class_goes_where_the_request_goes(client: Client) -> None:
    """By a move, and when its instance is lost."""
    stream = await Live(client).begun()
    try:
        report = await change(client, RequestVerb.SET_PRIORITY, stream.name, cls="interactive")
        [now] = report.changed
        assert (now.priority, now.priority_class) == (0, "interactive")
        target = "m-1" if now.instance == "m-0" else "m-0"
        ask = MigrateRequest(request=stream.name, target=target, user="ann")
        await client.head(lambda head: head.migrate(ask))

        def has_moved(head: Head) -> bool:
            return head.request(stream.name).requests[0].instance == target

        await client.until(has_moved)
        assert (await look(client, stream.name)).priority == 0
        os.kill((await client.head(lambda head: head.instance(target))).pid, signal.SIGKILL)

        def has_gone_on(head: Head) -> bool:
            found = head.requests().requests
            return any(
                each.name == stream.name and each.instance not in ("", target) for each in found
            )

        await client.until(has_gone_on)
        assert (await look(client, stream.name)).priority == 0
        await change(client, RequestVerb.CANCEL, stream.name)
        await stream.cancelled()
    finally:
        await stream.leave()
    await client.until(lambda head: len(loads(head)) == 2 and is_empty(head))


async def test_what_is_pinned_stays_and_a_drain_says_why(client: Client) -> None:
    stream = await Live(client).begun()
    try:
        [found] = (await change(client, RequestVerb.PIN, stream.name)).changed
        assert found.pinned == "by ann"
        source, target = found.instance, "m-1" if found.instance == "m-0" else "m-0"
        ask = MigrateRequest(request=stream.name, target=target, user="ann")
        report = await client.head(lambda head: head.migrate(ask))
        assert [each.reason for each in report.left_out] == ["pinned: by ann"]
        drained = await client.head(lambda head: head.drain_instance(source, deadline_s=1.0))
        assert (drained.remaining, drained.not_moved) == (1, [f"{stream.name}: pinned: by ann"])
        await client.head(lambda head: head.cordon_instance(source, is_on=False))
        [found] = (await change(client, RequestVerb.UNPIN, stream.name)).changed
        assert found.pinned == ""
        assert (await client.head(lambda head: head.migrate(ask))).migrations
    finally:
        await stream.leave()
    await client.until(is_empty)


async def test_the_schedulers_death_costs_no_stream_and_nothing_that_waits(client: Client) -> None:
    cluster = client.cluster
    classes = ("interactive", "normal", "batch")
    streams = [
        asyncio.create_task(client.stream(120, cls)) for _ in range(BATCH_LIMIT) for cls in classes
    ]
    await client.until(lambda head: sum(waiting(head).values()) > ROOM)
    status = load_spec(cluster.directory / "procs/head/status.json", ProcessStatus)
    os.kill(status.pid, signal.SIGKILL)
    late = [asyncio.create_task(client.stream(20, cls)) for cls in classes]
    done = await asyncio.to_thread(cluster.llx, "up", "-y", str(cluster.config), timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert await asyncio.gather(*streams) == [120] * len(streams)
    assert await asyncio.gather(*late) == [20] * len(late)
    await client.until(lambda head: sum(waiting(head).values()) == 0 and sum(loads(head)) == 0)
    [gateway] = (await client.head(lambda head: head.status())).gateways
    assert gateway.failed == 0


async def test_vllms_requests_move_by_rule_and_their_text_is_the_same(cluster: Cluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=240) as http:
        client = Client(cluster, http, model="oracle")

        async def answers() -> list[str]:
            asked = [client.ask(700, prompt=f"story {number}") for number in range(2)]
            found = await asyncio.gather(*asked)
            return [each.json()["choices"][0]["text"] for each in found]

        expected = await answers()
        total = (await client.head(lambda head: head.instance("oracle-0"))).load.blocks_total
        rules = {"low": total * 0.7, "high": total * 0.8, "hysteresis": 0}
        update = PolicyUpdate(
            model="oracle", changes={f"rescheduling.{key}": str(rules[key]) for key in rules}
        )
        await client.cordon("oracle-1")
        again = asyncio.create_task(answers())
        try:
            await client.until(lambda head: head.instance("oracle-0").load.running == 2)
            await client.head(lambda head: head.cordon_instance("oracle-1", is_on=False))
            await client.head(lambda head: head.update_policies(update))
            moved = await client.until(
                lambda head: [
                    each
                    for each in head.migrations()
                    if (each.user, each.outcome) == ("policy", "moved")
                ]
            )
        finally:
            await client.head(lambda head: head.cordon_instance("oracle-1", is_on=False))
            await client.head(lambda head: head.update_policies(PolicyUpdate(is_revert=True)))
        assert (moved[0].source, moved[0].target, moved[0].why) == (
            "oracle-0", "oracle-1", "balance",
        )  # fmt: skip
        assert await again == expected
