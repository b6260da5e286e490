"""Sends requests when a schedule says so, whether or not the server keeps up (open loop).

Latencies count from the planned time, so that a server that stalls, or a generator that is late,
cannot hide it; how late each request was sent is in its record.

    schedule ──► wait until due ──► idle connection, or a new one ──► StreamConnection ──► Record
"""

import asyncio
import gc
import json
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from llx.bench.prompts import Prompts
from llx.bench.record import Outcome, Record
from llx.bench.schedule import Planned
from llx.bench.stream import StreamConnection
from llx.errors import ConfigError
from llx.open_files import raise_file_limit
from llx.openai_client import PRIORITY_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER
from llx.secret import Secret

_TURN_S: Final = 0.001
"""Timers of the event loop may be a millisecond late: the rest of a wait goes by in its turns."""
_LAUNCHES_PER_TURN: Final = 8
_IDLE_LIMIT_S: Final = 3.0
"""Servers close connections idle for longer (uvicorn: after 5 s)."""
_SWEEP_S: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 10.0
_SPARE_FILES: Final = 128


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        url: Of an OpenAI server, with or without ``/v1``.
        model: Its name there.
        api_key: Sent as bearer token.
        extra_body: Further fields of each request's body.
        served_as: Priority classes to ask for instead of those of the schedule.
        silence_s: A stream that is silent for so long has failed.
        timeout_s: How long each request's client waits, as it says in a header; None: it does not.
        tls: For HTTPS (`llx.pinned_tls`); without it what this machine trusts.
    """

    url: str
    model: str
    api_key: Secret | None = None
    extra_body: Mapping[str, object] = field(default_factory=dict)
    served_as: Mapping[str, str] = field(default_factory=dict)
    silence_s: float = 300.0
    timeout_s: float | None = None
    tls: ssl.SSLContext | None = None


class Generator:
    """One run of a schedule against a target.

    Args:
        target: Where to.
        schedule: What, in the order of time.
        prompts: The tokens of it.
        name: Begins every request's id.
        on_record: Called with each record once it is complete.
    """

    def __init__(
        self,
        target: Target,
        schedule: Sequence[Planned],
        prompts: Prompts,
        name: str,
        on_record: Callable[[Record], None],
    ) -> None:
        self.began_at = 0.0
        self.num_sent = 0
        self.num_in_flight = 0
        self.most_in_flight = 0
        self._target = target
        self._schedule = schedule
        self._prompts = prompts
        self._name = name
        self._on_record = on_record
        self._address = _Address.of(target)
        self._head, self._body = _parts(target, self._address)
        self._idle: deque[StreamConnection] = deque()
        self._busy: set[StreamConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_over = asyncio.Event()
        self._max_streams = raise_file_limit() - _SPARE_FILES

    async def run(self) -> None:
        """Send everything, and wait for the last answer. Cancelled: cut what is under way."""
        gc.collect()
        gc.freeze()  # what is planned never becomes garbage: do not look at it again and again
        sweeper = asyncio.create_task(self._sweep())
        try:
            self.began_at = time.perf_counter() + _TURN_S
            await self._send_all()
            while self.num_in_flight:
                self._is_over.clear()
                await self._is_over.wait()
        finally:
            sweeper.cancel()
            for task in self._opening:
                task.cancel()
            for connection in [*self._busy, *self._idle]:
                connection.cut()
            await asyncio.gather(sweeper, *self._opening, return_exceptions=True)
            gc.unfreeze()

    async def _send_all(self) -> None:
        for count, planned in enumerate(self._schedule):
            due = self.began_at + planned.at_s
            if count % _LAUNCHES_PER_TURN == 0:
                await asyncio.sleep(0)
            await _until(due)
            self._launch(planned, due)

    def _launch(self, planned: Planned, due: float) -> None:
        record = Record(
            number=planned.number,
            planned_at=due,
            num_prompt=planned.num_prompt,
            max_outputs=planned.num_outputs,
            priority_class=planned.priority_class,
        )
        self.num_sent += 1
        if self.num_in_flight >= self._max_streams:
            record.outcome, record.error = Outcome.FAILED, "more streams than files may be open"
            self._on_record(record)
            return
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        message = self._message(planned)
        connection = self._take_idle()
        if connection is None:
            task = asyncio.create_task(self._open_and_send(record, message))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._busy.add(connection)
            connection.send(record, message)

    def _take_idle(self) -> StreamConnection | None:
        """The connection that was used last, unless the server may be about to close it."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                if time.perf_counter() - connection.idle_since < _IDLE_LIMIT_S:
                    return connection
                connection.cut()
        return None

    async def _open_and_send(self, record: Record, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: StreamConnection(self._ended),
                    self._address.host,
                    self._address.port,
                    ssl=self._address.tls,
                )
        except asyncio.CancelledError:
            self._complete(record)
            raise
        except (OSError, TimeoutError) as error:
            why = str(error) or f"nothing in {_CONNECT_TIMEOUT_S:g} s"
            record.outcome, record.error = Outcome.FAILED, f"no connection: {why}"
            self._complete(record)
        else:
            self._busy.add(connection)
            connection.send(record, message)

    def _ended(self, connection: StreamConnection, record: Record) -> None:
        self._busy.discard(connection)
        if connection.is_usable:
            self._idle.append(connection)
        self._complete(record)

    def _complete(self, record: Record) -> None:
        self.num_in_flight -= 1
        if self.num_in_flight == 0:
            self._is_over.set()
        self._on_record(record)

    def _message(self, planned: Planned) -> bytes:
        body = self._body % (planned.num_outputs, self._prompts.ids(planned.segments))
        name = planned.priority_class
        name = self._target.served_as.get(name, name)
        class_line = f"{PRIORITY_HEADER}: {name}\r\n" if name else ""
        head = (
            f"{class_line}{REQUEST_ID_HEADER}: {self._name}-{planned.number}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return self._head + head.encode() + body

    async def _sweep(self) -> None:
        """Give up streams that have been silent for too long."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            limit = time.perf_counter() - self._target.silence_s
            for connection in [each for each in self._busy if each.active_at < limit]:
                error = f"silent for {self._target.silence_s:g} s"
                connection.cut(error, Outcome.FAILED)


async def _until(due: float) -> None:
    left = due - time.perf_counter()
    if left > _TURN_S:
        await asyncio.sleep(left - _TURN_S)
    while time.perf_counter() < due:  # noqa: ASYNC110 - no event comes at a time this exact
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, target: Target) -> "_Address":
        url = target.url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f'"{url}" is no URL of a server: write http://HOST:PORT')
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(
            parts.hostname,
            parts.port or (443 if is_tls else 80),
            f"{path}/v1/completions",
            (target.tls or ssl.create_default_context()) if is_tls else None,
        )


def _parts(target: Target, address: _Address) -> tuple[bytes, bytes]:
    """What is the same in every request: of the header, and of the body with two gaps."""
    lines = [
        f"POST {address.path} HTTP/1.1",
        f"host: {address.host}:{address.port}",
        "content-type: application/json",
        "accept: text/event-stream",
    ]
    if target.api_key is not None:
        lines.append(f"authorization: Bearer {target.api_key.reveal()}")
    if target.timeout_s is not None:
        lines.append(f"{TIMEOUT_HEADER}: {target.timeout_s:g}")
    same = {
        "model": target.model,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **target.extra_body,
    }
    rest = json.dumps(same, separators=(",", ":")).encode().replace(b"%", b"%%")
    head = "\r\n".join(lines) + "\r\n"
    return head.encode(), b'{"max_tokens":%d,"prompt":[%b],' + rest[1:]
