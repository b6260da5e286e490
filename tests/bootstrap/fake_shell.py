"""Two shells that need no network.

`FakeShell` records what is asked of it and answers what a test has said it would; `LocalShell`
does it for real, with this machine's ``sh``: give it paths within a temporary directory.
"""

import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llx.bootstrap.shell import Completed, OnLine, OnProgress, Stream
from llx.errors import DeadlineError, HostError, LlxError, UnreachableError

OK = Completed(0, "", "")
Answer = Completed | LlxError | Callable[[tuple[str, ...], bytes], Completed]


def completed(stdout: str = "", *, exit_code: int = 0, stderr: str = "") -> Completed:
    """How a command ended, success by default."""
    return Completed(exit_code, stdout, stderr)


@dataclass(frozen=True)
class Ran:
    """A command that was asked for."""

    argv: tuple[str, ...]
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """A file that was put."""

    content: bytes
    mode: int


class FakeShell:
    """Answers commands by their first words; one that nobody expected fails the test.

    `ran` are all commands in order, `files` what was put and what `read` finds. With `is_dead`,
    everything raises UnreachableError, as a host that lost its power does.
    """

    def __init__(self, host: str = "h1") -> None:
        self.ran: list[Ran] = []
        self.files: dict[str, Kept] = {}
        self.streams: dict[tuple[str, int], Stream] = {}
        self.is_dead = False
        self.is_closed = False
        self._host = host
        self._answers: list[tuple[tuple[str, ...], list[Answer]]] = []
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return self._host

    @property
    def is_active(self) -> bool:
        return not (self.is_dead or self.is_closed)

    def answer(self, *words: str, by: Answer | Sequence[Answer] = OK) -> None:
        """Commands that begin with `words` get `by`; of several, one after the other, the last
        for good. What was said last wins.
        """
        answers = list(by) if isinstance(by, Sequence) else [by]
        self._answers.insert(0, (words, answers))

    @property
    def argvs(self) -> list[tuple[str, ...]]:
        """The commands alone."""
        return [each.argv for each in self.ran]

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        words = tuple(argv)
        with self._lock:
            self._require_life()
            self.ran.append(Ran(words, stdin, dict(environment or {})))
            found = self._find(words)
        if isinstance(found, LlxError):
            raise found
        done = found if isinstance(found, Completed) else found(words, stdin)
        for line in (done.stdout + done.stderr).splitlines():
            if on_line is not None:
                on_line(line)
        return done

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        self._require_life()
        self.files[path] = Kept(content, mode)

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        self.put(source.read_bytes(), path, mode=mode)
        if on_progress is not None:
            on_progress(source.stat().st_size, source.stat().st_size)

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        self._require_life()
        found = self.files.get(path)
        return None if found is None else found.content[:limit]

    def dial(self, address: str, port: int, *, timeout_s: float = 10.0) -> Stream:
        self._require_life()
        if (address, port) not in self.streams:
            raise UnreachableError(f"{self.host}: nothing listens on {address}:{port}")
        return self.streams[address, port]

    def close(self) -> None:
        self.is_closed = True

    def _find(self, words: tuple[str, ...]) -> Answer:
        for prefix, answers in self._answers:
            if words[: len(prefix)] == prefix:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        raise AssertionError(f"{self.host}: nobody expected {words}")

    def _require_life(self) -> None:
        if self.is_dead:
            raise UnreachableError(f"{self.host}: does not answer")


class LocalShell:
    """This machine as a host: commands and files are real.

    `argvs` are the commands that were run, `put_paths` the files that were put.
    """

    def __init__(
        self,
        host: str = "h1",
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argvs: list[tuple[str, ...]] = []
        self.put_paths: list[str] = []
        self.is_active = True
        self._host = host
        self._environment = environment
        self._cwd = cwd

    @property
    def host(self) -> str:
        return self._host

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        self.argvs.append(tuple(argv))
        own = dict(self._environment) if self._environment is not None else None
        variables = {**(own or {}), **(environment or {})} if own or environment else None
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                env=variables,
                cwd=self._cwd,
            )
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{self.host}: {argv[0]} took longer than {timeout_s} s") from None
        except OSError as error:  # what `sh` says of a command it does not find
            return Completed(127, "", f"sh: {argv[0]}: {error.strerror}")
        answer = Completed(done.returncode, done.stdout.decode(), done.stderr.decode())
        for line in (answer.stdout + answer.stderr).splitlines():
            if on_line is not None:
                on_line(line)
        return answer

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        self.put_paths.append(path)
        new = Path(f"{path}.new")
        try:
            new.touch(mode=0o600)
            new.write_bytes(content)
            new.chmod(mode)
            new.replace(path)
        except OSError as error:
            raise HostError(
                f"{path}: {error.strerror}", host=self.host, step="write a file"
            ) from None

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        content = source.read_bytes()
        self.put(content, path, mode=mode)
        if on_progress is not None:
            on_progress(len(content), len(content))

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        try:
            with Path(path).open("rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None

    def dial(self, address: str, port: int, *, timeout_s: float = 10.0) -> Stream:
        try:
            return socket.create_connection((address, port), timeout=timeout_s)
        except OSError:
            message = f"{self.host}: nothing listens on {address}:{port}"
            raise UnreachableError(message) from None

    def close(self) -> None:
        """Nothing to end."""
