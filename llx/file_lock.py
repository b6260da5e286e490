"""Whether somebody holds a file's lock."""

import fcntl
import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether a process holds `path` exclusively (flock); False if there is no such file.

    Raises:
        OSError: Its file system knows no locks.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
