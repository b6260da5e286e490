"""A recording of the scheduler: what it was told and what it answered, to be replayed.

    {"llx_recording": 1, "llx": "0.1.0", "origin": "simulator"}
    {"at": 200000, "event": "RequestArrived", "data": {…}, "commands": [["Dispatch", {…}]]}
    …
    {"stopped": "the size limit of 268435456 bytes"}

JSON lines, an event each, with its time and every command that came of it in full. The pools'
configurations are events too (`PoolConfigured`), so a recording needs nothing besides.

A recording begins with its scheduler, whose state at any later time no file holds: it can be
replayed from its first line on or not at all. So it does not rotate. When it has reached its limit
it ends with a line that says so, and the next start of a scheduler begins another file. What is
there can be replayed to its end.

One that begins amid its scheduler's life (`"opening": 7`) begins with so many events by which a new
scheduler would learn what there was: instances with their loads, what waited. What they cannot tell
(dispatches and moves under way, pauses between moves) is missing, so its commands need not come out
the same. It serves to compare rules, and to look decisions up.
"""

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, cast, get_args

import msgspec

from llx import __version__
from llx.core.model import Nanos
from llx.core.scheduler.commands import Command, Emptied
from llx.core.scheduler.events import Event, PoolConfigured
from llx.errors import ConfigError, LlxError

VERSION: Final = 1
MAX_BYTES: Final = 256 * 2**20
"""Of a recording, unless its owner says otherwise."""
_MAX_PENDING: Final = 4 * 2**20
"""Bytes not yet written; beyond that `record` writes them itself."""

_ASKED_EVERY: Final = 1024
"""Lines between two questions whether a search is over."""

_encoder = msgspec.json.Encoder()
_EVENTS: Final[dict[str, type]] = {each.__name__: each for each in get_args(Event)}


class Recorder:
    """Writes a recording. `record` costs microseconds; what is written when is its owner's affair.

    Args:
        path: The file; one that is there is replaced.
        origin: Where the events come from, for readers.
        max_bytes: At most, but for the last line.
        opening: How many events come first that nothing but tell what there was.
        epoch_s: Seconds from 1970 to time 0 of the events; None: they have no place in the world.

    Raises:
        ConfigError: The file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        origin: str,
        max_bytes: int = MAX_BYTES,
        opening: int = 0,
        epoch_s: float | None = None,
    ) -> None:
        self.path: Final = path
        self.failure: str | None = None
        """Why nothing is recorded any more; None while it is."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        header = _Header(VERSION, __version__, origin, opening, epoch_s)
        self._pending = bytearray(_encoder.encode(header) + b"\n")

    def record(self, event: Event, now: Nanos, commands: Sequence[Command]) -> None:
        """An event that the scheduler has handled, and its answer.

        Never raises: what cannot be written ends the recording (`failure`), not its owner.
        """
        if self.failure is not None:
            return
        try:
            line = line_of(event, now, commands)
        except NO_LINE as error:
            self.stop(f"what cannot be written: {error}")
            return
        self.append(line)

    def append(self, line: bytes) -> None:
        """What `line_of` has made of an event. Never raises, like `record`."""
        if self.failure is not None:
            return
        if self.num_bytes + len(line) > self._max_bytes:
            self.stop(f"the size limit of {self._max_bytes} bytes")
            return
        self._pending += line
        if len(self._pending) > _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Write what is pending. A disk that refuses ends the recording (`failure`)."""
        pending, self._pending = self._pending, bytearray()
        self._num_bytes += len(pending)
        try:
            rest = memoryview(pending)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.failure = f"{self.path}: {error.strerror}"

    def close(self) -> None:
        """Write what is pending, and no more."""
        self.flush()
        self._file.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def num_bytes(self) -> int:
        """Written, and pending."""
        return self._num_bytes + len(self._pending)

    def stop(self, why: str) -> None:
        """End it, with a line that says why."""
        self.failure = f"{self.path} has reached {why}"
        self._pending += _encoder.encode(_Stop(why)) + b"\n"
        self.flush()


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a recording.

    Attributes:
        line: Its number in the file.
        at: When.
        event: What the scheduler was told.
        commands: What it answered, as `command_bytes` has it.
    """

    line: int
    at: Nanos
    event: Event
    commands: bytes


