"""The shim: a tiny process that keeps one child, and outlives whoever started it.

    python -I -S shim.py DIR -- COMMAND...        (the child's environment is the shim's own)

Standard library only; run as a file, so that it imports nothing of llx. It detaches (two forks, own
session), holds a lock on DIR/shim.lock for its life, starts COMMAND in a session of its own and
keeps in DIR:

    shim.json   who runs, since when, how it ended; replaced atomically
    shim.sock   one JSON object per line: {"op": "status"}, {"op": "signal", "signal": N},
                {"op": "stop", "grace_s": S} (TERM to the child's group, KILL after S; answered
                when all of it is gone)
    log         the child's stdout and stderr, written by the child itself; log.1: what was in it
                before, of the run before or, once it has 32 MiB, of this one
    pulse       link to memory of the shim's with the child's promises to have moved on by then
                (`llx.agent.pulse`); a child that breaks one hangs, frozen or in a step without end:
                it is killed; `hung` says of what

No way of dying leaves anything behind: the kernel kills the child with the shim
(PR_SET_PDEATHSIG); a child that ends takes its group along, and whatever left the group is found by
the mark in its environment. A pid is acted on only while it cannot have been reused: an unreaped
child's, or one held by a pidfd. When DIR itself is deleted nobody can reach the shim any more, and
it ends its child.

The first line on the shim's stdout tells the spawner how the start went; nobody need read it.
"""

# pathlib would cost every shim a megabyte.
# ruff: noqa: PTH105, PTH108, PTH109, PTH110, PTH123, PTH202, PTH208, PTH211

import contextlib
import fcntl
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time

MARK = "LLX_SHIM"
"""Environment variable whose value is this run's mark; every descendant carries it."""
KEEPS_MARK = {"SPT_NOENV": "1"}
"""To be in the environment of whatever may set its title: setproctitle, of which Ray has a copy,
then leaves the memory alone that the environment lies in, and ``/proc`` still shows the mark."""
TAIL_BYTES = 4096
MAX_LOG_BYTES = 32 << 20
MAX_GRACE_S = 86400.0

_MAX_LINE = 4096
_MAX_CLIENTS = 64
HUNG = ("it fell silent", "a step did not end")
"""What each of the promises in ``pulse`` was about."""

