"""The control API: HTTP over the driver, on the head's loopback, behind a bearer token.

Everything, the schema at ``/openapi.json`` too, needs the token. Errors are `ErrorBody`; their
names are `llx.client.ERROR_NAMES`. What an operation does is the driver's; here it is only reached.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llx import __version__
from llx.api import (
    API_VERSION,
    ChangeReport,
    ClusterStatus,
    ErrorBody,
    GatewayStatus,
    HostStatus,
    InstanceStatus,
    InstanceSteps,
    KeysStatus,
    LogSlice,
    NoteReport,
    NoteRequest,
    SettingsDocument,
    SettingsUpdate,
    StopReport,
    StopRequest,
)
from llx.client import ERROR_NAMES
from llx.cluster.driving.actions import DRAIN_S
from llx.cluster.driving.driver import ClusterDriver
from llx.cluster.driving.rollout_verb import add_rollout_routes
from llx.cluster.driving.scale_verb import add_scale_route
from llx.cluster.events.routes import add_event_routes
from llx.cluster.fleet.step_book import read_steps
from llx.cluster.metrics.head import add_metrics_route
from llx.cluster.moves.routes import User, add_migration_routes, add_snapshot_route
from llx.cluster.requests.routes import add_request_routes
from llx.cluster.scheduling.routes import add_scheduling_routes
from llx.errors import (
    ConfigError,
    ConflictError,
    DeadlineError,
    LlxError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)
from llx.log import get_log
from llx.secret import Secret
from llx.settings import ClusterSettings
from llx.yaml_reader import read_yaml

log = get_log(__name__)

MAX_BODY_BYTES = 256 << 10
BODY_S = 60.0
"""How long a body may take to come."""
MAX_DEADLINE_S = 86400.0
_COMPRESS_FROM_BYTES = 4096

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

Seconds = Annotated[float, Query(ge=0, le=MAX_DEADLINE_S)]
_STATUS_OF: dict[type[LlxError], HTTPStatus] = {
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    ConfigError: HTTPStatus.BAD_REQUEST,
    DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
    UnreachableError: HTTPStatus.BAD_GATEWAY,
    RemoteError: HTTPStatus.BAD_GATEWAY,
}


def make_app(driver: ClusterDriver, token: Callable[[], Secret]) -> AsgiApp:
    """The ASGI application; `token` says which one is right at that moment."""
    app = FastAPI(
        title="llx control API",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses={
            code.value: {"model": ErrorBody, "description": code.phrase}
            for code in (
                HTTPStatus.UNAUTHORIZED,
                HTTPStatus.NOT_FOUND,
                HTTPStatus.CONFLICT,
                HTTPStatus.UNPROCESSABLE_ENTITY,
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )
        },
    )
    _add_routes(app, driver)
    _add_instance_routes(app, driver)
    add_migration_routes(app, driver.migrations)
    add_request_routes(app, driver.requests, driver.request_verbs)
    add_snapshot_route(app, driver.status, driver.requests, driver.migrations)
    add_scheduling_routes(app, driver.steering)
    add_event_routes(app, driver.events_path)
    add_scale_route(app, driver.scale)
    add_rollout_routes(app, driver.rollouts)
    add_metrics_route(app, driver.metrics)
    # `llx top` looks once a second, perhaps from afar; lists of requests shrink to a tenth.
    app.add_middleware(GZipMiddleware, minimum_size=_COMPRESS_FROM_BYTES, compresslevel=1)
    app.add_exception_handler(LlxError, _on_llx_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)
    return Guard(app, token)


class Guard:
    """Lets in whoever has the token, and bodies of a sane size; HTTP only."""

    def __init__(self, app: AsgiApp, token: Callable[[], Secret], body_s: float = BODY_S) -> None:
        self._app = app
        self._body_s = body_s
        self._token = token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        token = self._token().reveal().encode()
        given = headers.get(b"authorization", b"")
        if not token or not hmac.compare_digest(given, b"Bearer " + token):
            refusal = ErrorBody(
                error="unauthorized",
                message="the bearer token is missing or wrong",
                remedy="perhaps it was replaced (llx up --rotate): start this llx again",
            )
            await _answer(HTTPStatus.UNAUTHORIZED, refusal)(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._body_s):
                body = await _read_body(receive, headers.get(b"content-length", b""))
        except TimeoutError:
            refusal = ErrorBody(error="invalid", message=f"no whole body within {self._body_s:g} s")
            await _answer(HTTPStatus.REQUEST_TIMEOUT, refusal)(scope, receive, send)
            return
        except ClientDisconnect:
            return  # half a request is none
        if body is None:
            refusal = ErrorBody(
                error="too_large", message=f"a body may have {MAX_BODY_BYTES} bytes"
            )
            await _answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, refusal)(scope, receive, send)
            return
        await self._app(scope, _Replay(body, receive), send)


class _Replay:
    """Hands on a body that was read already, then whatever else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read_body(receive: Receive, stated_size: bytes) -> bytes | None:
    """The whole body; None if it is too large.

    Raises:
        ClientDisconnect: The client left before its body was whole.
    """
    if stated_size.isdigit() and int(stated_size[:20]) > MAX_BODY_BYTES:
        return None
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _add_routes(app: FastAPI, driver: ClusterDriver) -> None:
    @app.get(f"/{API_VERSION}/status")
    async def status() -> ClusterStatus:
        """The whole cluster."""
        return driver.status()

    @app.get(f"/{API_VERSION}/keys")
    async def keys() -> KeysStatus:
        """How old the keys of the cluster's sockets are, and who does not use them yet."""
        return driver.keys()

    @app.get(f"/{API_VERSION}/logs/{{name}}")
    async def logs(
        name: str,
        offset: Annotated[int, Query(ge=-1, description="-1: the last `tail` lines")] = -1,
        limit: Annotated[int, Query(ge=16, le=1 << 20)] = 65536,
        tail: Annotated[int, Query(ge=0, le=100_000)] = 200,
    ) -> LogSlice:
        """Part of the log of the head, a gateway, an instance, or a host's agent."""
        start = None if offset < 0 else offset
        return await driver.read_log(name, start, limit, tail)

    @app.post(f"/{API_VERSION}/stop")
    async def stop(request: StopRequest) -> StopReport:
        """Stop the cluster; answers when all is stopped, then the head ends, too."""
        return await driver.stop(_deadline_s(request), request.user[:256])

    @app.post(f"/{API_VERSION}/hosts/{{name}}/cordon")
    async def cordon(name: str, user: User = "") -> HostStatus:
        """Give a host nothing new; what runs there goes on."""
        return driver.cordon(name, is_on=True, user=user)

    @app.post(f"/{API_VERSION}/hosts/{{name}}/uncordon")
    async def uncordon(name: str, user: User = "") -> HostStatus:
        """Use a host again."""
        return driver.cordon(name, is_on=False, user=user)

    @app.post(f"/{API_VERSION}/hosts/{{name}}/drain")
    async def drain(name: str, request: StopRequest) -> StopReport:
        """Cordon a host and empty it; answers when it is empty."""
        return await driver.drain_host(name, _deadline_s(request), request.user[:256])

    @app.post(f"/{API_VERSION}/events")
    async def note(request: NoteRequest) -> NoteReport:
        """Leave an event in the audit trail, of what was done to the cluster past its head."""
        driver.note(request.verb, request.text, request.user[:256])
        return NoteReport()

    @app.get(f"/{API_VERSION}/settings")
    async def settings() -> SettingsDocument:
        """What the cluster should be."""
        return SettingsDocument(yaml=driver.settings())

    @app.put(f"/{API_VERSION}/settings")
    async def put_settings(update: SettingsUpdate) -> ChangeReport:
        """Make the cluster match these settings; answers when that has begun."""
        wanted = await asyncio.to_thread(parse_cluster, update.yaml)
        user, is_dry_run = update.user[:256], update.is_dry_run
        return ChangeReport(changes=driver.reconfigure(wanted, user, is_dry_run=is_dry_run))


