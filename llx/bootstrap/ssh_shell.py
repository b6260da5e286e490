"""Working on a connected host: `Shell` over an SSH connection. Knows nothing of paramiko."""

import contextlib
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import ParamSpec, Protocol, Self

from llx.bootstrap.remote_command import KILL_AFTER_S, tied
from llx.bootstrap.remote_session import (
    MAX_OUTPUT,
    Channel,
    Ended,
    OutputTooLongError,
    OverdueError,
    converse,
)
from llx.bootstrap.shell import Completed, ForbiddenError, OnLine, OnProgress, Stream
from llx.bootstrap.ssh_target import SshTarget
from llx.errors import DeadlineError, HostError, UnreachableError

_Args = ParamSpec("_Args")
_MAX_SESSIONS = 8  # sshd allows 10 on one connection
_GRACE_S = 3.0
_CHUNK = 1 << 15  # what one message of SFTP carries
_OVERDUE_CODES = (124, None)  # of `timeout`: ended by SIGTERM; by SIGKILL, itself included
_NO_FILE = "No such file or directory"

# Nobody else can have opened the file before it has its mode; a connection lost in the middle is
# an input that ends too early.
_CREATE = 'umask 077; set -C; [ ! -d "$2" ] || { echo "$2 is a directory" >&2; exit 1; }; '
_PUT = _CREATE + (
    'cat >"$1" && [ "$(wc -c <"$1")" -eq "$3" ] && chmod "$4" "$1" && mv -f "$1" "$2" || '
    '{ rm -f "$1"; exit 1; }'
)
# What an upload that was broken off has left an hour ago goes first.
_OPEN = _CREATE + (
    'find "${2%/*}" -maxdepth 1 -name ".*.part" -mmin +60 -exec rm -f {} + 2>/dev/null; : >"$1"'
)
_PROBE = 'export LC_ALL=C; head -c 1000000 /dev/zero >>"$1"; rm -f "$1"'
_FINISH = 'chmod "$4" "$1" && mv -f "$1" "$2" || { rm -f "$1"; exit 1; }'


class RemoteFile(Protocol):
    """A file opened for writing over SFTP."""

    def write(self, data: bytes, /) -> None:
        """Append all of it."""


class SessionChannel(Channel, Protocol):
    """A channel on which a command can be started."""

    def exec_command(self, command: str, /) -> None:
        """Have the user's shell run it."""

    def close(self) -> None:
        """End it."""


class Connection(Protocol):
    """An authenticated SSH connection."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its methods and channels raise."""

    @property
    def is_active(self) -> bool:
        """Whether it stands."""

    @property
    def failure(self) -> str:
        """Why it does not."""

    def session(self) -> SessionChannel:
        """A new channel for a command."""

    def stream(self, address: str, port: int, timeout_s: float) -> Stream:
        """A TCP connection made by the host."""

    def upload(self, path: str) -> contextlib.AbstractContextManager[RemoteFile]:
        """An existing file, to write without waiting; leaving waits for all of it."""

    def close(self) -> None:
        """End it, and those under it."""


