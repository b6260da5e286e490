"""Reading the audit trail back, from a time or from where the last reading ended."""

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llx.api import EventList, EventStatus
from llx.errors import ConfigError

_AT = re.compile(rb'\{"at": ([0-9.]+)')
_CURSOR = re.compile(r"(\d+):(\d+)")
_OWN_KEYS = ("at", "kind", "user")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted.

    Attributes:
        since: Not those before that time, in seconds of the epoch.
        after: Only those after what an `EventList.cursor` stands for; empty: from the beginning.
        kinds: Of one of these kinds, or below one: ``instance`` takes in ``instance.failed``;
            empty: all.
        match: That contain this in their line.
        limit: The last ones at most.
    """

    since: float = 0.0
    after: str = ""
    kinds: Sequence[str] = ()
    match: str = ""
    limit: int = 1000

    def lets_through(self, line: bytes) -> bool:
        """By what can be told without reading the line as JSON."""
        found = _AT.match(line)
        if found is not None and float(found[1]) < self.since:
            return False
        return self.match.encode() in line

    def has_kind(self, kind: str) -> bool:
        """Whether events of the kind are wanted."""
        return not self.kinds or any(
            kind == each or kind.startswith(f"{each}.") for each in self.kinds
        )


def read_events(path: Path, wanted: EventFilter) -> EventList:
    """The events that a filter lets through, the oldest first, and where to go on.

    What was written before the oldest file that is kept is gone: a trail has two, `path` and
    ``<path>.1``.

    Raises:
        ConfigError: `after` is no cursor.
    """
    position = _position(wanted.after)
    found: deque[EventStatus] = deque(maxlen=wanted.limit)
    num_found, cursor = 0, wanted.after
    with contextlib.ExitStack() as stack:
        # Both are opened before either is read, lest they turn meanwhile.
        files = [(_inode(file), file) for file in map(stack.enter_context, _opened(path))]
        inodes = [inode for inode, _ in files]
        if position is not None and position[0] in inodes:
            files = files[inodes.index(position[0]) :]
            files[0][1].seek(position[1])
        for inode, file in files:
            at = file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                at += len(line)
                event = _event(line) if wanted.lets_through(line) else None
                if event is not None and wanted.has_kind(event.kind):
                    found.append(event)
                    num_found += 1
            cursor = f"{inode}:{at}"
    return EventList(events=list(found), num_found=num_found, cursor=cursor)


def _position(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise ConfigError(f'"{cursor}" is no cursor', remedy="give what an answer had as cursor")
    return int(found[1]), int(found[2])


def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The files that there are, the older one first."""
    for each in (path.with_name(f"{path.name}.1"), path):
        with contextlib.suppress(FileNotFoundError):
            yield each.open("rb", buffering=1 << 20)


def _inode(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_ino


def _event(line: bytes) -> EventStatus | None:
    try:
        data = json.loads(line)
        fields = {key: value for key, value in data.items() if key not in _OWN_KEYS}
        return EventStatus(at=data["at"], kind=data["kind"], user=data["user"], fields=fields)
    except (ValueError, KeyError, TypeError):
        return None  # the end of a line that a full disk cut short
