"""A host's shell that writes into the host's log what it is asked to do and what came of it.

For work on a host that is no playbook. What goes to a command's stdin is never written down.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llx.bootstrap.play_log import PlayLog
from llx.bootstrap.shell import Completed, OnLine, OnProgress, Shell, Stream, quoted
from llx.errors import DeadlineError, HostError
from llx.secret import Secret

IsNoise = Callable[[str], bool]


@contextmanager
def logged(
    shell: Shell,
    log: Path,
    what: str,
    *,
    secrets: Sequence[Secret] = (),
    is_noise: IsNoise = lambda _: False,
) -> Iterator[Shell]:
    """`shell`, logged; a failure on the host within says where the log is.

    Args:
        shell: The host.
        log: Appended to, 0600.
        what: Is done; begins each line.
        secrets: Never written.
        is_noise: Lines of output that are not worth keeping.
    """
    journal = PlayLog(log, what, secrets)
    try:
        yield LoggedShell(shell, journal, is_noise)
    except BaseException as error:
        journal.write(f"failed: {error}")
        if isinstance(error, HostError | DeadlineError):
            error.message = journal.masked(error.message)
            error.detail = journal.masked(error.detail)
            error.remedy = "; ".join(filter(None, [error.remedy, f"see {log}"]))
        raise


class LoggedShell:
    """Passes everything on (`llx.bootstrap.shell.Shell`)."""

    def __init__(self, shell: Shell, journal: PlayLog, is_noise: IsNoise) -> None:
        self._shell = shell
        self._journal = journal
        self._is_noise = is_noise

    @property
    def host(self) -> str:
        """See `Shell.host`."""
        return self._shell.host

    @property
    def is_active(self) -> bool:
        """See `Shell.is_active`."""
        return self._shell.is_active

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        """See `Shell.run`."""

        def tee(line: str) -> None:
            self._note(line)
            if on_line is not None:
                on_line(line)

        self._journal.write(f"$ {quoted(argv, environment)}")
        done = self._shell.run(
            argv,
            timeout_s=timeout_s,
            stdin=stdin,
            environment=environment,
            on_line=None if on_line is None else tee,
        )
        if on_line is None:
            for line in (done.stdout + done.stderr).splitlines():
                self._note(line)
        self._journal.write(f"= exit code {done.exit_code}")
        return done

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        """See `Shell.put`."""
        self._journal.write(f"put {path} ({mode:o})")
        self._shell.put(content, path, mode=mode)

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        """See `Shell.put_file`."""
        self._journal.write(f"send {source} -> {path}")
        self._shell.put_file(source, path, mode=mode, on_progress=on_progress)

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        """See `Shell.read`."""
        return self._shell.read(path, limit=limit)

    def dial(self, address: str, port: int, *, timeout_s: float = 10.0) -> Stream:
        """See `Shell.dial`."""
        return self._shell.dial(address, port, timeout_s=timeout_s)

    def close(self) -> None:
        """See `Shell.close`."""
        self._shell.close()

    def _note(self, line: str) -> None:
        if not self._is_noise(line):
            self._journal.write(f"| {line}")
