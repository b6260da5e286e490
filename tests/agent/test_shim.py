"""The shim itself: real processes, looked at from outside. Every child ends within a minute."""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llx.agent import shim
from llx.agent.devices import Allocation, DeviceKind, child_environment
from llx.agent.processes import Process, ProcessState, attach, spawn
from llx.errors import ConflictError, RemoteError, UnreachableError

ENV = {"PATH": os.environ["PATH"]}
SLEEP = ["sleep", "60"]
SCRIPT_MAX_S = 60


def python(code: str) -> list[str]:
    """A child that cannot outlive a minute, whatever becomes of the test."""
    return [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import signal; signal.alarm({SCRIPT_MAX_S})\n{code}",
    ]


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    return shim.start_time(pid) is not None


def answers(process: Process) -> bool:
    with contextlib.suppress(UnreachableError):
        return process.ask().state is ProcessState.RUNNING
    return False


def found_in(directory: Path) -> list[int]:
    """Processes whose current directory that is."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and (each / "cwd").readlink() == directory:
                found.append(int(each.name))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for one process; whatever runs there is ended with the test."""
    directory = tmp_path / "p"
    yield directory
    end(directory)


def end(directory: Path) -> None:
    if (process := attach(directory)) is not None:
        process.stop(0)
        shim.kill_marked(process.status().mark)


def test_exit_code_and_tail_of_the_log_are_recorded(place: Path) -> None:
    code = "import sys; print('out'); sys.stdout.flush(); sys.stderr.write('bad end'); sys.exit(7)"
    process = spawn(place, python(code), ENV)
    eventually(lambda: not process.is_alive(), "the child ends")
    record = process.status()
    assert (record.state, record.exit_code, record.signal) == (ProcessState.EXITED, 7, None)
    assert record.stderr_tail == "out\nbad end"
    assert record.ending == "exit code 7"
    assert record.exited_at is not None
    assert record.exited_at >= record.started_at
    eventually(lambda: not (place / "shim.sock").exists(), "the socket goes with the shim")


def test_a_signal_that_killed_the_child_is_recorded(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    os.kill(process.status().child_pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive(), "the shim notices")
    record = process.status()
    assert (record.exit_code, record.signal) == (None, signal.SIGKILL)
    assert record.ending == "killed by SIGKILL"


def test_the_child_is_as_a_child_should_be(place: Path) -> None:
    code = (
        "import json, os, signal, sys; print(json.dumps({"
        "'sid': os.getsid(0), 'pgid': os.getpgid(0), 'pid': os.getpid(), 'cwd': os.getcwd(),"
        "'fds': sorted(int(f) for f in os.listdir('/proc/self/fd')), 'env': dict(os.environ),"
        "'status': [l for l in open('/proc/self/status') if l.startswith(('SigIgn', 'SigBlk'))]}))"
    )
    process = spawn(place, ["sh", "-c", f'exec "$0" -I -S -c "{code}"', sys.executable], ENV)
    eventually(lambda: not process.is_alive(), "the child ends")
    seen = json.loads(process.log_path.read_text())
    assert seen["sid"] == seen["pgid"] == seen["pid"] == process.status().child_pid
    assert seen["cwd"] == str(place.resolve())
    assert seen["fds"] == [0, 1, 2, 3]  # 3 is the listing itself
    assert set(seen["env"]) - {"PWD", "LC_CTYPE", "SHLVL", "_", "OLDPWD"} == {"PATH", shim.MARK}
    ignored, blocked = (int(line.split()[1], 16) for line in reversed(seen["status"]))
    assert blocked == 0
    # Python ignores these two itself; 32 and 33 are the C library's, and nobody's to change.
    expected = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))
    assert ignored & ~expected == 0


