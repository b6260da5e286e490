"""Reading part of a growing log file: the end of it, or on from where one stopped."""

from dataclasses import dataclass
from pathlib import Path

from llx.errors import NotFoundError

MAX_BYTES = 1 << 20
"""Upper bound of one part."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """Text of a log and where to read on."""

    text: str
    next_offset: int


def read_log(path: Path, offset: int | None, *, limit: int = 65536, tail: int = 200) -> LogPart:
    """Up to `limit` bytes (16 at least) from `offset` on, or the last `tail` lines if it is None.

    An offset past the end (the log was begun anew) reads from the start. No part ends within a
    character.

    Raises:
        NotFoundError: There is no such file.
    """
    limit = min(max(16, limit), MAX_BYTES)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = max(0, size - limit) if offset is None else offset
            if start > size:
                start = 0
            file.seek(start)
            data = file.read(limit)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such log") from None
    if offset is None:
        skipped = _start_of_tail(data, tail, is_whole=start == 0)
        data, start = data[skipped:], start + skipped
    data = data[: _end_of_characters(data)]
    return LogPart(data.decode(errors="replace"), start + len(data))


def _start_of_tail(data: bytes, tail: int, *, is_whole: bool) -> int:
    """Where the last `tail` lines begin; the rest of a line that was cut off is no line."""
    position = len(data) - data.endswith(b"\n")
    if tail < 1:
        return len(data)
    for _ in range(tail):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0 if is_whole else data.find(b"\n") + 1
    return position + 1


def _end_of_characters(data: bytes) -> int:
    """Length of `data` without an incomplete UTF-8 character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if back >= width else len(data) - back
    return len(data)
