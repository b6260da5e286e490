"""Structured logging: an event name and ``key=value`` fields, one line per event.

    2026-11-23T04:05:06.789Z INFO instance.ready instance=tiny-0 after_s=3.2

Two ways in, one look: `get_log(name).info("instance.ready", instance=name)`, or the standard
library's loggers with a message already in that shape. Nothing here decides what to log.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import IO

_FIELDS = "llx_fields"
_BARE = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+.,:;/@%#()[]{}<>*~!?&|"
)


class EventLog:
    """A logger of events with fields. Secrets print as ``***`` by their own repr."""

    def __init__(self, logger: logging.Logger, **fields: object) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: object) -> "EventLog":
        """A log whose every line carries `fields` too."""
        return EventLog(self._logger, **{**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """What only a developer wants."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """A change of state."""
        self._emit(logging.INFO, event, fields)

    def info_of(self, at: float, event: str, /, **fields: object) -> None:
        """A change of state at an earlier moment, seconds since 1970: for who logs in batches."""
        self._emit(logging.INFO, event, fields, at=at)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something is wrong and llx goes on."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something failed."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Something failed that should not have; the current traceback follows the line."""
        self._emit(logging.ERROR, event, fields, has_traceback=True)

    def _emit(
        self,
        level: int,
        event: str,
        fields: dict[str, object],
        *,
        has_traceback: bool = False,
        at: float | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        extra = {_FIELDS: {**self._fields, **fields}}
        trace = sys.exc_info() if has_traceback else None
        # `Logger.log` would walk the stack for the caller's line, which no line of ours shows.
        record = self._logger.makeRecord(
            self._logger.name, level, "", 0, "%s", (event,), trace, None, extra
        )
        if at is not None:
            record.created = at
        self._logger.handle(record)


class EventFormatter(logging.Formatter):
    """Time in UTC, level, message, fields; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (or lines, with a traceback) of `record`."""
        at = datetime.fromtimestamp(record.created, UTC)
        time = f"{at.isoformat(timespec='milliseconds')[:23]}Z"
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        fields: dict[str, object] = getattr(record, _FIELDS, {})
        line = " ".join([time, record.levelname, message, *map(_pair, fields.items())])
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {each}" for each in trace.splitlines())
        return line


def get_log(name: str, **fields: object) -> EventLog:
    """The event log of a module; `fields` go on every line."""
    return EventLog(logging.getLogger(name), **fields)


def configure_logging(
    level: int = logging.INFO,
    stream: IO[str] | None = None,
    *,
    handler: logging.Handler | None = None,
) -> None:
    """Send every log line of this process, formatted, to `stream` (default: standard error).

    Or to where `handler` sends them.
    """
    handler = handler or logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # What vLLM loads raises the root's level: that must not silence us.
    logging.getLogger("llx").setLevel(level)


def quoted_field(value: str) -> str:
    """A field's value as it stands in a line: in quotes, if it has a space or the like."""
    return _text(value)


def _pair(item: tuple[str, object]) -> str:
    key, value = item
    return f"{key}={_text(value)}"


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6g}"
        case _:
            text = str(value)
    return text if text and _BARE.issuperset(text) else json.dumps(text, ensure_ascii=False)