def _add_instance_routes(app: FastAPI, driver: ClusterDriver) -> None:
    @app.get(f"/{API_VERSION}/instances/{{name}}")
    async def instance(name: str) -> InstanceStatus:
        """One instance."""
        return driver.instance(name)

    @app.get(f"/{API_VERSION}/instances/{{name}}/steps")
    async def steps(name: str, first: Annotated[int, Query(ge=0)] = 0) -> InstanceSteps:
        """What the last steps of an instance cost."""
        return await read_steps(driver.fleet, name, first)

    @app.post(f"/{API_VERSION}/instances/{{name}}/restart")
    async def restart_instance(
        name: str, user: User = "", deadline_s: Seconds = DRAIN_S
    ) -> InstanceStatus | GatewayStatus:
        """Stop an instance or a gateway and start it anew; answers when that has begun."""
        return driver.restart(name, user, deadline_s)

    @app.post(f"/{API_VERSION}/instances/{{name}}/cordon")
    async def cordon_instance(name: str, user: User = "") -> InstanceStatus:
        """Give an instance nothing new; what it has goes on."""
        status = driver.instances.cordon(name, is_on=True, user=user)
        await driver.remember()
        return status

    @app.post(f"/{API_VERSION}/instances/{{name}}/uncordon")
    async def uncordon_instance(name: str, user: User = "") -> InstanceStatus:
        """Use an instance again."""
        status = driver.instances.cordon(name, is_on=False, user=user)
        await driver.remember()
        return status

    @app.post(f"/{API_VERSION}/instances/{{name}}/drain")
    async def drain_instance(name: str, request: StopRequest) -> StopReport:
        """Cordon an instance and empty it; answers when it is empty, or at the deadline."""
        return await driver.instances.drain(name, _deadline_s(request), request.user[:256])


def parse_cluster(text: str) -> ClusterSettings:
    """A whole cluster.yaml, its paths absolute already.

    Raises:
        ConfigError: It is not YAML, or its content is wrong.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"settings: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("settings: expected keys and values at the top level")
    return read_yaml("settings", ClusterSettings, base=Path("/"), values=values)


def _deadline_s(request: StopRequest) -> float:
    if not 0 <= request.deadline_s <= MAX_DEADLINE_S:
        raise ConfigError(f"deadline_s: {request.deadline_s} is not in 0..{MAX_DEADLINE_S:g}")
    return request.deadline_s


def _answer(status: HTTPStatus, body: ErrorBody) -> JSONResponse:
    return JSONResponse(body.model_dump(), status_code=status)


async def _on_llx_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LlxError), "registered for these"
    names = {kind: name for name, kind in ERROR_NAMES.items()}
    body = ErrorBody(
        error=names.get(type(error), "internal"),
        message=error.message,
        remedy=error.remedy,
        detail=error.detail,
    )
    return _answer(_STATUS_OF.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR), body)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for these"
    name = "not_found" if error.status_code == HTTPStatus.NOT_FOUND else "invalid"
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _answer(HTTPStatus(error.status_code), ErrorBody(error=name, message=message))


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError), "registered for these"
    problems = "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
    )
    body = ErrorBody(error="config", message=problems)
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, body)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("control.failed", path=request.url.path, error=repr(error))
    body = ErrorBody(error="internal", message=f"{type(error).__name__}", remedy="llx logs head")
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, body)
