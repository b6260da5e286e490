"""Talking to one remote command over its channel: input, both outputs, the end, within a limit.

One thread, no blocking call: neither a full pipe nor a silent command can stall it. Knows channels
by their shape only, not paramiko.
"""

import codecs
import re
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MAX_OUTPUT = 16 << 20
"""Bytes of standard output that are kept."""

_MAX_ERRORS = 1 << 20
_TAIL = 1 << 20
_QUIET_S = 2.0
_CHUNK = 1 << 16
_LINE_END = re.compile(r"\r\n|\n|\r")


class Channel(Protocol):
    """A session channel with a running command."""

    def recv(self, size: int, /) -> bytes:
        """Some of its standard output; empty at the end."""

    def recv_stderr(self, size: int, /) -> bytes:
        """Some of its standard error; empty at the end."""

    def send(self, data: bytes, /) -> int:
        """Give it some input; how much it took."""

    def fileno(self) -> int:
        """Readable when either output has something."""

    def setblocking(self, blocking: bool, /) -> None:
        """Without blocking, TimeoutError says that one would have to wait."""

    def exit_status_ready(self) -> bool:
        """Whether it is known to have ended."""

    def recv_exit_status(self) -> int:
        """How; negative if that was lost."""


class OutputTooLongError(Exception):
    """The command wrote more than is kept."""


class OverdueError(Exception):
    """The command has not ended in time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left; `exit_code` is None if its end was never heard of."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes


def converse(
    channel: Channel,
    *,
    stdin: bytes,
    deadline: float,
    on_line: Callable[[str], None] | None = None,
) -> Ended:
    """Carry a command through to its end, or until `time.monotonic()` passes `deadline`.

    With `on_line` only the last MiB of the output is kept.

    Raises:
        OverdueError: The deadline has passed.
        OutputTooLongError: There was more than `MAX_OUTPUT` of it.
    """
    out = _Output(_TAIL if on_line else MAX_OUTPUT, on_line, is_tail=on_line is not None)
    errors = _Output(_MAX_ERRORS, on_line, is_tail=True)
    channel.setblocking(False)
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    rest = memoryview(stdin)
    quiet_from: float | None = None  # once it has ended
    while not (out.is_ended and errors.is_ended):
        now = time.monotonic()
        if now > deadline:
            raise OverdueError
        # Both are to be drained each time.
        if out.drain(channel.recv) | errors.drain(channel.recv_stderr):
            quiet_from = None
        elif channel.exit_status_ready():
            # Its last words may follow. Silence: a process it left behind holds on to its output.
            quiet_from = quiet_from or now
            if now - quiet_from > _QUIET_S:
                break
        before = len(rest)
        rest = _sent(channel, rest)
        if len(rest) == before:
            poll.poll(20 if rest else 200)
    out.flush()
    errors.flush()
    return Ended(_exit_code(channel, deadline), out.kept(), errors.kept())


def _sent(channel: Channel, rest: memoryview) -> memoryview:
    """What is left to send after as much as fits now."""
    if not rest:
        return rest
    try:
        num_sent = channel.send(bytes(rest[:_CHUNK]))
    except TimeoutError:
        return rest
    except OSError:  # the command wants no more
        return rest[:0]
    return rest[num_sent:] if num_sent else rest[:0]


def _exit_code(channel: Channel, deadline: float) -> int | None:
    """The code follows the end of the output by little."""
    while not channel.exit_status_ready():
        if time.monotonic() > deadline:
            raise OverdueError
        time.sleep(0.002)
    code = channel.recv_exit_status()
    return None if code < 0 else code


class _Output:
    def __init__(self, limit: int, on_line: Callable[[str], None] | None, *, is_tail: bool) -> None:
        self.is_ended = False
        self._chunks = bytearray()
        self._limit = limit
        self._is_tail = is_tail
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def drain(self, receive: Callable[[int], bytes]) -> bool:
        """Take what is there; whether there was something."""
        has_some = False
        while not self.is_ended:
            try:
                data = receive(_CHUNK)
            except TimeoutError:
                break
            self.is_ended = not data
            has_some = has_some or bool(data)
            self._take(data)
        return has_some

    def flush(self) -> None:
        """Tell a last line without an end."""
        if self._on_line is not None and self._line:
            self._on_line(self._line)
            self._line = ""

    def kept(self) -> bytes:
        """The output, or its tail."""
        return bytes(self._chunks)

    def _take(self, data: bytes) -> None:
        self._chunks += data
        if len(self._chunks) > self._limit:
            if not self._is_tail:
                raise OutputTooLongError
            del self._chunks[: len(self._chunks) - self._limit]
        if self._on_line is not None:
            *lines, self._line = _LINE_END.split(self._line + self._decoder.decode(data))
            for line in lines:
                self._on_line(line)
