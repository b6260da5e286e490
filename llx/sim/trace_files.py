"""Requests out of trace files, one at a time; a file that is wrong is named with its line.

Files may be gzipped (``.gz``). Arrivals are counted from the first request.
"""

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, cast

from llx.core.model import Nanos, Tokens
from llx.errors import ConfigError
from llx.sim.workload import SimRequest

_SECOND: Final = 1_000_000_000
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)?$")

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """How a line tells of a request.

    Attributes:
        is_csv: Whether a first line names the columns; else each line is a JSON object.
        arrival_ns: When it comes, from any beginning; None: the format has no times.
        prompt: Name of the field with the prompt's tokens.
        outputs: Name of the field with the output's tokens.
    """

    is_csv: bool
    arrival_ns: Callable[[Fields], int] | None
    prompt: str
    outputs: str


def read_trace(path: Path, name: str) -> Iterator[SimRequest]:
    """The requests of a file that has times, in its order.

    Requests without prompt or output tokens (failed ones, in BurstGPT) are left out.

    Args:
        path: The file.
        name: Its format, of `FORMATS`.

    Raises:
        ConfigError: The file, the format or a line of it cannot be read, or time runs backwards.
    """
    form = _format(name)
    if form.arrival_ns is None:
        raise ConfigError(f"{name} traces have no arrival times: read their lengths instead")
    first: int | None = None
    before: int | None = None
    for number, fields in _lines(path, form):
        try:
            at = form.arrival_ns(fields)
            lengths = _lengths(fields, form)
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, number, name, error) from None
        first = at if first is None else first
        if before is not None and at < before:
            raise ConfigError(f"{path}:{number}: this request comes before the one above it")
        before = at
        if lengths is not None:
            yield SimRequest(Nanos(at - first), *lengths)


def read_lengths(path: Path, name: str) -> Iterator[tuple[Tokens, Tokens]]:
    """Prompt and output lengths of a file, whether or not it has times.

    Raises:
        ConfigError: The file, the format or a line of it cannot be read.
    """
    form = _format(name)
    for number, fields in _lines(path, form):
        try:
            lengths = _lengths(fields, form)
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, number, name, error) from None
        if lengths is not None:
            yield lengths


def _format(name: str) -> TraceFormat:
    form = FORMATS.get(name)
    if form is None:
        raise ConfigError(f"no trace format {name!r}: it is one of {', '.join(FORMATS)}")
    return form


def _wrong(path: Path, number: int, name: str, error: Exception) -> ConfigError:
    what = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return ConfigError(f"{path}:{number}: not a line of a {name} trace: {what}")


def _lines(path: Path, form: TraceFormat) -> Iterator[tuple[int, Fields]]:
    """Line numbers and fields."""
    try:
        with _opened(path) as file:
            yield from _csv_lines(file) if form.is_csv else _json_lines(path, file)
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8", newline=""))
    return path.open(encoding="utf-8", newline="")


def _csv_lines(file: IO[str]) -> Iterator[tuple[int, Fields]]:
    reader = csv.DictReader(file)
    for row in reader:
        yield reader.line_num, row


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: no JSON: {error.msg}") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}:{number}: no JSON object")
        yield number, fields


def _lengths(fields: Fields, form: TraceFormat) -> tuple[Tokens, Tokens] | None:
    prompt, outputs = (_count(fields, each) for each in (form.prompt, form.outputs))
    return (Tokens(prompt), Tokens(outputs)) if prompt and outputs else None


def _count(fields: Fields, name: str) -> int:
    count = _number(fields, name)
    if count < 0 or count != int(count):
        raise ValueError(f"{name} is {fields[name]!r}, no count of tokens")
    return int(count)


def _number(fields: Fields, name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{name} is {value!r}, no number")
    number = float(value)
    if not abs(number) < float("inf"):
        raise ValueError(f"{name} is {value!r}, no number")
    return number


def _scaled(name: str, unit_ns: int) -> Callable[[Fields], int]:
    return lambda fields: round(_number(fields, name) * unit_ns)


def _azure_time(fields: Fields) -> int:
    text = str(fields["TIMESTAMP"])
    match = _STAMP.match(text)
    if match is None:
        raise ValueError(f"TIMESTAMP is {text!r}")
    whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    return int(whole.timestamp()) * _SECOND + int((match[2] or "0").ljust(9, "0"))


FORMATS: Final[Mapping[str, TraceFormat]] = MappingProxyType(
    {
        "azure": TraceFormat(True, _azure_time, "ContextTokens", "GeneratedTokens"),
        "mooncake": TraceFormat(
            False, _scaled("timestamp", 1_000_000), "input_length", "output_length"
        ),
        "timed": TraceFormat(False, _scaled("timestamp", _SECOND), "input_length", "output_length"),
        "burstgpt": TraceFormat(
            True, _scaled("Timestamp", _SECOND), "Request tokens", "Response tokens"
        ),
        "sharegpt": TraceFormat(False, None, "input_toks", "output_toks"),
        "vllm-log": TraceFormat(
            False, _scaled("arrival_time", _SECOND), "input_toks", "output_toks"
        ),
    }
)
"""By name. ``timed`` is what ``vllm bench serve`` replays, in seconds; ``mooncake`` the same in
milliseconds; ``sharegpt`` are token counts by line, ``vllm-log`` the same with arrival times."""
