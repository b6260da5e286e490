"""The process that keeps an SSH connection to a head's host and lends it to verbs.

    python -m llx.bootstrap.ssh_master STATE_DIR PERSIST_S

Started by `llx.bootstrap.ssh_sharing`, which tells what it is for. Whoever connects to its socket
is told, as JSON, where the head is now: read from the host each time, so that a token that was
renewed or a head that has moved to another port is none of this process's business. Requests then
travel through a second socket, a `Tunnel`.

It ends by itself: unused for `PERSIST_S`; when the connection is lost; when the cluster's settings
here are others or gone, or another master has taken its place: then once nobody is connected any
more. What it meets it tells nobody: a verb that it is of no use to connects itself, and says what
is wrong.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llx import __version__
from llx.bootstrap.cluster_dir import running_settings
from llx.bootstrap.hosts_world import Connect, layout_of
from llx.bootstrap.opening import connect_to
from llx.bootstrap.remote_control import Head, find_head
from llx.bootstrap.shell import Shell
from llx.bootstrap.ssh_sharing import MASTER_FILE, settings_stamp
from llx.bootstrap.tunnel import Tunnel
from llx.environment import Environment
from llx.errors import LlxError
from llx.settings import HostSettings

LOOK_EVERY_S: Final = 0.5
_SEND_TIMEOUT_S = 2.0
_GRACE_S = 3.0
"""So long after it was told the way a verb may take to come."""


def lend(state_dir: Path, persist_s: float, connect: Connect) -> None:
    """Lend a connection until it is of no use any more.

    Raises:
        LlxError: There can be none.
        OSError: The cluster is down.
    """
    stamp, path = settings_stamp(state_dir), state_dir / MASTER_FILE
    with _locked(path) as file:
        if file is None:
            return
        settings = running_settings(state_dir)
        if settings is None or settings.head_host is None:
            return
        with contextlib.closing(connect(settings.head_host)) as shell:
            layout = layout_of(shell, settings.cluster)
            master = _Master(shell, lambda: find_head(shell, layout))
            try:
                told = {"llx": __version__, "path": master.path, "settings": stamp}
                os.pwrite(file, json.dumps(told).encode(), 0)
                master.serve(persist_s, lambda: _is_meant(state_dir, file, stamp))
                _remove(path, file)
                master.finish()
            finally:
                master.close()


class _Master:
    """Answers where the head is, over `shell`, and keeps the way there open."""

    def __init__(self, shell: Shell, find: Callable[[], Head]) -> None:
        self._shell = shell
        self._find = find
        self._lock = threading.Lock()
        self._tunnels: dict[tuple[str, int], Tunnel] = {}
        """By where they end. A head that has moved leaves one that nobody uses."""
        self._num_asking = 0
        self._used_at = time.monotonic()
        self._is_closed = False
        self._is_late = False
        """A verb has gone before it was answered; so would the next one, and have waited."""
        self._directory = tempfile.mkdtemp(prefix="llx-")  # 0700
        self.path = str(Path(self._directory) / "ask")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._listener.settimeout(LOOK_EVERY_S)

    def serve(self, persist_s: float, is_meant: Callable[[], bool]) -> None:
        """Answer until it is of no use."""
        self._used_at = time.monotonic()
        while is_meant() and self._is_good() and self._idle_s() < persist_s:
            with contextlib.suppress(TimeoutError):
                asking, _ = self._listener.accept()
                with self._lock:
                    self._num_asking += 1
                threading.Thread(target=self._answer, args=(asking,), daemon=True).start()

    def finish(self) -> None:
        """Answer nobody any more; those who are connected, or about to, may finish."""
        self._listener.close()
        while self._shell.is_active and self._idle_s() < _GRACE_S:
            time.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        """End every connection."""
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        with self._lock:
            self._is_closed = True
            tunnels = list(self._tunnels.values())
        for each in tunnels:
            each.close()

    def _is_good(self) -> bool:
        return self._shell.is_active and not self._is_late

    def _idle_s(self) -> float:
        """Since when nobody asks or is connected, in seconds."""
        with self._lock:
            if self._num_asking or any(each.is_used for each in self._tunnels.values()):
                self._used_at = time.monotonic()
            return time.monotonic() - self._used_at

    def _answer(self, asking: socket.socket) -> None:
        """Say nothing if there is no head to be told of."""
        asking.settimeout(_SEND_TIMEOUT_S)
        try:
            with asking, contextlib.suppress(LlxError, ConnectionAbortedError):
                told = json.dumps(self._told(self._find())).encode()
                try:
                    asking.sendall(told)
                except OSError:
                    self._is_late = True
        finally:
            with self._lock:
                self._num_asking -= 1

    def _told(self, head: Head) -> dict[str, str]:
        place = head.address, head.port
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError
            if place not in self._tunnels:
                self._tunnels[place] = Tunnel(self._shell, *place)
            tunnel = self._tunnels[place]
        return {
            "url": head.url,
            "token": head.token.reveal(),
            "path": tunnel.path,
            "name": head.name,
            "remedy": head.remedy,
        }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The file, held and empty; None if another master holds it. It is gone afterwards."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_at(path, file):
            yield None  # the one before has just removed it
            return
        os.ftruncate(file, 0)
        try:
            yield file
        finally:
            _remove(path, file)
    finally:
        os.close(file)


def _remove(path: Path, file: int) -> None:
    if _is_at(path, file):
        path.unlink(missing_ok=True)


def _is_at(path: Path, file: int) -> bool:
    """Whether the path still names this file."""
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except OSError:
        return False


def _is_meant(state_dir: Path, file: int, stamp: int) -> bool:
    """Whether verbs would still ask this master, about a head where it looks for it."""
    try:
        return _is_at(state_dir / MASTER_FILE, file) and settings_stamp(state_dir) == stamp
    except OSError:
        return False


def main(state_dir: str, persist_s: str) -> None:
    """Be a master; one that cannot be one ends without a word."""
    environment = Environment.current()

    def connect(host: HostSettings) -> Shell:
        shell = connect_to(host, environment)
        os.chdir("/")  # nobody's directory is kept busy
        return shell

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    with contextlib.suppress(LlxError, OSError):
        lend(Path(state_dir), float(persist_s), connect)


if __name__ == "__main__":
    main(*sys.argv[1:])
