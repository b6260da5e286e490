"""One SSH connection to a head's host for many verbs: the verbs' side of it.

The first verb that reads through SSH leaves a process behind that connects, too, and lends its
connection to the verbs after it until none has come for a while: what OpenSSH calls ControlPersist.
That process, its master, is `llx.bootstrap.ssh_master`; where it listens it says in `MASTER_FILE`,
which it holds locked. It lends itself to this user alone: its sockets are in directories 0700.

Nearly every verb on hosts comes through here, so little is imported.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llx import __version__
from llx.bootstrap.contexts import SETTINGS_FILE
from llx.file_lock import is_held

if TYPE_CHECKING:
    from llx.client import Cluster

MASTER_FILE = "ssh-master.json"
"""In a cluster's directory, while it is up."""

_ASK_TIMEOUT_S = 5.0
"""A host that takes longer to say where its head is: the verb goes its own way."""


def shared_control(state_dir: Path) -> "Cluster | None":
    """The control API through the connection that is kept to its host; None if none is of use.

    Then a connection of one's own says what is wrong, if anything is.
    """
    path = state_dir / MASTER_FILE
    try:
        master = json.loads(path.read_bytes())
        if master["llx"] != __version__ or master["settings"] != settings_stamp(state_dir):
            return None  # of another release; or its head may be elsewhere by now
        if not is_held(path):
            return None  # it has died, and what it left says nothing
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ASK_TIMEOUT_S)
            asking.connect(_own(master["path"]))
            head = json.loads(b"".join(iter(lambda: asking.recv(1 << 16), b"")))
        url, token, name, remedy = (str(head[key]) for key in ("url", "token", "name", "remedy"))
        way = _own(head["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    from llx.client import Cluster
    from llx.lean_httpx import httpx
    from llx.secret import Secret

    transport = httpx.HTTPTransport(uds=way)
    return Cluster(url, Secret(token), transport=transport, name=name, remedy=remedy)


def begin_sharing(state_dir: Path, persist_s: float, variables: Mapping[str, str]) -> None:
    """Start a master that ends `persist_s` after its last use, unless there is one.

    It is not waited for, and nothing comes of it where it cannot be started.
    """
    import subprocess

    path = state_dir / MASTER_FILE
    # -P: what lies in the operator's directory is not to be imported.
    module = ("-P", "-m", "llx.bootstrap.ssh_master")
    try:
        if is_held(path):
            if not _is_of_another_release(path):
                return
            path.unlink(missing_ok=True)  # by which it ends
        master = subprocess.Popen(
            [sys.executable, *module, str(state_dir), str(persist_s)], env=dict(variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        return
    # A verb that goes on for longer than its master leaves no zombie.
    threading.Thread(target=master.wait, name="ssh-master", daemon=True).start()


def _is_of_another_release(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["llx"] != __version__)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # it has not said yet


def settings_stamp(state_dir: Path) -> int:
    """Tells the settings of a cluster that is up from those before and after.

    Raises:
        OSError: There are none: it is down.
    """
    return (state_dir / SETTINGS_FILE).stat().st_mtime_ns


def _own(path: str) -> str:
    """A socket's path, if its directory is this user's.

    Raises:
        PermissionError: It is not.
    """
    if os.lstat(Path(path).parent).st_uid != os.getuid():
        raise PermissionError(path)
    return path
