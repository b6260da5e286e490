"""HTTP/1.1 and server-sent events, no more of either than a streamed completion needs.

An asyncio protocol instead of an HTTP library: a library spends several times the processor time
per request and per event, and a load generator that is late measures itself
(docs/benchmarks.md has the figures).
"""

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, cast

import msgspec

from llx.bench.record import Outcome, Record

_MAX_HEAD_BYTES: Final = 64 << 10
_MAX_LINE_BYTES: Final = 16 << 20
_MAX_ERROR_BYTES: Final = 4 << 10
_SHOWN_ERROR_CHARS: Final = 200


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: dict[str, object] | str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class _State(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()


class StreamConnection(asyncio.Protocol):
    """One connection, one request at a time.

    Args:
        on_end: Called when a request has ended, in whatever way; `is_usable` tells whether the
            connection can carry another one.
    """

    def __init__(self, on_end: "Callable[[StreamConnection, Record], None]") -> None:
        self.record: Record | None = None
        self.is_usable = False
        self.idle_since = 0.0
        self.active_at = 0.0
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._state = _State.IDLE
        self._pending = b""
        self._reset()

    def _reset(self) -> None:
        self._is_ok = False
        self._is_chunked = False
        self._left: int | None = None
        self._line = b""
        self._has_done = False
        self._is_counted_along = False
        self._refusal = ""
        self._keeps_alive = True
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)
        self.is_usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, perhaps in the middle of an answer."""
        self.is_usable = False
        if self.record is None:
            return
        if self._state is _State.BODY and not self._is_chunked and self._left is None:
            self._finish()  # an answer without a length ends with its connection
        else:
            self._fail(f"the connection broke: {exc or 'closed by the server'}")

    def send(self, record: Record, message: bytes) -> None:
        """Send a whole request; `record` is filled in as its answer comes."""
        assert self._transport is not None, "a connection that stands"
        assert self.record is None, "one request at a time"
        self._reset()
        self.record = record
        self._state = _State.HEAD
        record.sent_at = self.active_at = time.perf_counter()
        self._transport.write(message)

    def cut(self, error: str = "", outcome: Outcome = Outcome.CUT) -> None:
        """End the request under way and the connection with it."""
        record, self.record = self.record, None
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()
        if record is not None:
            record.outcome, record.error = outcome, error
            self._tell(record)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self.active_at = now = time.perf_counter()
        if self._pending:
            data = self._pending + data
        try:
            rest: bytes = data
            is_waiting = False
            while rest and self.record is not None and not is_waiting:
                if self._state is _State.HEAD:
                    rest, is_waiting = self._read_head(rest)
                elif self._is_chunked:
                    rest, is_waiting = self._read_chunk(rest, now)
                else:
                    rest = self._read_plain(rest, now)
            self._pending = rest
        except (ValueError, msgspec.MsgspecError) as error:
            self._fail(f"an answer that makes no sense: {error}")

    def _read_head(self, data: bytes) -> tuple[bytes, bool]:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise ValueError("a header without an end")
            return data, True
        record = self.record
        assert record is not None, "a head belongs to a request"
        status, *fields = data[:end].split(b"\r\n")
        code = status.split(b" ", 2)[1] if status.startswith(b"HTTP/1.") else b"?"
        headers = dict(_header(each) for each in fields)
        self._is_ok = code == b"200"
        if not self._is_ok:
            self._refusal = f"status {code.decode(errors='replace')}"
        self._keeps_alive = headers.get(b"connection", b"").lower() != b"close"
        self._is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = headers.get(b"content-length")
        self._left = None if length is None else int(length)
        record.instance = headers.get(b"x-llx-instance", b"").decode(errors="replace")
        self._state = _State.BODY
        if self._left == 0 and not self._is_chunked:
            self._finish()
        return data[end + 4 :], False

    def _read_chunk(self, data: bytes, now: float) -> tuple[bytes, bool]:
        """One chunk, if all of it is here."""
        end = data.find(b"\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise ValueError("a chunk without a size")
            return data, True
        size = int(data[:end].partition(b";")[0], 16)
        begin = end + 2
        if size > _MAX_LINE_BYTES:
            raise ValueError("a chunk that is too large")
        if len(data) < begin + size + 2:
            return data, True
        if size == 0:
            self._finish()
        else:
            self._read_body(data[begin : begin + size], now)
        return data[begin + size + 2 :], False

    def _read_plain(self, data: bytes, now: float) -> bytes:
        part = data if self._left is None else data[: self._left]
        self._read_body(part, now)
        if self._left is not None and self.record is not None:
            self._left -= len(part)
            if self._left == 0:
                self._finish()
        return data[len(part) :]

    def _read_body(self, data: bytes, now: float) -> None:
        if not self._is_ok:
            self._body = (self._body + data)[:_MAX_ERROR_BYTES]
            return
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _MAX_LINE_BYTES:
            raise ValueError("an event that is too large")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip(), now)

    def _read_event(self, data: bytes, now: float) -> None:
        record = self.record
        if record is None:
            return
        if data == b"[DONE]":
            self._has_done = True
            return
        event = _decode_event(data)
        if event.error is not None:
            said = event.error.get("message") if isinstance(event.error, dict) else event.error
            self._refusal = f"the answer broke off: {said}"[:_SHOWN_ERROR_CHARS]
            return
        if event.usage is not None:
            record.usage_outputs = event.usage.completion_tokens
            self._is_counted_along |= bool(event.choices)
        if event.choices:
            count = _count(event, record.num_outputs)
            if count > 0:
                record.add_tokens(count, now)

    def _finish(self) -> None:
        """The whole answer is here."""
        if not self._is_ok:
            body = self._body.decode(errors="replace").strip()[:_SHOWN_ERROR_CHARS]
            self._fail(f"{self._refusal}: {body}")
        elif self._refusal:
            self._fail(self._refusal)
        elif not self._has_done:
            self._fail("the answer broke off before [DONE]")
        else:
            assert self.record is not None, "an answer belongs to a request"
            record, self.record = self.record, None
            record.outcome = Outcome.OK
            if record.usage_outputs is not None and not self._is_counted_along:
                record.num_outputs = record.usage_outputs  # an event may have had several
            self._state = _State.IDLE
            self.is_usable &= self._keeps_alive
            self.idle_since = time.perf_counter()
            self._tell(record)

    def _fail(self, error: str) -> None:
        self.cut(error, Outcome.FAILED)

    def _tell(self, record: Record) -> None:
        self._state = _State.IDLE
        self._pending = b""
        self._on_end(self, record)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()


def _count(event: _Event, so_far: int) -> int:
    """Tokens of an event: by the usage that it carries, else one.

    Also of one without text: tokens may come that make no whole character yet, and where nobody
    counts along (a router may take that wish out of a request) they would seem to come late. A last
    event that only says why the answer ends cannot be told from that.
    """
    if event.usage is not None:
        return event.usage.completion_tokens - so_far
    return int(bool(event.choices))