_LOOK_EVERY_S = 1.0
_LATE_S = 2.0
"""A look so late was held up as the child may have been: for as long again nobody is judged."""
_KILL_AGAIN_S = 1.0
_TURN_AGAIN_S = 60.0
_LOCK_S = 0.2
"""One that has ended, or could not start, may hold its lock a moment longer than it says."""
_LOOK_S = 10.0
"""Whoever looks whether the lock is taken shares it for a moment, longer on a busy host."""
_SWEEP_S = 5.0
_LAST_RECORD_S = 4.0
"""Less than who waits for the end waits beyond the grace."""
_WRITE_AGAIN_S = 0.1
_OWN_STOP_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """The child cannot be started; `kind` is ``conflict`` or ``start``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def start_time(pid: int) -> int | None:
    """When process `pid` started, in ticks since boot; None if there is none (or only a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def kill_marked(mark: str, deadline_s: float = _SWEEP_S) -> list[int]:
    """KILL every process of this user whose environment carries `mark`; returns who is left."""
    needle = f"{MARK}={mark}".encode()
    end = time.monotonic() + deadline_s
    while True:
        left = [pid for pid in _pids() if _kill_if_marked(pid, needle)]
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.005)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _kill_if_marked(pid: int, needle: bytes) -> bool:
    if pid == os.getpid() or not _is_marked(pid, needle):
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at again: the pidfd may be of a process that took the number in between.
        if not _is_marked(pid, needle):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _is_marked(pid: int, needle: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return needle in file.read().split(b"\0")
    except OSError:
        return False


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.awaits_end = False


class Shim:
    """One child and those who ask about it. Single-threaded; the current directory is DIR."""

    def __init__(self, command: list[str], umask: int) -> None:
        self._command = command
        self._umask = umask
        self._clients: dict[int, _Client] = {}
        self._poll = select.poll()
        self._kill_at: float | None = None
        self._looked_at = self._trusts_until = 0.0
        self._pulse: int | None = None
        self._hung = ""
        self._has_turned = False
        self._turns_not_before = 0.0
        self._child = 0
        self._mark = os.urandom(16).hex()
        self._record: dict[str, object] = {}

    def start(self) -> None:
        """Take the lock, listen, start the child, write the first record.

        The record of the run before stays until this one replaces it.

        Raises:
            StartError: Another shim holds the directory, the command cannot be run, or nothing can
                be written there: then the child has been killed again.
            OSError: Likewise, before there was a child.
        """
        self._lock = os.open("shim.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._take_lock()
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop(_OWN_STOP_GRACE_S))
        for ignored in (signal.SIGHUP, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        self._poll.register(self._wake, select.POLLIN)
        self._listen()
        try:
            log = self._open_log()
            self._lay_pulse()
            self._child = self._start_child(log)
            os.dup2(log, 2)
            os.close(log)
            self._write_first_record()
        except BaseException:
            os.unlink("shim.sock")
            if not self._child:  # nothing runs: whoever is told so may try again at once
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            raise

    def run(self) -> None:
        """Serve until the child has ended, then clear up, record it and answer who waits."""
        while not self._has_child_ended():
            for fd, _ in self._poll.poll(self._timeout_ms()):
                self._serve(fd)
            self._escalate()
            self._look_around()
            self._turn_log()
            self._feel_pulse()
        self._finish()

    # ------------------------------------------------------------------ start

    def _take_lock(self) -> None:
        begun = time.monotonic()
        while not self._can_lock(fcntl.LOCK_EX):
            waited_s = time.monotonic() - begun
            if waited_s >= _LOCK_S and not self._can_lock(fcntl.LOCK_SH):
                raise StartError("conflict", "a process is already running there")
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            if waited_s >= _LOOK_S:
                raise StartError("start", "somebody looks at its lock and does not let go of it")
            time.sleep(0.01)

    def _can_lock(self, kind: int) -> bool:
        """Whether it could be taken, and was."""
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("shim.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind("shim.sock")  # relative: a long DIR does not matter
            listener.listen(_MAX_CLIENTS)
        except OSError:
            listener.close()
            raise
        self._poll.register(listener, select.POLLIN)
        self._listener = listener

    def _open_log(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.replace("log", "log.1")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        return os.open("log", flags, 0o600)

    def _lay_pulse(self) -> None:
        """In memory, not on the disk, which may stand still while the child is well.

        Without room for that nobody is watched; the record, which is next, needs room more.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink("pulse")  # of the run before
        with contextlib.suppress(OSError):
            pulse = os.memfd_create("pulse")
            os.fchmod(pulse, 0o600)
            os.ftruncate(pulse, 8 * len(HUNG))
            os.symlink(f"/proc/{os.getpid()}/fd/{pulse}", "pulse")
            self._pulse = pulse

    def _start_child(self, log: int) -> int:
        problem_read, problem_write = os.pipe()  # closed by a successful exec
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(problem_read)
                self._exec(me, log)
            except BaseException as error:  # noqa: BLE001 - the forked child must not return
                os.write(problem_write, f"{self._command[0]}: {error}"[:2000].encode())
            finally:
                os._exit(127)
        os.close(problem_write)
        problem = b""
        while chunk := os.read(problem_read, 4096):
            problem += chunk
        os.close(problem_read)
        if problem:
            os.waitpid(pid, 0)
            raise StartError("start", problem.decode(errors="replace"))
        return pid

    def _exec(self, shim: int, log: int) -> None:
        import ctypes  # here: only the forked child pays for it

        os.setsid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != shim:  # it died before the line above took effect
            os._exit(127)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(self._umask)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execvpe(self._command[0], self._command, {**os.environ, MARK: self._mark})  # noqa: S606

    # ------------------------------------------------------------------ life

    def _timeout_ms(self) -> int:
        look_s = _LOOK_EVERY_S
        if self._kill_at is not None:
            look_s = min(look_s, max(0.0, self._kill_at - time.monotonic()))
        return math.ceil(look_s * 1000)

    def _has_child_ended(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._child, flags) is not None

    def _signal_group(self, number: int) -> None:
        # The child is not reaped yet, so its number still names its group and nothing else.
        if self._child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, number)

    def _stop(self, grace_s: float) -> None:
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)

    def _escalate(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._signal_group(signal.SIGKILL)
            self._kill_at = now + _KILL_AGAIN_S

    def _turn_log(self) -> None:
        """Move what is in a log that is full to ``log.1``; the child, which appends, goes on.

        A line that is written between the last read and the cut is lost. Without room for the copy
        on the disk, and some beside it, the log grows, and a look a minute later tries again; then
        what is older than the last `MAX_LOG_BYTES` is lost.
        """
        with contextlib.suppress(OSError):
            size = os.path.getsize("log")
            if size < MAX_LOG_BYTES or time.monotonic() < self._turns_not_before:
                return
            self._turns_not_before = time.monotonic() + _TURN_AGAIN_S
            disk = os.statvfs("log")
            if disk.f_bavail * disk.f_frsize < 2 * MAX_LOG_BYTES:
                return
            try:
                with open("log", "rb+") as log, open("log.new", "wb") as copy:
                    log.seek(max(0, size - MAX_LOG_BYTES))
                    for _ in range(4 * MAX_LOG_BYTES >> 20):  # it may write as fast as this reads
                        if not os.sendfile(copy.fileno(), log.fileno(), None, 1 << 20):
                            break
                    os.replace("log.new", "log.1")
                    os.ftruncate(log.fileno(), 0)
                self._has_turned = True
                self._turns_not_before = 0.0
            except OSError:
                os.unlink("log.new")

    def _look_around(self) -> None:
        try:
            os.getcwd()
        except FileNotFoundError:
            if self._kill_at is None:
                self._stop(_OWN_STOP_GRACE_S)
            return
        if not os.path.exists("shim.sock"):  # a cleaner took it
            former = self._listener
            with contextlib.suppress(OSError):  # no room, say: the next look tries again
                self._listen()
                self._poll.unregister(former)
                former.close()

    def _feel_pulse(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= _LATE_S:
            self._trusts_until = now + _LATE_S
        self._looked_at = now
        if now < self._trusts_until or self._hung or self._pulse is None:
            return
        dues = struct.unpack(f"={len(HUNG)}q", os.pread(self._pulse, 8 * len(HUNG), 0))
        broken = [what for what, due in zip(HUNG, dues, strict=True) if 0 < due < now * 1e9]
        if broken:
            self._hung = broken[0]
            self._kill_at = now
            self._escalate()

    # ------------------------------------------------------------------ clients

    def _serve(self, fd: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd in self._clients:
            self._receive(self._clients[fd])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= _MAX_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._poll.register(connection, select.POLLIN)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.buffer += data
        if not data or len(client.buffer) > _MAX_LINE:
            self._drop(client)
            return
        while b"\n" in client.buffer:
            line, _, client.buffer = client.buffer.partition(b"\n")
            self._answer(client, line)

    def _answer(self, client: _Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            op = request["op"]
            if op == "status":
                pass
            elif op == "signal":
                self._signal_group(int(_number(request["signal"], 1, signal.NSIG - 1)))
            elif op == "stop":
                self._stop(_number(request["grace_s"], 0, MAX_GRACE_S))
                client.awaits_end = True
                return
            else:
                raise ValueError(f"no such op: {op!r}")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self._send(client, {"error": f"bad request: {error!r}"[:200]})
            return
        self._send(client, self._record)

    def _send(self, client: _Client, message: dict[str, object]) -> None:
        try:
            client.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.connection.fileno(), None) is not None:
            self._poll.unregister(client.connection)
            client.connection.close()

    # ------------------------------------------------------------------ end

    def _finish(self) -> None:
        self._signal_group(signal.SIGKILL)  # while the zombie still holds the group's number
        child, self._child = self._child, 0
        info = os.waitid(os.P_PID, child, os.WEXITED)
        assert info is not None, "a blocking waitid returns"
        has_exited = info.si_code == os.CLD_EXITED
        kill_marked(self._mark)
        self._record |= {
            "state": "exited",
            "exit_code": info.si_status if has_exited else None,
            "signal": None if has_exited else info.si_status,
            "hung": self._hung,
            "stderr_tail": self._tail(),
            "exited_at": time.time(),
        }
        self._write_last_record()
        with contextlib.suppress(OSError):
            os.unlink("shim.sock")
        os.close(self._lock)  # before the answers: who hears of the end may start anew at once
        for client in list(self._clients.values()):
            if client.awaits_end:
                self._send(client, self._record)

    def _tail(self) -> str:
        former = _tail("log.1") if self._has_turned else ""
        return (former + _tail("log"))[-TAIL_BYTES:]

    def _write_first_record(self) -> None:
        self._record = {
            "shim_pid": os.getpid(),
            "shim_start": start_time(os.getpid()),
            "child_pid": self._child,
            "child_start": start_time(self._child) or 0,
            "state": "running",
            "mark": self._mark,
            "exit_code": None,
            "signal": None,
            "hung": "",
            "stderr_tail": "",
            "started_at": time.time(),
            "exited_at": None,
        }
        try:
            self._write_record()
        except OSError as error:  # a child that nobody could find must not run
            self._signal_group(signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
            kill_marked(self._mark)
            raise StartError("start", f"its record cannot be written: {error}") from None

    def _write_last_record(self) -> None:
        """Room on a full disk may be made in these seconds; without a record it counts as lost."""
        end = time.monotonic() + _LAST_RECORD_S
        while True:
            try:
                self._write_record()
                return
            except FileNotFoundError:  # DIR was deleted
                return
            except OSError:
                if time.monotonic() >= end:
                    return
            time.sleep(_WRITE_AGAIN_S)

    def _write_record(self) -> None:
        fd = os.open("shim.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(self._record, file)
            os.replace("shim.json.new", "shim.json")
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink("shim.json.new")
            raise


def _number(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"not a number from {low} to {high}")
    return value


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _detach() -> None:
    """Become a child of init in a session of its own, without a controlling terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


def _tell(spawner: int, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # the spawner may be gone
        os.write(spawner, json.dumps(message).encode() + b"\n")
    os.close(spawner)


def main(argv: list[str]) -> int:
    """Run as described above; returns the exit code."""
    if len(argv) < 4 or argv[2] != "--":
        sys.stderr.write("usage: shim.py DIR -- COMMAND...\n")
        return 2
    spawner = os.dup(1)
    umask = os.umask(0o077)
    try:
        os.chdir(argv[1])
    except OSError as error:
        _tell(spawner, {"kind": "start", "error": str(error)})
        return 1
    _detach()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    shim = Shim(argv[3:], umask)
    try:
        shim.start()
    except (StartError, OSError) as error:
        kind = error.kind if isinstance(error, StartError) else "start"
        _tell(spawner, {"kind": kind, "error": str(error)})
        return 1
    _tell(spawner, {"started": True})
    shim.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
