"""A small client of the OpenAI API: what `llx generate`, `chat`, `demo` and `up` use.

Synchronous, over httpx. Server-sent events are read here; nothing else of the API is.
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from llx.errors import (
    ConfigError,
    DeadlineError,
    LlxError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)
from llx.lean_httpx import httpx
from llx.secret import Secret

INSTANCE_HEADER = "x-llx-instance"
PRIORITY_HEADER = "x-llx-priority"
REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-llx-timeout"

_CONNECT_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What to ask. None leaves a value to the server."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    priority_class: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. `output_tokens` counts from the answer's beginning."""

    text: str
    output_tokens: int
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and the instance that gave it ("" when the server does not say)."""

    text: str
    output_tokens: int
    finish_reason: str | None
    instance: str


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completion of token ids, to its last token: no end-of-sequence token ends it.

    `cache_salt`: only requests of one salt share prefix-cache blocks. `extra`: further fields of
    the body, as vLLM names them.
    """

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    request_id: str = ""
    temperature: float = 0.0
    seed: int | None = None
    cache_salt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of a completion: its token ids, its text, and when it came (monotonic seconds).

    `finish_reason`: of the last piece with text; `usage`: output tokens as the server counts them,
    in a piece of its own at the end if the request asks for it (``stream_options``).
    """

    token_ids: tuple[int, ...]
    text: str
    at: float
    finish_reason: str | None = None
    usage: int | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer under way; iterate `chunks` once."""

    instance: str
    chunks: Iterator[Chunk]


