"""Files that a host sends as text: marked lines of base64, in them a gzipped tar archive.

A shell hands on lines as they come, so neither end keeps the whole of it in memory, and nothing is
written on the host.
"""

import base64
import binascii
import gzip
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from llx.errors import LlxError

MARK = ":"
"""Begins each line of an archive."""

_BROKEN = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


class BrokenArchiveError(Exception):
    """The lines are no archive, or not all of one."""


class Receiver:
    """Takes the lines, then unpacks what they were. Use it as a context."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._is_broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def take_line(self, line: str) -> None:
        """One line as it comes; what is not marked is somebody else's word."""
        if not line.startswith(MARK):
            return
        try:
            self._file.write(base64.b64decode(line[len(MARK) :], validate=True))
        except (binascii.Error, ValueError):
            self._is_broken = True

    def unpack(self, to: Path) -> tuple[int, int]:
        """Write the files below `to`, for the owner alone; how many, and of how many bytes.

        Nothing but plain files, and none outside: a host says what they are called.

        Raises:
            BrokenArchiveError: It is not whole.
            LlxError: A file cannot be written here.
        """
        if self._is_broken:
            raise BrokenArchiveError("a line is not base64")
        if self._file.tell() == 0:
            return 0, 0
        self._file.seek(0)
        count = size_bytes = 0
        try:
            with tarfile.open(fileobj=self._file, mode="r:gz") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None or path.is_absolute() or ".." in path.parts:
                        continue
                    target = to / path
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    target.touch(mode=0o600)
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    count, size_bytes = count + 1, size_bytes + member.size
        except _BROKEN as error:
            raise BrokenArchiveError(str(error)) from None
        except OSError as error:
            raise LlxError(f"{error.filename or to}: cannot be written: {error.strerror}") from None
        return count, size_bytes
