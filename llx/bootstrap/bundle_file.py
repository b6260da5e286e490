"""The file of `llx debug bundle`: a tar.gz, this user's alone, of masked text."""

import contextlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import yaml
from pydantic import JsonValue

from llx import __version__
from llx.bootstrap.masking import Mask
from llx.errors import ConfigError, ConflictError

CONTENTS: Final = "contents.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the bundle. `source`: where it is from; `is_tail`: only its end."""

    name: str
    source: str
    size_bytes: int
    is_tail: bool = False


class BundleFile:
    """Takes texts, masks them, and writes them down; may be used by several threads.

    Leaving the ``with`` by an exception takes the file away. A full disk is an OSError.

    Args:
        path: Where; there must be nothing yet.
        root: The directory that everything is below, in the file.

    Raises:
        ConflictError: There is something at `path`.
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path, root: str) -> None:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ConflictError(
                f"{path} is there already", remedy="give another name with -o"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        self.path = path
        self.entries: list[Entry] = []
        self.not_taken: dict[str, str] = {}
        """What could not be had, and why."""
        self._root = root
        self._lock = threading.Lock()
        self._file = os.fdopen(handle, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")  # noqa: SIM115 - `__exit__`

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_whole = False
        with self._lock:
            try:
                if kind is None:
                    self._tar.close()
                    self._file.close()
                    is_whole = True
            finally:
                if not is_whole:
                    self.path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # a full disk, once more
                        self._file.close()

    def add(self, mask: Mask, name: str, text: str, source: str, *, is_tail: bool = False) -> None:
        """A file, masked by what its name says that it is."""
        data = _masked(mask, name, text).encode(errors="replace")
        with self._lock:
            self._write(name, data)
            self.entries.append(Entry(name, source, len(data), is_tail))

    def lacks(self, mask: Mask, what: str, why: str) -> None:
        """Something could not be had."""
        with self._lock:
            self.not_taken[what] = mask.text(why)

    def add_contents(self, facts: Mapping[str, JsonValue]) -> None:
        """The last file: what is in the bundle, what is not and why; `facts` besides."""
        entries = sorted(self.entries, key=lambda each: each.name)
        contents: dict[str, JsonValue] = {
            "llx": __version__,
            "made_at": time.time(),
            **facts,
            "not_taken": dict(self.not_taken),
            "files": [
                {"name": e.name, "bytes": e.size_bytes, "source": e.source, "is_tail": e.is_tail}
                for e in entries
            ],
        }
        with self._lock:
            self._write(CONTENTS, _dumped(contents).encode())

    def _write(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(f"{self._root}/{name}")
        info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
        self._tar.addfile(info, io.BytesIO(data))


def _masked(mask: Mask, name: str, text: str) -> str:
    try:
        if name.endswith(".json"):
            return _dumped(mask.data(json.loads(text)))
        if name.endswith(".yaml"):
            return yaml.safe_dump(
                mask.data(yaml.safe_load(text)), sort_keys=False, allow_unicode=True
            )
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        return mask.text(text)
    return mask.json_lines(text) if name.endswith((".jsonl", ".jsonl.1")) else mask.text(text)


def _dumped(value: JsonValue) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
