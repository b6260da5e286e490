"""Metrics of a cluster's head and gateways, from wherever the operator is.

The head answers on its host's loopback alone, and so do gateways unless told otherwise. `Pages`
fetches through connections that are kept, SSH and all, until they break; `ScrapeServer` offers
them to a Prometheus here, and says by `/targets` which there are.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from llx.api import GatewayStatus
from llx.client import Cluster
from llx.errors import ConfigError, ConflictError, LlxError, NotFoundError, UnreachableError
from llx.openai_client import OpenAIClient

HEAD: Final = "head"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_IDLE_S: Final = 60.0
_HELP: Final = "/metrics: the head; /gateways/NAME/metrics; /targets: all, for http_sd_configs\n"

_T = TypeVar("_T")
OpenGateway = Callable[[GatewayStatus], OpenAIClient]


class Pages:
    """Pages of metrics; may be asked by several threads.

    Args:
        open_head: A client of the control API, wherever the head is now.
        open_gateway: A client of one gateway.
    """

    def __init__(self, open_head: Callable[[], Cluster], open_gateway: OpenGateway) -> None:
        self._open_head = open_head
        self._open_gateway = open_gateway
        self._lock = threading.Lock()
        self._head: Cluster | None = None
        self._gateways: dict[str, OpenAIClient] = {}

    def head(self) -> str:
        """The head's page.

        Raises:
            UnreachableError: It does not answer.
        """
        return self._of_head(lambda head: head.metrics())

    def gateway(self, name: str) -> str:
        """A gateway's page.

        Raises:
            NotFoundError: There is none of that name.
            UnreachableError: It does not answer, or nobody can say where it is.
        """
        kept = self._gateways.get(name)
        if kept is not None:
            try:
                return kept.metrics()
            except LlxError:  # it may be elsewhere by now
                self._drop(name, kept)
        status = self._of_head(lambda head: head.status())
        found = next((each for each in status.gateways if each.name == name), None)
        if found is None:
            known = ", ".join(each.name for each in status.gateways)
            raise NotFoundError(f'no gateway "{name}"', remedy=f"there are: {HEAD}, {known}")
        if not found.url:
            raise UnreachableError(f"{name} is {found.state}: nobody knows where it listens")
        fresh = self._open_gateway(found)
        with self._lock:
            kept = self._gateways.setdefault(name, fresh)
        if kept is not fresh:  # another thread was faster
            fresh.close()
        return kept.metrics()

    def gateways(self) -> list[str]:
        """The gateways there are.

        Raises:
            UnreachableError: The head does not answer.
        """
        return [each.name for each in self._of_head(lambda head: head.status()).gateways]

    def close(self) -> None:
        """Drop all connections."""
        with self._lock:
            head, gateways = self._head, list(self._gateways.values())
            self._head = None
            self._gateways.clear()
        for each in gateways:
            each.close()
        if head is not None:
            head.close()

    def _of_head(self, ask: Callable[[Cluster], _T]) -> _T:
        """Once more with a new connection if the kept one is broken, or its token is of old."""
        kept = self._head
        if kept is not None:
            try:
                return ask(kept)
            except LlxError:
                with self._lock:
                    if self._head is kept:
                        self._head = None
                kept.close()
        fresh = self._open_head()
        try:
            answer = ask(fresh)
        except BaseException:
            fresh.close()
            raise
        with self._lock:
            spare, self._head = (None, fresh) if self._head is None else (fresh, self._head)
        if spare is not None:
            spare.close()
        return answer

    def _drop(self, name: str, kept: OpenAIClient) -> None:
        with self._lock:
            if self._gateways.get(name) is kept:
                del self._gateways[name]
        kept.close()


class ScrapeServer(ThreadingHTTPServer):
    """Serves `pages` on this machine. Whoever can reach it may read them."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], pages: Pages) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise ConflictError(
                f"{address[0]} port {address[1]}: {error.strerror or error}",
                remedy="--listen on another port",
            ) from None

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that does not wait for its answer is nothing to tell of."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: ScrapeServer

    def do_GET(self) -> None:
        try:
            text, kind = self._answer(self.path.partition("?")[0])
        except NotFoundError as error:
            self._send(HTTPStatus.NOT_FOUND, f"{error.message}\n")
        except LlxError as error:
            self._send(HTTPStatus.BAD_GATEWAY, f"{error.message}\n")
        else:
            self._send(HTTPStatus.OK, text, kind)

    def _answer(self, path: str) -> tuple[str, str]:
        pages = self.server.pages
        match path.strip("/").split("/"):
            case ["metrics"]:
                return pages.head(), CONTENT_TYPE
            case ["gateways", name, "metrics"]:
                return pages.gateway(unquote(name)), CONTENT_TYPE
            case ["targets"]:
                found = targets(self.headers.get("host", ""), pages.gateways())
                return json.dumps(found), "application/json"
            case [""]:
                return _HELP, "text/plain"
            case _:
                raise NotFoundError(f"{path}: no such page. {_HELP.strip()}")

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Scrapes are nothing to tell of."""


def targets(address: str, gateways: list[str]) -> list[dict[str, object]]:
    """What Prometheus' ``http_sd_configs`` takes: each page, at this server's own address."""
    paths = {HEAD: "/metrics"} | {
        name: f"/gateways/{quote(name, safe='')}/metrics" for name in gateways
    }
    return [
        {"targets": [address], "labels": {"__metrics_path__": path, "process": name}}
        for name, path in paths.items()
    ]


def parse_address(text: str) -> tuple[str, int]:
    """``9464`` (on loopback) or ``ADDRESS:9464``.

    Raises:
        ConfigError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (colon and not host):
        raise ConfigError(f'--listen takes PORT or ADDRESS:PORT, not "{text}"')
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
