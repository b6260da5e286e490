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
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, cast

from llx.core.model import Nanos, Tokens
from llx.errors import ConfigError
from llx.sim.workload import SimRequest

_SECOND: Final = 1_000_000_000
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)?$")

_NUMERIC: Final = frozenset({int, float, str})
"""Types of what may be a number; bool is none."""

_MOST_DIGITS: Final = 18
"""Of a number that is read without looking twice."""

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


def detect(path: Path) -> str:
    """The format of a file, by its first line.

    ``timestamp`` is taken for milliseconds where blocks of prefixes are named (Mooncake), else for
    seconds: say the format where that is wrong.

    Raises:
        ConfigError: It cannot be read, or looks like none.
    """
    try:
        with _opened(path) as file:
            head = file.read(_HEAD_CHARS)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if head.lstrip().startswith("["):
        return SHAREGPT
    first = head.split("\n", 1)[0]
    try:
        fields = json.loads(first)
        names = set(fields) if isinstance(fields, dict) else set()
    except json.JSONDecodeError:
        names = set(next(csv.reader([first]), ()))
    for form, wanted in _TELLING:
        if names.issuperset(wanted):
            return form
    raise ConfigError(
        f"{path}: looks like no trace that llx knows",
        remedy=f"name its format: one of {', '.join(NAMES)}",
    )


def has_times(name: str) -> bool:
    """Whether a format says when requests come.

    Raises:
        ConfigError: There is no such format.
    """
    return name != SHAREGPT and _format(name).arrival_ns is not None


def read_trace(path: Path, name: str) -> Iterator[SimRequest]:
    """The requests of a file that has times, in its order.

    Requests without prompt or output tokens (failed ones, in BurstGPT) are left out.

    Args:
        path: The file.
        name: Its format, of `FORMATS`.

    Raises:
        ConfigError: The file, the format or a line of it cannot be read, or time runs backwards.
    """
    if not has_times(name):
        raise ConfigError(f"{name} traces have no arrival times: read their lengths instead")
    form = _format(name)
    assert form.arrival_ns is not None, "a format with times"
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
    if name == SHAREGPT:
        yield from _conversations(path)
        return
    form = _format(name)
    for number, fields in _lines(path, form):
        try:
            lengths = _lengths(fields, form)
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, number, name, error) from None
        if lengths is not None:
            yield lengths


def _conversations(path: Path) -> Iterator[tuple[Tokens, Tokens]]:
    """Of each conversation what a person says first and what the model answers."""
    try:
        with _opened(path) as file:
            entries = json.load(file)
    except (OSError, UnicodeDecodeError, EOFError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: no list of conversations")
    for number, entry in enumerate(entries):
        try:
            turns = [str(turn["value"]) for turn in entry["conversations"][:2]]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}: entry {number} is no conversation: {error}") from None
        lengths = [Tokens(-(-len(turn) // _CHARS_PER_TOKEN)) for turn in turns]
        if len(lengths) == 2 and all(lengths):
            yield lengths[0], lengths[1]


def _format(name: str) -> TraceFormat:
    form = FORMATS.get(name)
    if form is None:
        raise ConfigError(f"no trace format {name!r}: it is one of {', '.join(NAMES)}")
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
    reader = csv.reader(file)
    names = next(reader, [])
    for row in reader:
        if row:
            yield reader.line_num, dict(zip(names, row, strict=False))


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
    prompt, outputs = _count(fields, form.prompt), _count(fields, form.outputs)
    return (Tokens(prompt), Tokens(outputs)) if prompt and outputs else None


def _count(fields: Fields, name: str) -> int:
    value = fields[name]
    if isinstance(value, str) and value.isdecimal() and len(value) <= _MOST_DIGITS:
        return int(value)  # as nearly all of them are
    count = _number(fields, name)
    if count < 0 or count != int(count):
        raise ValueError(f"{name} is {fields[name]!r}, no count of tokens")
    return int(count)


def _number(fields: Fields, name: str) -> float:
    value = fields[name]
    if type(value) not in _NUMERIC:
        raise TypeError(f"{name} is {value!r}, no number")
    number = float(cast(str, value))
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
    return _whole_seconds(match[1]) * _SECOND + int((match[2] or "0").ljust(9, "0"))


@lru_cache(maxsize=1)
def _whole_seconds(text: str) -> int:
    """Since 1970; many lines in a row are of one second."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


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
        "counts": TraceFormat(False, None, "input_toks", "output_toks"),
        "vidur": TraceFormat(True, None, "num_prefill_tokens", "num_decode_tokens"),
        "vllm-log": TraceFormat(
            False, _scaled("arrival_time", _SECOND), "input_toks", "output_toks"
        ),
    }
)
"""By name. ``timed`` is what ``vllm bench serve`` replays, in seconds; ``mooncake`` the same in
milliseconds; ``counts`` are token counts by line, ``vllm-log`` the same with arrival times."""

SHAREGPT: Final = "sharegpt"
"""A JSON list of conversations in words. Tokens are estimated, four characters each: there is no
tokenizer here."""
RECORDING: Final = "recording"
"""A recording of a scheduler (`llx.recording`), which is not read here."""
NAMES: Final = (*FORMATS, SHAREGPT, RECORDING)
_CHARS_PER_TOKEN: Final = 4
_HEAD_CHARS: Final = 1 << 16
_TELLING: Final = (
    (RECORDING, {"llx_recording"}),
    ("azure", {"TIMESTAMP", "ContextTokens"}),
    ("mooncake", {"timestamp", "input_length", "hash_ids"}),
    ("timed", {"timestamp", "input_length"}),
    ("burstgpt", {"Timestamp", "Request tokens"}),
    ("vllm-log", {"arrival_time", "input_toks"}),
    ("counts", {"input_toks"}),
    ("vidur", {"num_prefill_tokens"}),
)
"""Formats and the fields that tell them, the more telling ones first."""