class Recording:
    """Reads a recording, gzipped or not (``.gz``).

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, or is no recording that this version knows.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.stopped: str | None = None
        """Why it ends before its scheduler did; known once `entries` has come to its end."""
        with _lines_of(path) as lines:
            header = _header(path, next(lines, (1, b""))[1])
        self.llx_version: Final = header.llx
        self.origin: Final = header.origin
        self.opening: Final = header.opening
        """So many of its first events tell only what there was when it began."""
        self.epoch_s: Final = header.epoch_s

    def span(self) -> tuple[Nanos, Nanos]:
        """When its first and its last event are.

        Raises:
            ConfigError: It has none, or one of them is wrong.
        """
        first = last = None
        with _lines_of(self.path) as lines:
            next(lines, None)
            for number, text in lines:
                if text.endswith(b"\n") and not text.startswith(b'{"stopped"'):
                    first, last = first or (number, text), (number, text)
        found = [_decoded(self.path, *each) for each in (first, last) if each is not None]
        times = [Nanos(each.at) for each in found if isinstance(each, _Line)]
        if len(times) < 2:
            raise ConfigError(f"{self.path}: nothing is recorded")
        return times[0], times[1]

    def entries(self) -> Iterator[Entry]:
        """All events, in order.

        A last line without an end is left out: its writer was killed while it wrote.

        Raises:
            ConfigError: A line is wrong, or before the one above it.
        """
        before = 0
        with _lines_of(self.path) as lines:
            next(lines, None)
            for number, text in lines:
                if not text.endswith(b"\n"):
                    self.stopped = "it was cut off while it was written"
                    return
                line = _decoded(self.path, number, text)
                if isinstance(line, _Stop):
                    self.stopped = line.stopped
                    return
                if line.at < before:
                    raise ConfigError(
                        f"{self.path}:{number}: this event comes before the one above"
                    )
                before = line.at
                yield self._entry(number, line)

    def entries_with(
        self, needles: Sequence[bytes], is_over: Callable[[], bool]
    ) -> Iterator[Entry]:
        """The events in whose line any of these bytes occurs; the others are not looked at.

        Args:
            needles: What to look for.
            is_over: Asked now and then; it ends this if so.

        Raises:
            ConfigError: Such a line is wrong.
        """
        with _lines_of(self.path) as lines:
            next(lines, None)
            for number, text in lines:
                if number % _ASKED_EVERY == 0 and is_over():
                    return
                if any(each in text for each in needles) and text.endswith(b"\n"):
                    line = _decoded(self.path, number, text)
                    if isinstance(line, _Line):
                        yield self._entry(number, line)

    def _entry(self, number: int, line: "_Line") -> Entry:
        event = _event(self.path, number, line)
        return Entry(number, Nanos(line.at), event, bytes(line.commands))


_COMMANDS: Final[dict[str, type[Command]]] = {
    each.__name__: each for each in get_args(Command) if each is not Emptied
}


def decided(commands: bytes) -> list[Command]:
    """Commands out of their `command_bytes`, but for `Emptied`, which decides nothing.

    Raises:
        ConfigError: There is one that this version does not know.
    """
    if commands == b"[]":
        return []
    try:
        return [
            msgspec.convert(_filled(content), _COMMANDS[name])
            for name, content in msgspec.json.decode(commands, type=list[tuple[str, Any]])
            if name != Emptied.__name__
        ]
    except (msgspec.MsgspecError, KeyError) as error:
        raise ConfigError(f"no commands: {error}") from None


def _filled(value: Any) -> Any:
    """With something for the infinite figures, for which JSON has null. Which sign is not known."""
    match value:
        case dict():
            return {
                key: math.nan if key == "figure" and each is None else _filled(each)
                for key, each in value.items()
            }
        case [str() as name, None]:
            return [name, "infinite"]
        case list():
            return [_filled(each) for each in value]
        case _:
            return value


NO_LINE: Final = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)
"""What `line_of` raises: a name that is no text, a policy from outside with figures of its own."""


def line_of(event: Event, now: Nanos, commands: Sequence[Command]) -> bytes:
    """An event that a scheduler has handled, and its answer, as a line of a recording.

    Raises:
        NO_LINE: There is something in it that has no text.
    """
    return b'{"at":%d,"event":"%s","data":%s,"commands":%s}\n' % (
        now,
        type(event).__name__.encode(),
        _event_bytes(event),
        command_bytes(commands),
    )


def command_bytes(commands: Sequence[Command]) -> bytes:
    """Commands as JSON: a list of names and contents. Equal commands are equal bytes."""
    if not commands:
        return b"[]"  # after nearly every report
    return b"[%s]" % b",".join(
        b'["%s",%s]' % (type(each).__name__.encode(), _encoder.encode(each)) for each in commands
    )


def _event_bytes(event: Event) -> bytes:
    if isinstance(event, PoolConfigured):
        # Thresholds may be infinite, which JSON has no number for.
        return _encoder.encode(_spelt(msgspec.to_builtins(event)))
    return _encoder.encode(event)


def _spelt(value: object) -> object:
    """Infinities as words, which the decoder takes for numbers where it expects one."""
    match value:
        case float() if math.isinf(value):
            return str(value)
        case dict():
            return {key: _spelt(each) for key, each in value.items()}
        case list() | tuple():
            return [_spelt(each) for each in value]
        case _:
            return value


class _Header(msgspec.Struct, frozen=True, omit_defaults=True):
    llx_recording: int
    llx: str
    origin: str
    opening: int = 0
    epoch_s: float | None = None


class _Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stopped: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    at: int
    event: str
    data: msgspec.Raw
    commands: msgspec.Raw


_line_decoder = msgspec.json.Decoder(_Line)
_stop_decoder = msgspec.json.Decoder(_Stop)
_decoders: Final[dict[str, msgspec.json.Decoder[object]]] = {
    name: msgspec.json.Decoder(kind, strict=kind is not PoolConfigured)
    for name, kind in _EVENTS.items()
}


@contextmanager
def _lines_of(path: Path) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Line numbers and lines of a file."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            yield enumerate(file, 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _header(path: Path, text: bytes) -> _Header:
    try:
        header = msgspec.json.decode(text, type=_Header)
    except msgspec.DecodeError:
        raise ConfigError(f"{path}: no recording of a scheduler") from None
    if header.llx_recording != VERSION:
        raise ConfigError(
            f"{path}: a recording of version {header.llx_recording}; this llx reads {VERSION}"
        )
    return header


def _decoded(path: Path, number: int, text: bytes) -> _Line | _Stop:
    try:
        return _line_decoder.decode(text)
    except msgspec.DecodeError as error:
        try:
            return _stop_decoder.decode(text)
        except msgspec.DecodeError:
            raise ConfigError(f"{path}:{number}: no line of a recording: {error}") from None


def _event(path: Path, number: int, line: _Line) -> Event:
    decoder = _decoders.get(line.event)
    if decoder is None:
        raise ConfigError(f"{path}:{number}: no event is called {line.event!r}")
    try:
        return cast(Event, decoder.decode(line.data))
    except (msgspec.DecodeError, LlxError) as error:
        raise ConfigError(f"{path}:{number}: no {line.event}: {error}") from None
