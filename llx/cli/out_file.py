"""Files that a command is told to write its result to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from llx.errors import ConfigError


def check_writable(path: Path) -> None:
    """Before long work whose result goes there. Leaves what is there, or that nothing is.

    Raises:
        ConfigError: It cannot be written.
    """
    is_new = not path.exists()
    with _explained(path), path.open("a"):
        if is_new:
            path.unlink()


def write_result(path: Path, text: str) -> None:
    """Have a file say that.

    Raises:
        ConfigError: It cannot be written.
    """
    with _explained(path):
        path.write_text(text)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
