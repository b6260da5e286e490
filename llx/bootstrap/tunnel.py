"""A port of a host, reached through its shell, as a unix socket here.

    with Tunnel(shell, "127.0.0.1", 8900) as tunnel:
        httpx.Client(transport=httpx.HTTPTransport(uds=tunnel.path))

The socket lies in a directory that is this user's alone: nobody else on this machine gets in.
"""

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from llx.bootstrap.shell import SHUT_WR, Shell, Stream
from llx.errors import LlxError

_CHUNK = 1 << 16


class Tunnel:
    """Listens from its creation to `close`; each connection goes to `address`:`port`."""

    def __init__(self, shell: Shell, address: str, port: int) -> None:
        self._shell = shell
        self.address = address
        self.port = port
        self._lock = threading.Lock()
        self._is_closed = False
        self._open: set[socket.socket | Stream] = set()
        self._threads: list[threading.Thread] = []
        self._directory = tempfile.mkdtemp(prefix="llx-")  # 0700
        self.path = str(Path(self._directory) / "tunnel")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_used(self) -> bool:
        """Whether somebody is connected."""
        with self._lock:
            return bool(self._open)

    def close(self) -> None:
        """End every connection and stop listening."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            # Who is here first: of an end that the tunnel has made, no answer shall come back.
            ends = sorted(self._open, key=lambda end: not isinstance(end, socket.socket))
            threads = list(self._threads)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in ends:
            _end(each)
        for thread in threads:
            thread.join(5)
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, work: Callable[..., None], *args: socket.socket | Stream) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, name="tunnel", daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)
        return thread

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        """One connection: this thread carries what comes back, another what goes there."""
        with connection:
            if not self._hold(connection):
                return
            try:
                stream = self._shell.dial(self.address, self.port)
            except LlxError:
                self._release(connection)
                return
            with contextlib.closing(stream):
                if self._hold(stream):
                    stream.settimeout(None)
                    there = self._start(_carry, connection, stream)
                    _carry(stream, connection)
                    there.join()
                    self._release(stream)
            self._release(connection)

    def _hold(self, end: socket.socket | Stream) -> bool:
        with self._lock:
            if not self._is_closed:
                self._open.add(end)
            return not self._is_closed

    def _release(self, end: socket.socket | Stream) -> None:
        with self._lock:
            self._open.discard(end)


def _carry(source: socket.socket | Stream, sink: socket.socket | Stream) -> None:
    """Carry bytes until the source ends, then say so to the sink."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(SHUT_WR)


def _end(end: socket.socket | Stream) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    if not isinstance(end, socket.socket):
        end.close()
