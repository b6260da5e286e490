"""The gateway's outer application: ids, keys, classes, limits, and the choice of the pool.

An ASGI application around vLLM's own, one of which exists per pool:

    client ─► GatewayApp ── key? class? room? pool? ──► vLLM's app ──► PoolClient ──► instances
                   ◄── ids and instance added to the headers ◄──

It answers only what must be answered before a pool is known; everything else is vLLM's to say.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from llx.gateway import context
from llx.gateway.answer import Answer, Message, Send, answer, refuse
from llx.gateway.auth import ApiKeys, PriorityClasses, Tenant
from llx.gateway.refusals import OF_TAKEN, RETRY_AFTER_S, Refusal
from llx.gateway.tenants import TenantAccount
from llx.log import get_log
from llx.pins import VLLM_VERSION
from llx.specs import ApiKeySpec, GatewaySpec

if TYPE_CHECKING:
    from llx.gateway.front_end import FrontEnd
    from llx.gateway.metrics import GatewayMetrics

log = get_log(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MAX_BODY_BYTES = 64 << 20
BODY_S = 60.0
"""How long a body may take to come; it has one of `gateway.max_requests` places meanwhile."""
_TIMEOUT_HEADER = b"x-llx-timeout"
_LONGEST_S = 86400.0
_OF_NOBODY = {401, 404, 405}
"""Refusals that no log tells of: whoever has no key must not fill it."""
FORWARDED = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
    }
)


class _Probe(msgspec.Struct):
    """The two fields of a request body that concern the gateway."""

    model: str | None = None
    priority: int | None = None


class _Refused(Exception):
    """Ends a request here."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class GatewayApp:
    """The ASGI application that clients talk to."""

    def __init__(
        self,
        spec: GatewaySpec,
        pools: "dict[str, FrontEnd]",
        metrics: "GatewayMetrics",
        body_s: float = BODY_S,
    ) -> None:
        self._body_s = body_s
        self._pools = pools
        self._metrics = metrics
        self._keys = ApiKeys(spec.api_keys)
        self._classes = PriorityClasses(spec.classes)
        self._max_requests = spec.max_requests
        self._accounts = {each.name: TenantAccount(each) for each in spec.tenants}
        self._probe = msgspec.json.Decoder(_Probe)
        self.num_open = 0
        self.num_refused = 0

    def take_keys(self, api_keys: list[ApiKeySpec]) -> None:
        """Let in who has one of these, and nobody else, from the next request on."""
        self._keys = ApiKeys(api_keys)
        log.info("app.keys_taken", tenants=",".join(each.tenant for each in api_keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            assert scope["type"] == "lifespan", f"{scope['type']} is not served"
            return
        headers = dict(scope["headers"])
        http = context.RequestContext(
            request_id=f"llx-{secrets.token_hex(8)}", client_id="", tenant="", class_name="",
            priority=0,
        )  # fmt: skip
        http.client_id = _client_id(headers) or http.request_id
        try:
            await self._route(scope, receive, send, headers, http)
        except _Refused as refused:
            self.num_refused += 1
            if refused.refusal.status not in _OF_NOBODY:
                log.info(
                    "app.refused",
                    name=http.request_id,
                    client=http.client_id,
                    status=refused.refusal.status,
                    reason=refused.refusal.message[:200],
                )
            await refuse(send, http, refused.refusal)

    async def _route(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        http: context.RequestContext,
    ) -> None:
        path = scope["path"]
        match scope["method"], path:
            case "GET", "/health" | "/ping":
                self._require_instances(self._pools.values())
                await answer(send, http, 200, b"")
                return
            case "GET", "/metrics":
                page = self._metrics.page()
                await answer(send, http, 200, page, kind=b"text/plain; version=0.0.4")
                return
            case "GET", "/version":
                await answer(send, http, 200, msgspec.json.encode({"version": VLLM_VERSION}))
                return
            case _:
                pass
        tenant = self._authenticate(headers)
        if scope["method"] == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
            body = await self._models(path.removeprefix("/v1/models").strip("/"))
            await answer(send, http, 200, body)
            return
        if scope["method"] == "GET" and path == "/openapi.json":
            await answer(send, http, 200, await self._schema())
            return
        if path not in FORWARDED:
            raise _refused(404, "NotFoundError", f"no route {path}")
        if scope["method"] != "POST":
            raise _refused(405, "MethodNotAllowed", f"{path} takes POST")
        await self._forward(scope, receive, send, headers, http, tenant)

    async def _forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        http: context.RequestContext,
        tenant: Tenant,
    ) -> None:
        if self.num_open >= self._max_requests:
            raise _refused(
                429,
                "TooManyRequests",
                f"{self._max_requests} requests are in flight already",
                retry_after_s=RETRY_AFTER_S,
            )
        _limit_time(headers, http)
        account = self._accounts.get(tenant.name)
        if account is not None:
            if refusal := account.enter(time.monotonic()):
                raise _Refused(refusal)
            http.charge = lambda num_tokens: account.charge(num_tokens, time.monotonic())
        self.num_open += 1
        try:
            body = await _read_body(receive, self._body_s)
            probe = self._look(body)
            self._classify(headers, probe, tenant, http)
            pool = self._pool(probe.model)
            self._require_instances([pool])
            inner = _with_request_id(scope, http)
            token = context.current.set(http)
            answered = Answer(send, http)
            try:
                await pool.app(inner, _replay(body, receive), answered)
            except Exception as error:  # whatever vLLM makes of a stream that was to end
                if not await answered.end_refused():
                    raise
                log.info("app.ended_refused", name=http.request_id, error=repr(error))
            finally:
                context.current.reset(token)
                refusal = http.refusal
                self.num_refused += refusal is not None and refusal.kind not in OF_TAKEN
        finally:
            self.num_open -= 1
            if account is not None:
                account.leave()

    # ------------------------------------------------------------------ decisions

    def _authenticate(self, headers: dict[bytes, bytes]) -> Tenant:
        authorization = headers.get(b"authorization")
        tenant = self._keys.authenticate(authorization.decode("latin-1") if authorization else None)
        if tenant is None:
            raise _refused(401, "Unauthorized", "missing or unknown API key")
        return tenant

    def _look(self, body: bytes) -> _Probe:
        try:
            return self._probe.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Probe()  # vLLM answers what is wrong with it

    def _classify(
        self,
        headers: dict[bytes, bytes],
        probe: _Probe,
        tenant: Tenant,
        http: context.RequestContext,
    ) -> None:
        raw = headers.get(b"x-llx-priority")
        name = raw.decode("latin-1") if raw is not None else None
        chosen = self._classes.resolve(name, probe.priority, tenant)
        if chosen is None:
            known = ", ".join(self._classes.names())
            raise _refused(
                400, "BadRequestError", f"no priority class {name!r}; there are: {known}"
            )
        http.tenant, http.class_name, http.priority = tenant.name, chosen.name, chosen.priority

    def _pool(self, model: str | None) -> "FrontEnd":
        """The pool named, or any if it is named wrongly: vLLM's own 404 is the answer then."""
        named = self._pools.get(model) if model is not None else None
        return named or next(iter(self._pools.values()))

    def _require_instances(self, pools: "Iterable[FrontEnd]") -> None:
        for pool in pools:
            if not pool.is_open or not pool.roster.ready_event.is_set():
                raise _refused(
                    503,
                    "ServiceUnavailable",
                    f"no instance of {pool.spec.name} is ready",
                    retry_after_s=RETRY_AFTER_S,
                )

    async def _schema(self) -> bytes:
        """vLLM's own OpenAPI schema, of the paths that are served here."""
        pool = next(iter(self._pools.values()))
        self._require_instances([pool])
        schema = dict(await asyncio.to_thread(pool.app.openapi))  # made once, in a second or so
        schema["paths"] = {k: v for k, v in schema["paths"].items() if k in FORWARDED}
        return msgspec.json.encode(schema)

    async def _models(self, name: str) -> bytes:
        cards: list[Any] = []
        for pool in self._pools.values():
            if pool.is_open:
                models = await pool.app.state.openai_serving_models.show_available_models()
                cards.extend(models.model_dump(mode="json")["data"])
        if not name:
            return msgspec.json.encode({"object": "list", "data": cards})
        for card in cards:
            if card["id"] == name:
                return msgspec.json.encode(card)
        raise _refused(404, "NotFoundError", f"The model `{name}` does not exist.")


def _limit_time(headers: dict[bytes, bytes], http: context.RequestContext) -> None:
    """Take in how long the client is going to wait, if it says so."""
    raw = headers.get(_TIMEOUT_HEADER)
    if raw is None:
        return
    try:
        limit_s = float(raw)
    except ValueError:
        limit_s = math.nan
    if not 0 < limit_s <= _LONGEST_S:
        name = _TIMEOUT_HEADER.decode()
        raise _refused(400, "BadRequestError", f"{name} takes seconds, above 0 to {_LONGEST_S:g}")
    http.limit_s, http.deadline = limit_s, asyncio.get_running_loop().time() + limit_s


def _refused(status: int, kind: str, message: str, *, retry_after_s: int = 0) -> _Refused:
    return _Refused(Refusal(status, kind, message, retry_after_s))


# ---------------------------------------------------------------------- ASGI plumbing


def _client_id(headers: dict[bytes, bytes]) -> str:
    """The client's own request id, if it is one that can be echoed and logged as it is."""
    text = headers.get(b"x-request-id", b"").decode("latin-1")
    is_plain = 0 < len(text) <= 128 and text.isascii() and text.isprintable()
    return text if is_plain else ""


def _with_request_id(scope: Scope, http: context.RequestContext) -> Scope:
    kept = [(key, value) for key, value in scope["headers"] if key != b"x-request-id"]
    return {**scope, "headers": [*kept, (b"x-request-id", http.client_id.encode())]}


async def _read_body(receive: Receive, limit_s: float) -> bytes:
    try:
        async with asyncio.timeout(limit_s):
            return await _read_parts(receive)
    except TimeoutError:
        why = f"no whole body within {limit_s:g} s"
        raise _refused(408, "RequestTimeout", why) from None


async def _read_parts(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _refused(400, "BadRequestError", "the client left before its request was whole")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _refused(413, "RequestTooLarge", f"a body has at most {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then whatever the server has (the disconnect)."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
