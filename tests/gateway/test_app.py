"""The outer application over stand-ins for vLLM's: what it refuses, adds and passes through."""

import asyncio
import hashlib
import json
import time
from types import SimpleNamespace

import httpx
import pytest

from llx.core.model import Term
from llx.gateway import context
from llx.gateway.app import MAX_BODY_BYTES, GatewayApp
from llx.gateway.refusals import CANCELLED, Refusal, of_answer
from llx.specs import ApiKeySpec, GatewaySpec, PriorityClassSpec, TenantSpec
from llx.wire import NotPlaced


class Inner:
    """Stands in for vLLM's application: records what it gets and answers as told."""

    def __init__(self, name):
        self.name = name
        self.calls = []
        self.hold = None
        self.state = SimpleNamespace(openai_serving_models=self)

    async def show_available_models(self):
        card = {"id": self.name, "object": "model"}
        return SimpleNamespace(model_dump=lambda mode: {"object": "list", "data": [card]})

    async def __call__(self, scope, receive, send):
        message = await receive()
        http = context.current.get()
        self.calls.append((dict(scope["headers"]), message["body"], http))
        http.instances.append(f"{self.name}-0")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.hold is not None:
            await self.hold.wait()
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})


class Pool:
    def __init__(self, name):
        self.spec = SimpleNamespace(name=name)
        self.app = Inner(name)
        self.is_open = True
        self.roster = SimpleNamespace(ready_event=asyncio.Event())
        self.roster.ready_event.set()


class Page:
    def page(self):
        return b"a_metric 1\n"


