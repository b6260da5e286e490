"""Importing a library without what it imports for a part of it that is not used here."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Within the block importing `name` fails, as if it were not installed; if it has not been."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # that is how it is said
    try:
        yield
    finally:
        del sys.modules[name]
