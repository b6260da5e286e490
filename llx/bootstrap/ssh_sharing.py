"""One SSH connection to a head's host for many verbs: the verbs' side of it.

The first verb that reads through SSH leaves a process behind that connects, too, and lends its
connection to the verbs after it until none has come for a while: what OpenSSH calls ControlPersist.
That process, its master, is `llx.bootstrap.ssh_master`; where it listens it says in `MASTER_FILE`,
which it holds locked. It lends itself to this user alone: its sockets are in directories 0700.

Nearly every verb on hosts comes through here, so little is imported.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llx.bootstrap.contexts import SETTINGS_FILE

if TYPE_CHECKING:
    from llx.client import ControlClient

MASTER_FILE = "ssh-master.json"
"""In a cluster's directory, while it is up."""

_ASK_TIMEOUT_S = 2.0
"""A host that takes longer to say where its head is: the verb goes its own way."""


def shared_control(state_dir: Path) -> "ControlClient | None":
    """The control API through the connection that is kept to its host; None if none is of use.

    Then a connection of one's own says what is wrong, if anything is.
    """
    try:
        master = json.loads((state_dir / MASTER_FILE).read_bytes())
        if master["settings"] != settings_stamp(state_dir):
            return None  # its head may be elsewhere by now
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ASK_TIMEOUT_S)
            asking.connect(master["path"])
            head = json.loads(b"".join(iter(lambda: asking.recv(1 << 16), b"")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    from llx.client import ControlClient
    from llx.lean_httpx import httpx
    from llx.secret import Secret

    return ControlClient(
        head["url"],
        Secret(head["token"]),
        transport=httpx.HTTPTransport(uds=head["path"]),
        name=head["name"],
        remedy=head["remedy"],
    )


def begin_sharing(state_dir: Path, persist_s: float, variables: Mapping[str, str]) -> None:
    """Start a master that ends `persist_s` after its last use, unless there is one.

    It is not waited for, and nothing comes of it where it cannot be started.
    """
    if _is_held(state_dir / MASTER_FILE):
        return
    argv = [sys.executable, "-m", "llx.bootstrap.ssh_master", str(state_dir), str(persist_s)]
    silent = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    with contextlib.suppress(OSError, NotImplementedError):  # the latter: no `setsid` here
        os.posix_spawn(argv[0], argv, variables, file_actions=silent, setsid=True)


def settings_stamp(state_dir: Path) -> int:
    """Tells the settings of a cluster that is up from those before and after.

    Raises:
        OSError: There are none: it is down.
    """
    return (state_dir / SETTINGS_FILE).stat().st_mtime_ns


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
