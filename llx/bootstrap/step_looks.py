"""Whether a probe holds: what its command printed against what was expected of it.

Pure but for the operator's own files, which are read to compare with.
"""

import re
import threading
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import assert_never

from llx.bootstrap import work
from llx.bootstrap.shell import Completed
from llx.bootstrap.work import Expectation
from llx.errors import ConfigError

_MARK = re.compile(r'comment "([^"]*)"$')
_NO_RULE = ("table ", "chain ", "type ", "}")


def holds(expects: Expectation, done: Completed) -> bool:
    """Whether a probe that ended like this holds.

    Raises:
        ConfigError: A file of the operator's to compare with cannot be read.
    """
    if not done.is_success:
        return False
    match expects:
        case None:
            return True
        case work.Prints(text):
            return done.stdout.strip() == text
        case work.HashOf(source, mode):
            return done.stdout.strip() == work.file_state(sha256(source), mode)
        case work.HashesOf(source):
            return set(listing(source).values()) <= set(done.stdout.splitlines())
        case work.Lacks(line):
            return line not in done.stdout.splitlines()
        case work.Rules(marks):
            lines = [each.strip() for each in done.stdout.splitlines() if each.strip()]
            rules = [each for each in lines if not each.startswith(_NO_RULE)]
            found = [_MARK.search(each) for each in rules]
            return [each[1] if each else "" for each in found] == list(marks)
        case _:
            assert_never(expects)


def sha256(path: Path) -> str:
    """Hex digest of a file; computed once for all hosts.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        at = path.stat()
        with _hashing:
            return _sha256(path, at.st_mtime_ns, at.st_size)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def listing(directory: Path) -> dict[str, str]:
    """The files below a directory, each with the line that `sha256sum` prints for it.

    Raises:
        ConfigError: There is no such directory, or a file in it cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory")
    names = sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    return {name: f"{sha256(directory / name)}  ./{name}" for name in names}


_hashing = threading.Lock()
"""One thread hashes; those that work on other hosts take what it found."""


@lru_cache(maxsize=4096)
def _sha256(path: Path, mtime_ns: int, size_bytes: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