class SshShell:
    """A connected host: `llx.bootstrap.shell.Shell`. Every method may be called from any thread."""

    def __init__(self, target: SshTarget, connection: Connection) -> None:
        self.target = target
        self._connection = connection
        self._sessions = threading.BoundedSemaphore(_MAX_SESSIONS)

    @property
    def host(self) -> str:
        """The host's name in cluster.yaml."""
        return self.target.name

    @property
    def is_active(self) -> bool:
        """Whether its connection still stands, as far as is known here."""
        return self._connection.is_active

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        """See `Shell.run`. With `on_line`, the result has the end of the output only."""
        code, ended = self._execute(argv, timeout_s, stdin, environment, on_line)
        stdout, stderr = (each.decode("utf-8", "replace") for each in (ended.stdout, ended.stderr))
        return Completed(code, stdout, stderr)

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        """See `Shell.put`."""
        self._script(_PUT, _beside(path), path, len(content), mode, stdin=content)

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        """See `Shell.put_file`. By SFTP, as fast as the connection carries it."""
        size = source.stat().st_size
        temporary = _beside(path)
        self._script(_OPEN, temporary, path, size, mode)
        try:
            with self._session(f"write {path}"), self._connection.upload(temporary) as file:
                _pour(source, file, size, on_progress)
            self._require_size(temporary, path, size)
        except BaseException as error:
            with contextlib.suppress(UnreachableError, DeadlineError):
                # SFTP says "Failure" to most things; the shell says why.
                reason = self.run(["sh", "-c", _PROBE, "sh", temporary], timeout_s=5).stderr
                if isinstance(error, HostError) and reason:
                    raise self._failed(f"write {path}", None, reason.strip()) from None
            raise
        self._script(_FINISH, temporary, path, size, mode)

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        """See `Shell.read`."""
        argv = ["head", "-c", str(limit), "--", path]
        code, ended = self._execute(argv, 30, b"", {"LC_ALL": "C"}, None)
        if code == 0:
            return ended.stdout
        reason = ended.stderr.decode("utf-8", "replace").strip()
        if reason.endswith(_NO_FILE):
            return None
        raise self._failed(f"read {path}", code, reason)

    def dial(self, address: str, port: int, *, timeout_s: float = 10.0) -> Stream:
        """See `Shell.dial`."""
        try:
            return self._connection.stream(address, port, timeout_s)
        except self._connection.errors as error:
            if not self._connection.is_active:
                raise self._lost(f"reach {address} port {port}") from None
            reason = getattr(error, "text", "") or str(error)
            what = f"{self.host}: {address} port {port} is not reached from there: {reason}"
            if "prohibited" in reason.lower():
                remedy = "set AllowTcpForwarding yes in its sshd_config"
                raise ForbiddenError(what, remedy=remedy) from None
            raise UnreachableError(what) from None

    def close(self) -> None:
        """End the connection, and those under it."""
        self._connection.close()

    # ------------------------------------------------------------------ commands

    def _execute(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes,
        environment: Mapping[str, str] | None,
        on_line: OnLine | None,
    ) -> tuple[int, Ended]:
        """Run `argv`; its exit code and output."""
        line = tied(argv, environment, timeout_s=timeout_s, num_input=len(stdin))
        doing = " ".join(shlex.join(argv).split())[:80]
        began = time.monotonic()
        deadline = began + timeout_s + KILL_AFTER_S + _GRACE_S
        tell = None if on_line is None else _shielded(on_line)
        with self._session(doing), contextlib.closing(self._connection.session()) as channel:
            try:
                channel.exec_command(line)
                ended = converse(channel, stdin=stdin, deadline=deadline, on_line=tell)
            except OverdueError:
                raise self._overdue(doing, timeout_s) from None
            except OutputTooLongError:
                message = f"wrote more than {MAX_OUTPUT >> 20} MiB"
                raise HostError(message, host=self.host, step=doing) from None
        if ended.exit_code is None and not self._connection.is_active:
            raise self._lost(doing)
        if ended.exit_code in _OVERDUE_CODES and time.monotonic() - began >= timeout_s:
            raise self._overdue(doing, timeout_s)
        if ended.exit_code is None:
            raise self._failed(doing, None, "it was killed")
        return ended.exit_code, ended

    @contextlib.contextmanager
    def _session(self, doing: str) -> Iterator[None]:
        """One of the few that sshd allows; what goes wrong with the connection is said as such."""
        with self._sessions:
            try:
                yield
            except _CallerError as wrapped:
                raise wrapped.error from None
            except self._connection.errors as error:
                if not self._connection.is_active:
                    raise self._lost(doing) from None
                raise HostError(
                    str(error) or type(error).__name__, host=self.host, step=doing
                ) from None

    def _script(
        self, script: str, temporary: str, path: str, size: int, mode: int, stdin: bytes = b""
    ) -> None:
        argv = ["sh", "-c", script, "sh", temporary, path, str(size), f"{mode:o}"]
        code, ended = self._execute(argv, 60 + size / 1e6, stdin, {"LC_ALL": "C"}, None)
        if code != 0:
            reason = ended.stderr.decode("utf-8", "replace").replace(temporary, path).strip()
            raise self._failed(f"write {path}", code, reason or "not all of it arrived")

    def _require_size(self, temporary: str, path: str, size: int) -> None:
        argv = ["sh", "-c", '[ "$(wc -c <"$1")" -eq "$2" ]', "sh", temporary, str(size)]
        if not self.run(argv).is_success:
            raise self._failed(f"write {path}", None, "not all of it arrived")

    # ------------------------------------------------------------------ errors

    def _failed(self, step: str, code: int | None, reason: str) -> HostError:
        return HostError(
            reason.splitlines()[-1] if reason else f"exit code {code}",
            host=self.host,
            step=step,
            process_exit_code=code,
            stderr_tail=reason,
        )

    def _overdue(self, doing: str, timeout_s: float) -> DeadlineError:
        return DeadlineError(f"{self.host}: {doing}: took longer than {timeout_s:g} s")

    def _lost(self, doing: str) -> UnreachableError:
        return UnreachableError(
            f"{self.host}: {doing}: the connection was lost: {self._connection.failure}",
            remedy=f"is {self.host} up? try: ssh {self.target.user}@{self.target.address}",
        )


class _CallerError(Exception):
    """A function we were given raised something: no failure of the connection."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _shielded(function: Callable[_Args, None]) -> Callable[_Args, None]:
    def call(*args: _Args.args, **kwargs: _Args.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            raise _CallerError(error) from error

    return call


def _pour(source: Path, file: RemoteFile, size: int, on_progress: OnProgress | None) -> None:
    num_done = 0
    tell = None if on_progress is None else _shielded(on_progress)
    with source.open("rb") as given:
        while data := given.read(_CHUNK):
            file.write(data)
            num_done += len(data)
            if tell is not None:
                tell(num_done, size)


def _beside(path: str) -> str:
    """A name in the same directory, nobody else's."""
    target = PurePosixPath(path)
    return str(target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part"))