def test_files_are_the_owners_alone(place: Path) -> None:
    process = spawn(place, ["sh", "-c", "umask; touch made; exec sleep 60"], ENV)
    eventually((place / "made").exists, "the child has run")
    for name in ("shim.json", "shim.lock", "shim.sock", "log"):
        assert stat.S_IMODE((place / name).stat().st_mode) & 0o077 == 0, name
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    mask = os.umask(0)
    os.umask(mask)
    assert int(process.log_path.read_text(), 8) == mask, "the child has its spawner's umask"


def test_a_command_that_does_not_exist_is_reported_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(RemoteError, match=r"no-such-command: .*No such file"):
        spawn(place, ["no-such-command"], ENV)
    assert attach(place) is None
    assert not (place / "shim.sock").exists()
    spawn(place, SLEEP, ENV)  # and the place can be used at once


def test_a_start_whose_record_cannot_be_written_fails_and_leaves_no_child(
    place: Path, tmp_path: Path
) -> None:
    """As on a full disk: what nobody could find again must not run."""
    cramped = tmp_path / "python"
    cramped.write_text(f'#!/bin/sh\nulimit -f 0\nexec "{sys.executable}" "$@"\n')
    cramped.chmod(0o700)
    earlier = spawn(place, ["true"], ENV)
    eventually(lambda: not earlier.is_alive(), "the run before ends")
    before = earlier.status()
    with pytest.raises(RemoteError, match="p: cannot be started: its record cannot be written"):
        spawn(place, SLEEP, ENV, python=str(cramped))
    eventually(lambda: not found_in(place), "child and shim are gone")
    assert earlier.status() == before, "the record of the run before is still there"
    assert not (place / "shim.sock").exists()
    assert not (place / "shim.json.new").exists()
    assert spawn(place, SLEEP, ENV).is_alive()


def test_the_end_is_written_as_soon_as_there_is_room(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    blocked = place / "shim.json.new"
    blocked.mkdir()  # nothing can be written
    process.signal(signal.SIGTERM)
    eventually(lambda: not is_running(process.status().child_pid), "the child ends")
    time.sleep(0.3)
    assert process.is_alive(), "its shim tries again"
    blocked.rmdir()
    eventually(lambda: not process.is_alive(), "the end is written")
    assert process.status().ending == "killed by SIGTERM"


@pytest.mark.slow
def test_a_shim_that_cannot_write_the_end_ends_all_the_same(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    (place / "shim.json.new").mkdir()
    process.stop(0)
    eventually(lambda: not is_running(process.status().shim_pid), "the shim ends")
    assert process.status().state is ProcessState.LOST


def test_a_second_start_in_the_same_place_is_refused(place: Path) -> None:
    first = spawn(place, SLEEP, ENV)
    with pytest.raises(ConflictError, match="already running"):
        spawn(place, SLEEP, ENV)
    assert first.ask() == first.status()


def test_many_starts_at_once_leave_one(place: Path) -> None:
    place.mkdir()
    file = Path(shim.__file__)
    argv = [sys.executable, "-I", "-S", str(file), str(place), "--", *SLEEP]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=ENV) for _ in range(6)]
    answers = [json.loads(each.communicate(timeout=20)[0]) for each in started]
    assert sorted("started" in each for each in answers) == [False] * 5 + [True]
    assert {each.get("kind") for each in answers} == {None, "conflict"}


def test_a_stale_place_is_taken_over(place: Path) -> None:
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(place / "shim.sock"))
    (place / "shim.json").write_text("{ not json")
    (place / "shim.lock").touch()
    (place / "log").write_text("of the run before")
    process = spawn(place, ["sh", "-c", "echo new; exec sleep 60"], ENV)
    assert process.ask().state is ProcessState.RUNNING
    assert (place / "log.1").read_text() == "of the run before"
    eventually(lambda: process.log_path.read_text() == "new\n", "the new log")


