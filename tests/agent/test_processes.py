"""Starting, finding again, asking and stopping processes under shims; all with real ones."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llx.agent import shim
from llx.agent.processes import (
    Process,
    ProcessState,
    attach,
    is_anything_left,
    list_processes,
    spawn,
)
from llx.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)

ENV = {"PATH": os.environ["PATH"]}
SLEEP = ["sleep", "60"]
DEAF = ["sh", "-c", "trap '' TERM; echo deaf; sleep 60 & wait; sleep 60"]
ROOT = Path(shim.__file__).parents[2]


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.005)


def says(process: Process, text: str) -> None:
    eventually(lambda: text in process.log_path.read_text(), f"the child says {text!r}")


def test_spawn_returns_a_running_process(procs: Path) -> None:
    process = spawn(procs / "a", SLEEP, ENV)
    record = process.status()
    assert process.name == "a"
    assert process.is_alive()
    assert record.state is ProcessState.RUNNING
    assert record.ending == ""
    assert shim.start_time(record.child_pid) == record.child_start
    assert shim.start_time(record.shim_pid) == record.shim_start
    assert process.ask() == record
    assert os.getsid(record.shim_pid) != os.getsid(0)


def test_adoption_after_the_spawner_was_killed(procs: Path) -> None:
    code = (
        "import os, pathlib, signal, sys; from llx.agent.processes import spawn;"
        "spawn(pathlib.Path(sys.argv[1]), ['sleep', '60'], dict(os.environ));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(procs / "a")]
    done = subprocess.run(command, env={**ENV, "PYTHONPATH": str(ROOT)}, timeout=30)
    assert done.returncode == -signal.SIGKILL
    (process,) = list_processes(procs)
    assert process.ask().state is ProcessState.RUNNING
    assert process.stop(5).signal == signal.SIGTERM


def test_a_spawner_killed_before_the_shim_is_up_changes_nothing(procs: Path) -> None:
    place = procs / "a"
    place.mkdir()
    argv = [sys.executable, "-I", "-S", shim.__file__, str(place), "--", *SLEEP]
    reader, writer = os.pipe()
    started = subprocess.Popen(argv, stdout=writer, env=ENV)
    os.close(writer)
    os.close(reader)  # nobody will ever read the first line
    assert started.wait(10) == 0
    eventually(lambda: attach(place) is not None, "the shim comes up all the same")
    assert Process(place).ask().state is ProcessState.RUNNING


def test_stop_is_term_first(procs: Path) -> None:
    code = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    process = spawn(procs / "a", ["sh", "-c", code], ENV)
    says(process, "up")
    record = process.stop(10)
    assert (record.exit_code, record.signal) == (3, None)
    assert record.stderr_tail.endswith("bye\n")
    assert not process.is_alive()


def test_stop_kills_what_ignores_term(procs: Path) -> None:
    process = spawn(procs / "a", DEAF, ENV)
    says(process, "deaf")
    begun = time.monotonic()
    record = process.stop(0.2)
    assert 0.2 <= time.monotonic() - begun < 5
    assert record.signal == signal.SIGKILL


def test_stop_wakes_and_ends_a_frozen_child(procs: Path) -> None:
    process = spawn(procs / "a", SLEEP, ENV)
    process.signal(signal.SIGSTOP)
    assert process.stop(10).signal == signal.SIGTERM


def test_stop_takes_grandchildren(procs: Path) -> None:
    process = spawn(procs / "a", ["sh", "-c", "sleep 60 & echo $!; wait"], ENV)
    says(process, "\n")
    grandchild = int(process.log_path.read_text())
    process.stop(10)
    # Killed; the system's init, its parent by now, may take a moment to reap it.
    eventually(lambda: shim.start_time(grandchild) is None, "the grandchild is gone")


def test_a_second_stop_with_less_grace_cuts_the_first_short(procs: Path) -> None:
    process = spawn(procs / "a", DEAF, ENV)
    says(process, "deaf")
    patient = threading.Thread(target=process.stop, args=(60,))
    patient.start()
    process.stop(0)
    patient.join(10)
    assert not patient.is_alive()


def test_two_clients_at_once(procs: Path) -> None:
    process = spawn(procs / "a", SLEEP, ENV)
    answers: list[ProcessState] = []
    threads = [
        threading.Thread(target=lambda: answers.append(process.ask().state)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == [ProcessState.RUNNING] * 8


def test_stop_of_what_has_ended_is_no_error(procs: Path) -> None:
    process = spawn(procs / "a", ["true"], ENV)
    eventually(lambda: not process.is_alive(), "it ends")
    assert process.stop(5).exit_code == 0


def test_stop_when_the_shim_was_killed_clears_what_it_left(procs: Path) -> None:
    process = spawn(procs / "a", ["sh", "-c", "sleep 60 & echo $!; wait"], ENV)
    says(process, "\n")
    grandchild = int(process.log_path.read_text())
    os.kill(process.status().shim_pid, signal.SIGKILL)
    assert process.stop(5).state is ProcessState.LOST
    eventually(lambda: shim.start_time(grandchild) is None, "the grandchild is gone")


def test_a_new_start_first_clears_what_a_killed_shim_left(procs: Path) -> None:
    process = spawn(procs / "a", ["sh", "-c", "sleep 60 & echo $!; wait"], ENV)
    says(process, "\n")
    grandchild = int(process.log_path.read_text())
    os.kill(process.status().shim_pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive(), "the shim is gone")
    again = spawn(procs / "a", SLEEP, ENV)
    eventually(lambda: shim.start_time(grandchild) is None, "the grandchild is gone")
    assert again.is_alive()


def test_a_frozen_shim_is_killed_by_stop(procs: Path) -> None:
    process = spawn(procs / "a", SLEEP, ENV)
    record = process.status()
    os.kill(record.shim_pid, signal.SIGSTOP)
    assert process.is_alive()
    assert process.stop(0, margin_s=0.2).state is ProcessState.LOST
    assert shim.start_time(record.child_pid) is None


class Immortal(Process):
    """Whose shim cannot be killed."""

    def _kill_with_shim(self) -> None: ...


def test_stop_names_whom_it_cannot_kill(procs: Path) -> None:
    """As when a driver hangs, and its processes with it."""
    process = spawn(procs / "a", SLEEP, ENV)
    record = process.status()
    os.kill(record.shim_pid, signal.SIGSTOP)
    pids = f"{record.shim_pid}, {record.child_pid}"
    with pytest.raises(RemoteError, match=f"a: cannot be killed: pid {pids}"):
        Immortal(process.directory).stop(0, margin_s=0.2)
    os.kill(record.shim_pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive(), "the shim is gone")
    swept: list[str] = []
    with pytest.raises(RemoteError, match="a: cannot be killed: pid 7, 8"):
        process.stop(0, sweep=lambda mark: swept.append(mark) or [7, 8])
    assert swept == [record.mark]


def test_stop_kills_what_outlived_the_end_of_its_shim(procs: Path) -> None:
    """The shim gives up on what does not die within seconds; a later stop tries again."""
    process = spawn(procs / "a", ["true"], ENV)
    eventually(lambda: not process.is_alive(), "it ends")
    outlived = subprocess.Popen(SLEEP, env={**ENV, shim.MARK: process.status().mark})
    try:
        assert is_anything_left(process.directory)
        process.stop(0)
        assert outlived.wait(10) == -signal.SIGKILL
        assert not is_anything_left(process.directory)
    finally:
        outlived.kill()


def test_what_is_there_is_known_with_and_without_a_record(procs: Path) -> None:
    assert not is_anything_left(procs / "a")
    code = "setsid sh -c 'echo up; exec sleep 60' & wait"
    process = spawn(procs / "a", ["sh", "-c", code], ENV)
    says(process, "up")
    record = process.directory / "shim.json"
    told = record.read_bytes()
    assert is_anything_left(process.directory)
    record.unlink()  # as before it was written
    assert attach(process.directory) is None
    assert is_anything_left(process.directory)
    record.write_bytes(told)
    os.kill(process.status().shim_pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive(), "the shim is gone")
    assert is_anything_left(process.directory), "a grandchild"
    process.stop(5)
    assert not is_anything_left(process.directory)


def test_looking_does_not_keep_a_shim_from_starting(procs: Path) -> None:
    looked, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.is_set():
            is_anything_left(procs / "a")
            looked.set()

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    try:
        assert looked.wait(10)
        for _ in range(10):
            spawn(procs / "a", SLEEP, ENV).stop(5)
    finally:
        over.set()
        for thread in looking:
            thread.join()


def test_a_long_look_does_not_keep_a_shim_from_starting(procs: Path) -> None:
    (procs / "a").mkdir()
    with (procs / "a" / "shim.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        over = threading.Timer(1, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        over.start()
        assert spawn(procs / "a", SLEEP, ENV).is_alive()
        over.join()


def test_a_reused_pid_is_not_taken_for_the_shim(procs: Path) -> None:
    process = spawn(procs / "a", ["true"], ENV)
    eventually(lambda: not process.is_alive(), "it ends")
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # in the same tick it could not be told apart
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        file = process.directory / "shim.json"
        record = process.status()
        text = file.read_text().replace('"exited"', '"running"')
        file.write_text(
            text.replace(f'"shim_pid": {record.shim_pid}', f'"shim_pid": {stranger.pid}')
        )
        assert process.status().state is ProcessState.LOST
        process.stop(0)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_long_path_works(procs: Path) -> None:
    deep = procs / ("d" * 120) / ("e" * 120)
    process = spawn(deep, SLEEP, ENV)
    assert process.ask().state is ProcessState.RUNNING
    assert process.stop(5).signal == signal.SIGTERM


def test_list_processes_sees_running_and_ended(procs: Path) -> None:
    spawn(procs / "b", SLEEP, ENV)
    ended = spawn(procs / "a", ["true"], ENV)
    (procs / "c").mkdir()
    (procs / "file").touch()
    eventually(lambda: not ended.is_alive(), "it ends")
    found = list_processes(procs)
    assert [each.name for each in found] == ["a", "b"]
    assert [each.is_alive() for each in found] == [False, True]
    assert list_processes(procs / "nowhere") == []


def test_asking_where_nothing_is(procs: Path) -> None:
    process = Process(procs / "a")
    assert attach(process.directory) is None
    assert not process.is_alive()
    with pytest.raises(NotFoundError):
        process.status()
    with pytest.raises(UnreachableError):
        process.ask()


def test_errors_name_the_process_and_the_reason(procs: Path) -> None:
    with pytest.raises(RemoteError, match=r"a: cannot be started: ./nope: .*No such file"):
        spawn(procs / "a", ["./nope"], ENV)
    (procs / "b").mkdir()
    (procs / "b" / "data").write_text("not executable")
    with pytest.raises(RemoteError, match="Permission denied"):
        spawn(procs / "b", [str(procs / "b" / "data")], ENV)
    spawn(procs / "c", SLEEP, ENV)
    with pytest.raises(ConflictError, match=r"c: cannot be started: .*already running"):
        spawn(procs / "c", SLEEP, ENV)


def test_a_launcher_that_hangs_is_not_waited_for(procs: Path, tmp_path: Path) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o700)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"a: no word from its shim in 0\.2 s"):
        spawn(procs / "a", SLEEP, ENV, python=str(hangs), deadline_s=0.2)
    assert time.monotonic() - begun < 10
    assert spawn(procs / "a", SLEEP, ENV).is_alive()


def test_the_environment_is_the_one_given(procs: Path) -> None:
    given = {**ENV, "ONE": "1", shim.MARK: "of-someone-else"}
    process = spawn(procs / "a", ["sh", "-c", f"echo $ONE ${shim.MARK}"], given)
    eventually(lambda: not process.is_alive(), "it ends")
    assert process.log_path.read_text() == f"1 {process.status().mark}\n"