async def until(holds):
    """Waits until it `holds`, while others have their turns."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0)


def make(*names, keys=(), max_requests=100, tenants=(), **options):
    spec = GatewaySpec(
        name="gateway-0",
        host="127.0.0.1",
        port=0,
        pools=[],
        classes=[PriorityClassSpec("normal", 10, is_default=True), PriorityClassSpec("urgent", 0)],
        api_keys=[
            ApiKeySpec(tenant, hashlib.sha256(key.encode()).hexdigest()) for tenant, key in keys
        ],
        max_requests=max_requests,
        scheduler_address="",
        keys_path="",
        status_path="",
        tenants=list(tenants),
    )
    pools = {name: Pool(name) for name in names or ("tiny",)}
    app = GatewayApp(spec, pools, Page(), **options)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
    return client, pools, app


def body_of(model="tiny", **more):
    return {"model": model, "prompt": "x", **more}


async def test_a_request_reaches_its_pool_whole_and_comes_back_with_its_ids():
    client, pools, _ = make()
    answer = await client.post("/v1/completions", json=body_of(), headers={"x-request-id": "mine"})
    headers, body, http = pools["tiny"].app.calls[0]
    assert json.loads(body) == body_of()
    assert headers[b"x-request-id"] == b"mine"
    assert (http.tenant, http.class_name, http.priority) == ("anonymous", "normal", 10)
    assert answer.text == "ok"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-llx-request-id"].startswith("llx-")
    assert answer.headers["x-llx-instance"] == "tiny-0"


@pytest.mark.parametrize("bad", ["", "x" * 129, "new\x7fline"])
async def test_an_id_that_cannot_be_echoed_is_replaced(bad):
    client, pools, _ = make()
    answer = await client.post("/v1/completions", json=body_of(), headers={"x-request-id": bad})
    assert answer.headers["x-request-id"] == answer.headers["x-llx-request-id"]
    assert pools["tiny"].app.calls[0][0][b"x-request-id"].startswith(b"llx-")


@pytest.mark.parametrize("status", [200, 500])
async def test_what_the_scheduler_refuses_is_answered_so_whatever_vllm_makes_of_it(status):
    client, pools, app = make()

    async def inner(scope, receive, send):
        context.current.get().refusal = Refusal(429, "TooManyRequests", "the queue is full", 3)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"data: err", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    pools["tiny"].app = inner
    answer = await client.post("/v1/completions", json=body_of())
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"] == {
        "message": "the queue is full", "type": "TooManyRequests", "param": None, "code": 429,
    }  # fmt: skip
    assert "x-llx-request-id" in answer.headers
    assert app.num_refused == 1


async def test_a_stream_that_an_operator_ends_says_so_in_place_of_vllms_error():
    client, pools, app = make()

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"data: {}\n\n", b"data: {}\n\n", b""):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        context.current.get().refusal = CANCELLED
        last = [b"data: {}\n\n", b'data: {"error": {"code": 500}}\n\n', b"data: [DONE]\n\n"]
        for body in (*last, b""):
            more = body != b""
            await send({"type": "http.response.body", "body": body, "more_body": more})

    pools["tiny"].app = inner
    answer = await client.post("/v1/completions", json=body_of(stream=True))
    assert answer.status_code == 200
    *tokens, error, done = answer.text.strip().split("\n\n")
    assert tokens == 3 * ["data: {}"], "what came before the error is not lost"
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "the request was cancelled by an operator",
        "type": "CancelledError", "param": None, "code": 499,
    }  # fmt: skip
    assert app.num_refused == 0


async def test_a_stream_of_which_vllm_cannot_say_that_it_failed_ends_in_its_own_form():
    client, pools, _ = make()

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in (5, 6, 7):
            event = b'event: response.output_text.delta\ndata: {"sequence_number":%d}\n\n' % number
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        context.current.get().refusal = CANCELLED
        raise RuntimeError("vLLM has no such event")

    pools["tiny"].app = inner
    answer = await client.post("/v1/responses", json=body_of(stream=True))
    event, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error", "code": "CancelledError", "param": None, "sequence_number": 8,
        "message": "the request was cancelled by an operator",
    }  # fmt: skip


async def test_a_failure_of_vllms_that_nobody_wanted_is_one():
    client, pools, _ = make()

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        raise RuntimeError("a bug")

    pools["tiny"].app = inner
    with pytest.raises(RuntimeError, match="a bug"):
        await client.post("/v1/responses", json=body_of(stream=True))


@pytest.mark.parametrize(
    ("reason", "status"),
    [("queue full", 429), ("waited too long", 503), ("larger than an instance", 400),
     ("no such pool", 404)],
)  # fmt: skip
def test_every_refusal_of_the_scheduler_has_its_status(reason, status):
    refusal = of_answer(NotPlaced(Term(1), "r", 1, reason, 2.2), "tiny")
    assert (refusal.status, refusal.retry_after_s) == (status, 3)
    assert "tiny" in refusal.message


async def test_the_model_picks_the_pool_and_an_unknown_one_is_vllms_to_refuse():
    client, pools, _ = make("small", "large")
    for model in ("large", "small", "nope", None):
        await client.post("/v1/chat/completions", json=body_of(model))
    seen = {
        name: [json.loads(c[1])["model"] for c in pool.app.calls] for name, pool in pools.items()
    }
    assert seen == {"small": ["small", "nope", None], "large": ["large"]}


async def test_a_broken_body_is_vllms_to_refuse():
    client, pools, _ = make()
    await client.post("/v1/completions", content=b"{bad")
    assert pools["tiny"].app.calls[0][1] == b"{bad"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [({"x-llx-priority": "urgent"}, {}, 0), ({}, {"priority": 0}, 0), ({}, {"priority": 7}, 10)],
)
async def test_the_class_fixes_the_priority(headers, body, expected):
    client, pools, _ = make()
    await client.post("/v1/completions", json=body_of(**body), headers=headers)
    assert pools["tiny"].app.calls[0][2].priority == expected


async def test_the_models_of_all_pools_are_listed():
    client, _, _ = make("small", "large")
    answer = await client.get("/v1/models")
    assert [card["id"] for card in answer.json()["data"]] == ["small", "large"]
    assert (await client.get("/v1/models/large")).json()["id"] == "large"
    assert (await client.get("/v1/models/none")).status_code == 404


async def test_keys_are_asked_for_when_configured():
    client, pools, _ = make(keys=[("alice", "sk-a")])
    refused = await client.post("/v1/completions", json=body_of())
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert (await client.get("/v1/models")).status_code == 401
    wrong = await client.post(
        "/v1/completions", json=body_of(), headers={"authorization": "Bearer sk-b"}
    )
    assert wrong.status_code == 401
    assert pools["tiny"].app.calls == []
    right = {"authorization": "Bearer sk-a"}
    assert (await client.post("/v1/completions", json=body_of(), headers=right)).status_code == 200
    assert pools["tiny"].app.calls[0][2].tenant == "alice"
    assert (await client.get("/health")).status_code == 200


async def test_errors_have_the_standard_shape():
    client, _, app = make()
    cases = [
        await client.post("/v1/completions", json=body_of(), headers={"x-llx-priority": "x"}),
        await client.get("/v1/completions"),
        await client.post("/v1/nothing", json={}),
        await client.post("/collective_rpc", json={}),
    ]
    assert [answer.status_code for answer in cases] == [400, 405, 404, 404]
    for answer in cases:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == answer.status_code
    assert "urgent, normal" in cases[0].json()["error"]["message"]
    assert app.num_refused == 4


async def test_a_full_gateway_says_when_to_come_back():
    client, pools, app = make(max_requests=2)
    pools["tiny"].app.hold = asyncio.Event()
    held = [asyncio.create_task(client.post("/v1/completions", json=body_of())) for _ in range(2)]
    await until(lambda: app.num_open == 2)
    refused = await client.post("/v1/completions", json=body_of())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    pools["tiny"].app.hold.set()
    assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]
    assert app.num_open == 0
    assert (await client.post("/v1/completions", json=body_of())).status_code == 200


async def test_a_pool_without_instances_is_unavailable_others_are_not():
    client, pools, _ = make("small", "large")
    pools["large"].roster.ready_event.clear()
    refused = await client.post("/v1/completions", json=body_of("large"))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "no instance of large" in refused.json()["error"]["message"]
    assert (await client.post("/v1/completions", json=body_of("small"))).status_code == 200
    assert (await client.get("/health")).status_code == 503


async def test_an_oversized_body_is_refused():
    client, pools, _ = make()
    answer = await client.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert pools["tiny"].app.calls == []


async def test_the_disconnect_reaches_vllm():
    """vLLM aborts a request when `receive` says the client has gone."""
    _, pools, app = make()
    heard = []

    async def inner(scope, receive, send):
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])

    pools["tiny"].app = inner
    messages = iter(
        [
            {"type": "http.request", "body": b'{"model": ', "more_body": True},
            {"type": "http.request", "body": b'"tiny"}', "more_body": False},
            {"type": "http.disconnect"},
        ]
    )

    async def receive():
        return next(messages)

    async def send(message):
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await app(scope, receive, send)
    assert heard == ["http.request", "http.disconnect"]


async def test_metrics_and_version_need_no_key():
    client, _, _ = make(keys=[("alice", "sk-a")])
    assert (await client.get("/metrics")).text == "a_metric 1\n"
    assert (await client.get("/version")).json() == {"version": "0.32.0"}


async def test_a_tenant_at_its_limit_hears_so_and_others_do_not():
    limits = [TenantSpec("ann", max_requests=1, tokens_per_minute=100)]
    client, pools, app = make(keys=[("ann", "a"), ("bob", "b")], tenants=limits)
    inner = pools["tiny"].app
    inner.hold = asyncio.Event()

    def ask(key):
        headers = {"authorization": f"Bearer {key}"}
        return client.post("/v1/completions", json=body_of(), headers=headers)

    first = asyncio.create_task(ask("a"))
    await until(lambda: inner.calls)
    refused = await ask("a")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    message = refused.json()["error"]["message"]
    assert message == "ann has 1 requests in flight here already"
    assert app.num_refused == 1
    charged = time.monotonic()
    inner.calls[0][2].charge(150)  # 50 more than there are
    inner.hold.set()
    assert (await first).status_code == 200
    assert (await ask("b")).status_code == 200
    overdrawn = await ask("a")
    assert overdrawn.status_code == 429
    passed_s = time.monotonic() - charged
    assert 25 - passed_s <= int(overdrawn.headers["retry-after"]) <= 31
    assert app.num_open == 0


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "1e9"])
async def test_a_time_limit_that_makes_no_sense_is_refused(given):
    client, pools, _ = make()
    headers = {"x-llx-timeout": given}
    answer = await client.post("/v1/completions", json=body_of(), headers=headers)
    assert answer.status_code == 400
    assert "x-llx-timeout takes seconds" in answer.json()["error"]["message"]
    assert pools["tiny"].app.calls == []


async def test_a_time_limit_counts_from_the_arrival_not_from_the_end_of_the_body():
    client, pools, _ = make()

    loop, begun = asyncio.get_running_loop(), []

    async def body():
        begun.append(loop.time())
        yield b'{"model": "tiny", '
        await asyncio.sleep(0.05)
        yield b'"prompt": "x"}'

    before = loop.time()
    headers = {"x-llx-timeout": "2.5", "content-type": "application/json"}
    await client.post("/v1/completions", content=body(), headers=headers)
    http = pools["tiny"].app.calls[0][2]
    assert http.limit_s == 2.5
    assert before + 2.5 <= http.deadline <= begun[0] + 2.5


async def test_a_body_that_does_not_come_gives_its_place_back():
    client, _, app = make(max_requests=1, body_s=0.1)

    async def dribbling():
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    async with client:
        answer = await client.post("/v1/completions", content=dribbling())
        assert answer.status_code == 408
        assert answer.json()["error"]["type"] == "RequestTimeout"
        assert app.num_open == 0
        assert (await client.post("/v1/completions", json=body_of())).status_code == 200


async def test_a_revoked_key_is_refused_at_once_and_a_stream_of_another_goes_on():
    client, pools, app = make(keys=[("ada", "a-key"), ("bob", "b-key")])
    ada, bob = ({"authorization": f"Bearer {key}"} for key in ("a-key", "b-key"))
    pools["tiny"].app.hold = asyncio.Event()
    stream = asyncio.create_task(client.post("/v1/completions", json=body_of(), headers=bob))
    await until(lambda: pools["tiny"].app.calls)
    app.take_keys([ApiKeySpec("bob", hashlib.sha256(b"b-key").hexdigest(), "no-such-class")])
    assert (await client.post("/v1/completions", json=body_of(), headers=ada)).status_code == 401
    pools["tiny"].app.hold.set()
    assert (await stream).status_code == 200
    # Its class is one that this gateway does not know yet.
    assert (await client.post("/v1/completions", json=body_of(), headers=bob)).status_code == 200


async def test_the_schema_is_vllms_of_what_is_served_here_and_wants_a_key():
    client, pools, _ = make(keys=[("t", "sesame")])
    paths = {"/v1/completions": {"post": {}}, "/collective_rpc": {"post": {}}}
    pools["tiny"].app.openapi = lambda: {"openapi": "3.1.0", "paths": paths}
    assert (await client.get("/openapi.json")).status_code == 401
    answer = await client.get("/openapi.json", headers={"authorization": "Bearer sesame"})
    assert list(answer.json()["paths"]) == ["/v1/completions"]
    assert "/collective_rpc" in paths
