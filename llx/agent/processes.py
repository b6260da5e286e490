"""Processes under shims, seen from outside: start one, find it again, ask, signal, stop.

The other side of `llx.agent.shim`; all of it blocking, for threads or a CLI. What is true of a
process comes from three places, in this order: the shim's socket (only a living shim answers),
``/proc`` with the start time (a number alone proves nothing), the shim's last record.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from llx.agent import shim
from llx.errors import ConflictError, DeadlineError, NotFoundError, RemoteError, UnreachableError
from llx.file_lock import is_held

_SHIM_FILE = Path(shim.__file__)
_ANSWER_S = 2
_STOP_MARGIN_S = 5.0
_KILLED_S = 1.0
"""What is killed is gone by then, unless the kernel does not let it go."""
_MAX_ANSWER_BYTES = 64 << 10


class ProcessState(StrEnum):
    """`lost`: the shim was killed, so the kernel killed the child and nobody saw how it ended."""

    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"


class ShimRecord(msgspec.Struct, frozen=True):
    """What a shim writes of itself and its child."""

    shim_pid: int
    shim_start: int
    child_pid: int
    child_start: int
    state: ProcessState
    started_at: float
    mark: str
    exit_code: int | None = None
    signal: int | None = None
    hung: str = ""
    """Why its shim took it for hung and killed it; empty: it did not."""
    stderr_tail: str = ""
    exited_at: float | None = None

    @property
    def ending(self) -> str:
        """How it ended, in words; empty while it runs."""
        match self.state:
            case ProcessState.RUNNING:
                return ""
            case ProcessState.LOST:
                return "killed together with its shim"
            case ProcessState.EXITED if self.hung:
                return f"hung ({self.hung}), and was killed"
            case ProcessState.EXITED if self.signal is not None:
                return f"killed by {_signal_name(self.signal)}"
            case ProcessState.EXITED:
                return f"exit code {self.exit_code}"


class Process:
    """A process under a shim, by its directory. Made by `spawn` and `attach`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.name

    @property
    def log_path(self) -> Path:
        """What this run writes to stdout and stderr."""
        return self.directory / "log"

    def status(self) -> ShimRecord:
        """The latest record, corrected by what ``/proc`` says; does not disturb the shim.

        Raises:
            NotFoundError: There is no record any more.
        """
        record = _read_record(self.directory)
        if record is None:
            raise NotFoundError(f"{self.directory}: no process was started there")
        if record.state is not ProcessState.RUNNING or _is_shim_alive(record):
            return record
        # The shim ends a moment after it writes its last record: look again before calling it lost.
        record = _read_record(self.directory) or record
        if record.state is not ProcessState.RUNNING:
            return record
        return msgspec.structs.replace(record, state=ProcessState.LOST)

    def is_alive(self) -> bool:
        """Whether the shim, and therefore its child, is there."""
        try:
            return self.status().state is ProcessState.RUNNING
        except NotFoundError:
            return False

    def ask(self) -> ShimRecord:
        """The record from the shim itself.

        Raises:
            UnreachableError: No shim answers there.
        """
        return self._request({"op": "status"}, _ANSWER_S)

    def signal(self, number: int) -> None:
        """Send a signal to the child's process group.

        Raises:
            UnreachableError: No shim answers there.
        """
        self._request({"op": "signal", "signal": number}, _ANSWER_S)

    def stop(
        self,
        grace_s: float,
        *,
        margin_s: float = _STOP_MARGIN_S,
        sweep: Callable[[str], list[int]] = shim.kill_marked,
    ) -> ShimRecord:
        """TERM to the child's group, KILL after `grace_s`; returns when all of it is gone.

        Stopping what has ended is no error. A shim that has not answered `margin_s` later is
        killed itself. A second stop with less grace cuts the first one short.

        Args:
            grace_s: Time to end by itself.
            margin_s: Time beyond that for the shim to answer.
            sweep: Kills what carries a mark; returns who is left.

        Raises:
            RemoteError: Something of it cannot be killed; names the pids.
        """
        grace_s = min(max(0.0, grace_s), shim.MAX_GRACE_S)
        record = None
        if self.is_alive():
            try:
                record = self._request({"op": "stop", "grace_s": grace_s}, grace_s + margin_s)
            except UnreachableError:
                self._kill_with_shim()
        if record is None:
            record = self.status()
        if record.state is ProcessState.RUNNING:
            left = [record.shim_pid, record.child_pid]
        else:
            left = sweep(record.mark)
        _refuse_left(self.name, left)
        self._wait_let_go()
        return record

    def _kill_with_shim(self) -> None:
        record = self.status()
        if record.state is not ProcessState.RUNNING:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(record.shim_pid)
            try:
                if shim.start_time(record.shim_pid) == record.shim_start:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], _ANSWER_S)
            finally:
                os.close(handle)

    def _wait_let_go(self) -> None:
        """A shim holds its directory for a moment after its last record."""
        end = time.monotonic() + _ANSWER_S
        while _is_held(self.directory) and time.monotonic() < end:
            time.sleep(0.005)

    def _request(self, request: dict[str, object], timeout_s: float) -> ShimRecord:
        deadline = time.monotonic() + timeout_s
        try:
            with _connect(self.directory) as connection:
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = _read_line(connection.fileno(), deadline, connection.recv)
        except (OSError, DeadlineError) as error:
            raise UnreachableError(f"{self.name}: its shim does not answer ({error})") from None
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(answer, type=ShimRecord)
        raise UnreachableError(f"{self.name}: its shim ended or refused: {answer[:200]!r}")