def test_the_child_dies_with_its_shim(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    record = process.status()
    os.kill(record.shim_pid, signal.SIGKILL)
    eventually(lambda: not is_running(record.child_pid), "the kernel kills the child")
    assert process.status().state is ProcessState.LOST
    assert process.status().ending == "killed together with its shim"


def test_the_group_goes_when_the_child_ends(place: Path) -> None:
    process = spawn(place, ["sh", "-c", "sleep 60 & echo $!; exit 0"], ENV)
    eventually(lambda: not process.is_alive(), "the child ends")
    assert not is_running(int(process.log_path.read_text()))


def test_what_left_the_group_goes_too(place: Path) -> None:
    process = spawn(place, ["sh", "-c", "setsid sh -c 'echo $$; exec sleep 60' & wait"], ENV)
    eventually(lambda: process.log_path.read_text().endswith("\n"), "the grandchild is there")
    grandchild = int(process.log_path.read_text())
    assert os.getsid(grandchild) != os.getsid(process.status().child_pid)
    process.stop(5)
    assert not is_running(grandchild)


@pytest.mark.node
@pytest.mark.parametrize("library", ["setproctitle", "ray._raylet"])
def test_what_set_its_title_goes_too(place: Path, node_python: str, library: str) -> None:
    """As vLLM's workers and Ray's actors do: that must not take the mark out of ``/proc``."""
    code = (
        f"import os, signal, {library}; signal.alarm({SCRIPT_MAX_S}); os.setsid();"
        f"{library}.setproctitle('a title'); print(os.getpid(), flush=True); signal.pause()"
    )
    shell = f'"{node_python}" -c "{code}" & wait'
    environment = child_environment(ENV, Allocation(DeviceKind.CPU, []))
    process = spawn(place, ["sh", "-c", shell], environment)
    eventually(lambda: "\n" in process.log_path.read_text(), "the grandchild is there")
    grandchild = int(process.log_path.read_text())
    assert Path(f"/proc/{grandchild}/cmdline").read_bytes().startswith(b"a title")
    process.stop(5)
    assert not is_running(grandchild)


def test_a_shim_under_a_shim_outlives_it(place: Path) -> None:
    inner = place / "inner"
    root = Path(shim.__file__).parents[2]
    code = (
        "import sys, pathlib; from llx.agent.processes import spawn;"
        "spawn(pathlib.Path(sys.argv[1]), ['sleep', '60'], dict(__import__('os').environ))"
    )
    command = [sys.executable, "-c", code, str(inner)]
    outer = spawn(place, command, {**ENV, "PYTHONPATH": str(root)})
    try:
        eventually(lambda: not outer.is_alive(), "the outer child ends")
        assert outer.status().exit_code == 0, outer.status().stderr_tail
        inner_process = attach(inner)
        assert inner_process is not None
        assert inner_process.ask().state is ProcessState.RUNNING
    finally:
        end(inner)


def test_term_to_the_shim_stops_the_child(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    os.kill(process.status().shim_pid, signal.SIGTERM)
    eventually(lambda: not process.is_alive(), "both end")
    assert process.status().signal == signal.SIGTERM


def test_a_shim_whose_place_is_deleted_ends_its_child(tmp_path: Path) -> None:
    process = spawn(tmp_path / "gone", SLEEP, ENV)
    record = process.status()
    for file in process.directory.iterdir():
        file.unlink()
    process.directory.rmdir()
    os.kill(record.shim_pid, signal.SIGCHLD)  # do not wait for its own next look
    eventually(lambda: not is_running(record.child_pid), "the child is ended")


def test_a_lost_socket_is_made_anew(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    (place / "shim.sock").unlink()
    os.kill(process.status().shim_pid, signal.SIGCHLD)
    eventually(lambda: answers(process), "the socket is back")


def test_a_shim_that_cannot_listen_anew_goes_on_and_tries_again(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    pid = process.status().shim_pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # no further descriptor
    (place / "shim.sock").unlink()
    os.kill(pid, signal.SIGCHLD)
    time.sleep(0.2)
    assert process.is_alive()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    os.kill(pid, signal.SIGCHLD)
    eventually(lambda: answers(process), "the socket is back")


def raw(process: Process, *lines: bytes) -> list[dict[str, object]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(process.directory / "shim.sock"))
        connection.sendall(b"".join(lines))
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := connection.recv(4096):
            data += chunk
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"op": "explode"}\n',
        b'{"op": "signal", "signal": 0}\n',
        b'{"op": "signal", "signal": 4096}\n',
        b'{"op": "signal", "signal": true}\n',
        b'{"op": "stop"}\n',
        b'{"op": "stop", "grace_s": -1}\n',
        b'{"op": "stop", "grace_s": NaN}\n',
        b'{"op": "stop", "grace_s": 1e400}\n',
        b'{"op": "stop", "grace_s": "1"}\n',
    ],
)
def test_a_bad_request_is_refused_and_harms_nothing(place: Path, line: bytes) -> None:
    process = spawn(place, SLEEP, ENV)
    refused, answered = raw(process, line, b'{"op": "status"}\n')
    assert "error" in refused
    assert answered["state"] == "running"


def test_an_endless_line_is_cut_off(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        raw(process, b"x" * 1_000_000)
    assert process.ask().state is ProcessState.RUNNING


def test_more_clients_than_it_serves_do_not_block_it(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    with contextlib.ExitStack() as silent:
        for _ in range(100):
            connection = silent.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(place / "shim.sock"))
        assert process.ask().state is ProcessState.RUNNING


def test_a_huge_log_does_not_pass_through_the_shim(place: Path) -> None:
    code = "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))\nprint('the end')"
    process = spawn(place, python(code), ENV)
    eventually(lambda: not process.is_alive(), "the child ends")
    record = process.status()
    assert len(record.stderr_tail) == shim.TAIL_BYTES
    assert record.stderr_tail.endswith("xthe end\n")
    process.log_path.unlink()
    (place / "log.1").unlink(missing_ok=True)


def test_a_shim_is_small(place: Path) -> None:
    process = spawn(place, SLEEP, ENV)
    pid = process.status().shim_pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    assert pages * resource.getpagesize() < 24 << 20


def test_a_full_log_is_moved_away_while_the_child_goes_on_writing(place: Path) -> None:
    line = "x" * 1023
    code = f"""
import sys, time
for _ in range({shim.MAX_LOG_BYTES >> 10} + 1): sys.stdout.write({line!r} + chr(10))
sys.stdout.flush()
while True:
    time.sleep(0.1)
    print("more", flush=True)
"""
    process = spawn(place, python(code), ENV)
    eventually(lambda: (place / "log.1").exists(), "the full log is moved")
    assert (place / "log.1").stat().st_size >= shim.MAX_LOG_BYTES
    eventually(
        lambda: (
            process.log_path.stat().st_size < 1 << 20 and "more" in process.log_path.read_text()
        ),
        "the log is cut, and the child writes on",
    )
    assert not (place / "log.new").exists()


def test_of_a_log_that_has_grown_too_long_the_newest_is_kept(place: Path) -> None:
    code = f"""
import pathlib, sys, time
while not pathlib.Path("go").exists(): time.sleep(0.02)
sys.stdout.write("oldest" + "x" * ({shim.MAX_LOG_BYTES} * 2) + "newest")
sys.stdout.flush()
pathlib.Path("done").touch()
time.sleep(60)
"""
    process = spawn(place, python(code), ENV)
    keeper = process.status().shim_pid
    os.kill(keeper, signal.SIGSTOP)
    (place / "go").touch()
    eventually((place / "done").exists, "all is written before the shim looks")
    os.kill(keeper, signal.SIGCONT)
    eventually((place / "log.1").exists, "the full log is moved")
    kept = (place / "log.1").read_text()
    assert kept.endswith("newest")
    assert len(kept) == shim.MAX_LOG_BYTES
