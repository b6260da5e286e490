"""The hashed lock of a node environment, one per platform, and how to read it.

``cpu.lock`` and ``cuda.lock`` are written by ``refresh.py`` and by nothing else. They name every
package by exact version and hash, and no place to get it from: that is the operator's pip
configuration's business.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class LockEntry:
    """One package of a lock.

    Attributes:
        name: The distribution's name, as the lock writes it.
        requirement: ``name==version``, without marker.
        marker: The environment marker, empty when it always applies.
        hashes: ``sha256:…`` of each file that may be installed.
    """

    name: str
    requirement: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.requirement} ; {self.marker}" if self.marker else self.requirement
        return " \\\n".join([head, *(f"    --hash={digest}" for digest in self.hashes)])


def lock_text(platform: str) -> str:
    """Return the shipped lock of ``platform`` (``cpu`` or ``cuda``)."""
    return (files(__name__) / f"{platform}.lock").read_text(encoding="utf-8")


def parse_lock(text: str) -> list[LockEntry]:
    """Read a requirements file in pip's hashed form: entries joined by backslashes."""
    logical = text.replace("\\\n", " ").splitlines()
    return [_parse_entry(line) for line in logical if line.strip() and not line.startswith("#")]


def render_lock(entries: Sequence[LockEntry]) -> str:
    """Write entries back as a requirements file."""
    return "".join(f"{entry}\n" for entry in entries)


def _parse_entry(line: str) -> LockEntry:
    head, *hashes = line.split("--hash=")
    requirement, _, marker = head.partition(";")
    name = _NAME.match(requirement)
    assert name is not None, f"not a locked requirement: {line!r}"
    return LockEntry(
        name=name.group(),
        requirement=requirement.strip(),
        marker=marker.strip(),
        hashes=tuple(digest.strip() for digest in hashes),
    )