class OpenAIClient:
    """Talks to one server; may be shared by threads. Close it, or use it in a ``with``.

    Args:
        url: Of the server, with or without ``/v1``.
        api_key: Sent as bearer token.
        timeout_s: Longest silence in the middle of an answer.
        tls: For HTTPS (`llx.pinned_tls`); without it what this machine trusts.
        transport: Another way there, which has to see to TLS itself.

    Every method raises UnreachableError, DeadlineError, NotFoundError (no such model), ConfigError
    (the request is refused as wrong, or the key is) or RemoteError (the server failed or is busy).
    """

    def __init__(
        self,
        url: str,
        api_key: Secret | None = None,
        *,
        timeout_s: float = 120.0,
        tls: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if tls is None and self.url.startswith("https:"):
            tls = ssl.create_default_context()
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key.reveal()}"}
        self._http = httpx.Client(
            base_url=f"{self.url}/v1/",
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
            verify=True if tls is None else tls,
            transport=transport,
        )

    def __enter__(self) -> "OpenAIClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections; a stream under way ends."""
        self._http.close()

    def models(self) -> list[str]:
        """Names of the models served."""
        with self._errors():
            response = self._http.get("models")
            _check(response)
            return [str(each["id"]) for each in response.json()["data"]]

    def metrics(self) -> str:
        """The server's metrics, in Prometheus' text format."""
        with self._errors():
            response = self._http.get(f"{self.url}/metrics")
            _check(response)
            return response.text

    def chat(self, request: ChatRequest) -> Answer:
        """Ask, and wait for the whole answer."""
        with self._errors():
            response = self._http.post(
                "chat/completions", json=_body(request), headers=_headers(request)
            )
            _check(response)
            data = response.json()
            choice = data["choices"][0]
            return Answer(
                text=choice["message"].get("content") or "",
                output_tokens=int(data["usage"]["completion_tokens"]),
                finish_reason=choice["finish_reason"],
                instance=response.headers.get(INSTANCE_HEADER, ""),
            )

    @contextmanager
    def stream_chat(self, request: ChatRequest) -> Iterator[Stream]:
        """Ask, and read the answer as it comes. Leaving the ``with`` early cancels it."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {**_body(request), "stream": True, "stream_options": options}
        with ExitStack() as stack:
            with self._errors():
                response = stack.enter_context(
                    self._http.stream(
                        "POST", "chat/completions", json=body, headers=_headers(request)
                    )
                )
                if response.status_code != httpx.codes.OK:
                    response.read()
                _check(response)
            yield Stream(response.headers.get(INSTANCE_HEADER, ""), self._guarded(response))

    def stream_completion(self, request: CompletionRequest) -> Iterator[Tokens]:
        """Ask for a completion, and give its tokens as they come."""
        body = {
            "model": request.model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "cache_salt": request.cache_salt,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            **request.extra,
        }
        given = {key: value for key, value in body.items() if value is not None}
        headers = {REQUEST_ID_HEADER: request.request_id} if request.request_id else {}
        with (
            self._errors(),
            self._http.stream("POST", "completions", json=given, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
            _check(response)
            for event in _payloads(response):
                for choice in event.get("choices") or ():
                    ids = tuple(choice.get("token_ids") or ())
                    reason = choice.get("finish_reason")
                    yield Tokens(ids, choice.get("text") or "", time.monotonic(), reason)
                if usage := event.get("usage"):
                    yield Tokens((), "", time.monotonic(), usage=int(usage["completion_tokens"]))

    def _guarded(self, response: httpx.Response) -> Iterator[Chunk]:
        with self._errors():
            yield from _chunks(response)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of httpx, or of reading nonsense, as ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UnreachableError(
                    f"the certificate of {self.url} is not trusted ({error})",
                    remedy="llx status -o wide shows the gateways' certificates; with --url, "
                    "SSL_CERT_FILE names a file of the authority that signed it",
                ) from None
            raise UnreachableError(
                f"no gateway answers at {self.url} ({error})", remedy="llx status; llx up"
            ) from None
        except httpx.TimeoutException:
            raise DeadlineError(f"{self.url} fell silent", remedy="llx status") from None
        except httpx.HTTPError as error:
            raise RemoteError(
                f"the connection to {self.url} broke: {error}", remedy="llx status"
            ) from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RemoteError(f"{self.url} gave an answer that makes no sense: {error!r}") from None


def _body(request: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": each.role, "content": each.content} for each in request.messages],
    }
    if request.max_tokens is not None:
        body["max_completion_tokens"] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    return body


def _headers(request: ChatRequest) -> dict[str, str]:
    return {} if request.priority_class is None else {PRIORITY_HEADER: request.priority_class}


def _check(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        raise _refusal(response)


def _refusal(response: httpx.Response) -> LlxError:
    text = _error_text(response)
    match response.status_code:
        case 401 | 403:
            return ConfigError(f"the gateway refused the API key: {text}", remedy="set LLX_API_KEY")
        case 404:
            return NotFoundError(text, remedy="llx status shows the models served")
        case 400 | 413 | 422:
            return ConfigError(f"the gateway refused the request: {text}")
        case 429 | 503:
            after = response.headers.get("retry-after")
            wait = f"repeat in {after} s" if after else "repeat a little later"
            return RemoteError(f"the gateway is busy: {text}", remedy=wait)
        case status:
            return RemoteError(
                f"the gateway answered {status}: {text}", remedy="llx logs gateway-0"
            )


def _error_text(response: httpx.Response) -> str:
    try:
        data = response.json()
    except ValueError:
        return response.text[:500].strip() or response.reason_phrase
    found = data.get("error", data) if isinstance(data, Mapping) else data
    message = found.get("message") if isinstance(found, Mapping) else found
    return str(message)[:500]


def _chunks(response: httpx.Response) -> Iterator[Chunk]:
    tokens = 0
    for event in _payloads(response):
        tokens = max(tokens, int((event.get("usage") or {}).get("completion_tokens") or 0))
        choices: Sequence[Any] = event.get("choices") or ()
        text = "".join((each.get("delta") or {}).get("content") or "" for each in choices)
        reasons = [each["finish_reason"] for each in choices if each.get("finish_reason")]
        yield Chunk(text, tokens, reasons[0] if reasons else None)


def _payloads(response: httpx.Response) -> Iterator[Any]:
    """What one stream carries, ended by ``[DONE]`` and nothing else."""
    for data in _events(_lines(response.iter_bytes())):
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise RemoteError(f"the answer broke off: {event['error'].get('message')}")
        yield event
    raise RemoteError("the answer broke off: the connection ended before [DONE]")


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines, as server-sent events end them.

    Not `str.splitlines` (nor `httpx.Response.iter_lines`): that also breaks at characters like
    U+2028, which JSON carries as they are.

    Raises:
        RemoteError: A line is too long.
    """
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise RemoteError(f"an event of more than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
    if rest:
        yield rest.decode()


def _events(lines: Iterator[str]) -> Iterator[str]:
    """The data of each server-sent event; comments and other fields are skipped."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)
