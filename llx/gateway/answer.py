"""The answer to a request on its way from vLLM's application to the client: headers, refusals."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from llx.gateway.context import RequestContext
from llx.gateway.refusals import RETRY_AFTER_S, Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_ERROR_EVENT: Final = b'data: {"error"'
"""How the last event of a stream begins that vLLM could not finish; ``[DONE]`` follows."""
_NUMBER: Final = re.compile(rb'"sequence_number": ?(\d+)')


class Answer:
    """Sends what vLLM's application answers.

    The response's head is held back until its first body bytes: only then is the instance known. Or
    that there is none: then the refusal is the answer, whatever vLLM makes of it. Of a stream that
    has begun the refusal takes the place of the error that vLLM ends it with.
    """

    def __init__(self, send: Send, http: RequestContext) -> None:
        self._send = send
        self._http = http
        self._head: Message | None = None
        self._is_over = False
        self._last = b""

    def __call__(self, message: Message) -> Awaitable[None]:
        """ASGI's `send`. What has only to be passed on costs no coroutine of its own."""
        is_under_way = self._head is None and bool(self._last) and not self._is_over
        if is_under_way and self._http.refusal is None and message.get("more_body"):
            self._last = message.get("body") or self._last
            return self._send(message)
        return self._take(message)

    async def _take(self, message: Message) -> None:
        http = self._http
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None and http.refusal is not None:
            self._is_over = True
            await refuse(self._send, http, http.refusal)
            return
        if self._head is not None:
            await self._send_head(self._head)
            self._head = None
        body = message.get("body", b"")
        if http.refusal is not None and body.startswith(_ERROR_EVENT):
            message = {**message, "body": _event(http.refusal)}
        self._last = body or self._last
        self._is_over = not message.get("more_body", False)
        await self._send(message)

    async def end_refused(self) -> bool:
        """End a stream amid which vLLM's application has failed; false if there is none to end.

        vLLM's Responses API fails where it would say that it cannot finish one: this says it.
        """
        refusal = self._http.refusal
        if refusal is None or self._is_over or not self._last:
            return False
        self._is_over = True
        body = _event(refusal) + b"data: [DONE]\n\n"
        if self._last.startswith(b"event:"):
            body = _typed_event(refusal, self._last)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        return True

    async def _send_head(self, head: Message) -> None:
        extra = id_headers(self._http)
        if head["status"] == 503:
            extra.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        head["headers"] = [*head.get("headers", []), *extra]
        await self._send(head)


async def refuse(send: Send, http: RequestContext, refusal: Refusal) -> None:
    """Answer with a refusal."""
    await answer(send, http, refusal.status, refusal.body(), refusal.retry_after_s)


def id_headers(http: RequestContext) -> list[tuple[bytes, bytes]]:
    """The headers that tell a request's ids and instances."""
    headers = [
        (b"x-request-id", http.client_id.encode()),
        (b"x-llx-request-id", http.request_id.encode()),
    ]
    if http.instances:
        headers.append((b"x-llx-instance", ",".join(dict.fromkeys(http.instances)).encode()))
    return headers


async def answer(
    send: Send,
    http: RequestContext,
    status: int,
    body: bytes,
    retry_after_s: int = 0,
    kind: bytes = b"application/json",
) -> None:
    """Answer with this, and nothing of vLLM's."""
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        *id_headers(http),
    ]
    if retry_after_s:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _event(refusal: Refusal) -> bytes:
    return b"data: " + refusal.body() + b"\n\n"


def _typed_event(refusal: Refusal, before: bytes) -> bytes:
    """The Responses API's own `error` event, numbered after the event `before`."""
    numbers = _NUMBER.findall(before)
    event = {
        "type": "error",
        "code": refusal.kind,
        "message": refusal.message,
        "param": None,
        "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
    }
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
