"""One host's shell, as the bootstrap uses it: run a command, put and get files, reach a port.

The port of two implementations: SSH (`llx.bootstrap.ssh`) and the tests' fake.
"""

import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llx.errors import UnreachableError

OnLine = Callable[[str], None]
OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def is_success(self) -> bool:
        """Whether it ended with 0."""
        return self.exit_code == 0

    @property
    def stderr_tail(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(self.stderr.strip().splitlines()[-20:])


class ForbiddenError(UnreachableError):
    """The host's sshd forbids port forwarding."""


class Shell(Protocol):
    """A host that can be worked on. Paths are absolute paths there.

    Every method raises UnreachableError when the host does not answer within seconds, whatever the
    command's own timeout.
    """

    @property
    def host(self) -> str:
        """The host's name in cluster.yaml."""

    @property
    def is_active(self) -> bool:
        """Whether its connection still stands, as far as is known here."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run a command to its end; `on_line` hears each line of its output as it comes.

        The command is ended on the host, too, when `timeout_s` is over or the connection is lost.

        Raises:
            DeadlineError: It took longer.
        """

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        """Write a file atomically; at no moment has it more rights than `mode`.

        Raises:
            HostError: It cannot be written; says why.
        """

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        """Send a file, likewise.

        Raises:
            HostError: It cannot be written; says why.
        """

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        """At most `limit` bytes of a file; None if there is none."""

    def dial(self, address: str, port: int, *, timeout_s: float = 10.0) -> "Stream":
        """A TCP connection made from the host.

        Raises:
            ForbiddenError: The host's sshd makes none for anybody.
            UnreachableError: Nothing listens there, or the host does not answer.
        """

    def close(self) -> None:
        """End the connection."""


class Stream(Protocol):
    """A byte stream: a socket, or an SSH channel. Raises OSError; its `close` nothing."""

    def recv(self, size: int, /) -> bytes:
        """Some bytes; empty at the end."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""

    def settimeout(self, timeout_s: float | None, /) -> None:
        """Longest wait of `recv` and `sendall`."""

    def shutdown(self, how: int, /) -> None:
        """`socket.SHUT_WR` says: no more from here."""

    def close(self) -> None:
        """End it."""


def quoted(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command line of `argv` for a POSIX shell, as it is sent and shown."""
    assigned = [f"{key}={value}" for key, value in (environment or {}).items()]
    return shlex.join(["env", *assigned, *argv] if assigned else list(argv))


SHUT_WR = socket.SHUT_WR