def spawn(
    directory: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    python: str = sys.executable,
    deadline_s: float = 20.0,
) -> Process:
    """Start `command` under a shim that keeps its files in `directory` (made if need be, 0700).

    Returns once the child has been started; it may be gone again by then. What an earlier run in
    that directory left behind, its shim having been killed, is ended first.

    Args:
        directory: One directory per process name.
        command: The argument vector; the child's current directory is `directory`.
        environment: The child's whole environment.
        python: Interpreter for the shim.
        deadline_s: Time for the shim to come up.

    Raises:
        ConflictError: A process is already running there.
        RemoteError: The command cannot be run, or something of an earlier run cannot be killed.
        DeadlineError: No word from the shim in time.
    """
    assert command, "a process needs a command"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    earlier = attach(directory)
    if earlier is not None and not earlier.is_alive():
        _refuse_left(directory.name, shim.kill_marked(earlier.status().mark))
    argv = [python, "-I", "-S", str(_SHIM_FILE), str(directory), "--", *command]
    kept = {key: value for key, value in environment.items() if key != shim.MARK}
    try:
        answer = _launch(argv, kept, deadline_s)
    except DeadlineError:
        raise DeadlineError(
            f"{directory.name}: no word from its shim in {deadline_s:g} s"
        ) from None
    return _started(directory, answer)


def attach(directory: Path) -> Process | None:
    """The process that was started in `directory`, running or ended; None if there was none."""
    return Process(directory) if _read_record(directory) is not None else None


def is_anything_left(directory: Path) -> bool:
    """Whether something of a process is there.

    Its shim, even one that has not written a record yet; or what a shim that has gone left behind.
    """
    process = attach(directory)
    if _is_held(directory) or (process is not None and process.is_alive()):
        return True
    record = _read_record(directory)
    return record is not None and is_any_marked(record.mark)


def is_any_marked(mark: str) -> bool:
    """Whether a process that this user may look at carries `mark` in its environment."""
    needle = f"{shim.MARK}={mark}".encode()
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):  # gone, or somebody else's
                if needle in (each / "environ").read_bytes().split(b"\0"):
                    return True
    return False


def list_processes(procs_dir: Path) -> list[Process]:
    """All processes started in subdirectories of `procs_dir`, by name."""
    try:
        directories = sorted(each for each in procs_dir.iterdir() if each.is_dir())
    except FileNotFoundError:
        return []
    return [process for each in directories if (process := attach(each)) is not None]


def _launch(argv: Sequence[str], environment: Mapping[str, str], deadline_s: float) -> bytes:
    """Run what becomes a shim; returns its first line, nothing if it ended without a word."""
    deadline = time.monotonic() + deadline_s
    process = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None, "asked for a pipe"
    with process.stdout as pipe:  # not `with process`: that would wait for as long as it takes
        try:
            return _read_line(pipe.fileno(), deadline, lambda n: os.read(pipe.fileno(), n))
        finally:
            _reap(process, deadline)


def _reap(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Wait for what has done its work; kill it if it hangs, and leave it if even that hangs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
        return
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_S)


def _started(directory: Path, answer: bytes) -> Process:
    try:
        message = json.loads(answer)
    except ValueError:
        raise RemoteError(f"{directory.name}: the shim died while starting") from None
    if message.get("started"):
        return Process(directory)
    text = f"{directory.name}: cannot be started: {message.get('error')}"
    if message.get("kind") == "conflict":
        raise ConflictError(text, remedy="stop what runs there first")
    raise RemoteError(text)


def _read_record(directory: Path) -> ShimRecord | None:
    try:
        return msgspec.json.decode((directory / "shim.json").read_bytes(), type=ShimRecord)
    except (OSError, msgspec.DecodeError):
        return None


def _refuse_left(name: str, pids: Sequence[int]) -> None:
    if pids:
        raise RemoteError(
            f"{name}: cannot be killed: pid {', '.join(map(str, pids))}",
            remedy="a device or a file system hangs there; see `ps -o pid,stat,wchan:30,args`",
        )


def _is_held(directory: Path) -> bool:
    """Whether a shim holds its lock there."""
    return is_held(directory / "shim.lock")


def _is_shim_alive(record: ShimRecord) -> bool:
    return shim.start_time(record.shim_pid) == record.shim_start


@contextlib.contextmanager
def _connect(directory: Path) -> Iterator[socket.socket]:
    """A connection to the shim's socket; through ``/proc``, as its path may be too long."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            # Not settimeout(): a full backlog would refuse at once instead of waiting.
            limit = struct.pack("ll", int(_ANSWER_S), 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connection.connect(f"/proc/self/fd/{handle}/shim.sock")
            yield connection
    finally:
        os.close(handle)


def _read_line(fd: int, deadline: float, read: Callable[[int], bytes]) -> bytes:
    """Bytes up to a newline or the end; waits no longer than `deadline` (monotonic)."""
    data = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not data.endswith(b"\n") and len(data) < _MAX_ANSWER_BYTES:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            raise DeadlineError("no answer from the shim in time")
        chunk = read(4096)
        if not chunk:
            break
        data += chunk
    return data


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
