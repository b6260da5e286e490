"""The wire between a test and the processes it torments: JSON lines over a socket pair."""

import json
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


class Control:
    """The process's end. `serve` reads on a thread of its own; `tell` may be called from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def tell(self, what: str, **fields: object) -> None:
        """Say something to the test."""
        line = json.dumps({"what": what, **fields}).encode() + b"\n"
        with self._lock:
            self._connection.sendall(line)

    def serve(self, obey: Callable[[Message], None]) -> None:
        """Start to obey; each command is called on the reading thread."""

        def read() -> None:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    obey(json.loads(line))

        threading.Thread(target=read, name="chaos-control", daemon=True).start()


class Reins:
    """The test's end: never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self.is_open = True

    def fileno(self) -> int:
        """For pollers."""
        return self._connection.fileno()

    def tell(self, what: str, **fields: object) -> None:
        """Give a command; one to a process that has died is lost."""
        try:
            self._connection.sendall(json.dumps({"what": what, **fields}).encode() + b"\n")
        except OSError:
            self.is_open = False

    def hear(self) -> list[Message]:
        """What has come."""
        while self.is_open and select.select([self._connection], [], [], 0)[0]:
            try:
                data = self._connection.recv(1 << 16)
            except OSError:
                data = b""
            self.is_open = bool(data)
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let go. Safe to call twice."""
        self.is_open = False
        self._connection.close()
