"""What the live scheduler was told and answered, in the state directory, to be replayed.

    term-7.jsonl         all of a term from its beginning, up to its size limit
    recent-7.4.jsonl     a part of the last minutes, and the part before it: always there
    recent-7.3.jsonl

``llx sim replay`` says of a term's whether this core decides the same. A recent one begins with
what a new scheduler would be told at that moment (`llx.recording`): other rules are compared on it
(`llx policy set --dry-run`), and former heads' decisions are found in it (`llx explain`).
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from llx.core.model import Nanos, Term
from llx.core.scheduler.commands import Command
from llx.core.scheduler.config import SECOND
from llx.core.scheduler.events import Event
from llx.errors import ConfigError
from llx.log import get_log
from llx.recording import NO_LINE, Recorder, line_of

log = get_log(__name__)

_KEPT: Final = 3
_MAX_BYTES: Final = 64 << 20
PART_S: Final = 300.0
"""A part is no longer than that; with the one before, at least so much is there."""
_PART_BYTES: Final = 12 << 20
_PART_MOST_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 16
_PART: Final = re.compile(r"recent-(\d+)\.(\d+)\.jsonl")


class Recordings:
    """Writes a term's recording and its recent parts. What cannot be written is left out.

    Args:
        folder: Where they lie.
        term: Whose.
        whole: The term's.
        part_s: How long a recent part is.
        part_bytes: How large.
    """

    def __init__(
        self,
        folder: Path,
        term: Term,
        whole: Recorder,
        *,
        part_s: float = PART_S,
        part_bytes: int = _PART_BYTES,
    ) -> None:
        self._folder = folder
        self._term = term
        self._whole = whole
        self._part_s = part_s
        self._part_bytes = part_bytes
        self._parts: list[tuple[Nanos, int, Recorder]] = []
        """When it began, events of its opening, who writes it; the last is written to."""
        self._num_parts = 0
        self._not_before = Nanos(0)
        """No part is begun before: the disk has refused the last one."""

    def record(self, event: Event, now: Nanos, commands: Sequence[Command]) -> None:
        """An event that the scheduler has handled, and its answer. Never raises."""
        try:
            line = line_of(event, now, commands)
        except NO_LINE as error:
            self._whole.stop(f"what cannot be written: {error}")
            return
        self._whole.append(line)
        if self._parts:
            self._parts[-1][2].append(line)

    def flush(self) -> None:
        """Write what is pending: a few kilobytes, to the page cache."""
        self._whole.flush()
        if self._parts:
            self._parts[-1][2].flush()

    def is_part_over(self, now: Nanos) -> bool:
        """Whether a new part is due."""
        if now < self._not_before:
            return False
        if not self._parts:
            return True
        begun, _, part = self._parts[-1]
        is_full = part.num_bytes >= self._part_bytes
        return is_full or now - begun >= self._part_s * SECOND

    def begin_part(self, opening: Iterable[Event], now: Nanos) -> None:
        """Begin a new part; of former ones the last is kept."""
        events = list(opening)
        self._num_parts += 1
        path = self._folder / f"recent-{self._term}.{self._num_parts}.jsonl"
        try:
            path.touch(mode=0o600)
            part = Recorder(
                path,
                origin="cluster",
                max_bytes=_PART_MOST_BYTES,
                opening=len(events),
                epoch_s=_epoch_s(),
            )
        except (OSError, ConfigError) as error:
            log.error("scheduler.no_part", error=error)
            self._not_before = Nanos(now + round(self._part_s * SECOND))
            return
        for each in events:
            part.record(each, now, ())
        if self._parts:
            self._parts[-1][2].close()
        self._parts.append((now, len(events), part))
        for _, _, old in self._parts[:-2]:
            old.path.unlink(missing_ok=True)
        del self._parts[:-2]

    def recent(self, last_s: float, now: Nanos) -> Iterator[bytes]:
        """What has happened lately, as the bytes of one recording: of so long or somewhat more.

        Of less, if less is there. The files are open when this returns, and are read as it goes on.
        """
        self.flush()
        chosen = self._parts[-1:]
        if chosen and now - chosen[0][0] < last_s * SECOND:
            chosen = self._parts
        told = [opening for _, opening, _ in chosen]
        skipped = [1 + opening if number else 0 for number, opening in enumerate(told)]
        return _read([each.path for _, _, each in chosen], skipped)

    def of_term(self) -> Iterator[bytes]:
        """All that there is from the term's beginning, likewise."""
        self.flush()
        return _read([self._whole.path], [0])

    def close(self) -> None:
        """Write what is pending, and no more."""
        self._whole.close()
        if self._parts:
            self._parts[-1][2].close()


def _read(paths: Sequence[Path], skipped: Sequence[int]) -> Iterator[bytes]:
    """What files hold at this moment, but for so many lines at the beginning of each."""
    files = [(path.open("rb"), path.stat().st_size) for path in paths]

    def read() -> Iterator[bytes]:
        for (file, size), count in zip(files, skipped, strict=True):
            with file:
                for _ in range(count):
                    file.readline()
                left = size - file.tell()
                while left > 0 and (chunk := file.read(min(left, _READ_BYTES))):
                    left -= len(chunk)
                    yield chunk

    return read()


def open_recordings(
    folder: Path, term: Term, *, max_bytes: int = _MAX_BYTES, part_s: float = PART_S
) -> Recordings | None:
    """Of a term's scheduler; None if the disk refuses: it is not worth a head.

    Of former ones the last are kept.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("term-*.jsonl"), key=_term_of)[: -(_KEPT - 1)]:
            old.unlink()
        parts = parts_in(folder)
        former = max((each for each, _, _ in parts if each != term), default=None)
        for of_term, _, old in parts:
            if of_term != former:
                old.unlink()
        path = folder / f"term-{term}.jsonl"
        path.touch(mode=0o600)
        whole = Recorder(path, origin="cluster", max_bytes=max_bytes, epoch_s=_epoch_s())
        return Recordings(folder, term, whole, part_s=part_s)
    except (OSError, ConfigError) as error:
        log.error("scheduler.not_recorded", error=error)
        return None


def parts_in(folder: Path) -> list[tuple[int, int, Path]]:
    """Term, number and file of all recent parts, the oldest first."""
    names = ((_PART.fullmatch(each.name), each) for each in folder.glob("recent-*.jsonl"))
    return sorted((int(match[1]), int(match[2]), each) for match, each in names if match)


def newest_first(folder: Path) -> list[tuple[int, Path]]:
    """All that lie there, with their terms; of a term its last part first, the whole last."""
    files = [(term, number, path) for term, number, path in parts_in(folder)]
    files += [(_term_of(path), 0, path) for path in folder.glob("term-*.jsonl")]
    return [(term, path) for term, _, path in sorted(files, reverse=True)]


def _epoch_s() -> float:
    return time.time() - time.monotonic()


def _term_of(path: Path) -> int:
    number = path.stem.removeprefix("term-")
    return int(number) if number.isdigit() else 0
