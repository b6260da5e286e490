"""Processes that hang, and their shims, which notice."""

import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from llx.agent import shim
from llx.agent.processes import Process, ProcessState, spawn
from llx.agent.pulse import PULSE, Pulse, Slot

ROOT = Path(shim.__file__).parents[2]
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
CHILD = """
import signal, sys, time
from pathlib import Path
from llx.agent.pulse import Pulse, Slot

if sys.argv[2] == "does not stop":
    signal.signal(signal.SIGTERM, lambda *_: print("stops", flush=True))
pulse, deed = Pulse(Path(sys.argv[1]) / "pulse"), sys.argv[2]
alive_s = {"never promises": 0.0, "hangs in a step": 60.0}.get(deed, 2.5)
for beat in range(100000):
    Path("beat").touch()
    pulse.promise(Slot.ALIVE, alive_s)
    if beat == 3:
        if deed == "hangs in a step":
            pulse.promise(Slot.STEP, 1.0)
        if deed == "ends":
            pulse.end()
            pulse.promise(Slot.ALIVE, 0.1)
        print("beats", flush=True)
        if deed == "ends":
            time.sleep(60)
    time.sleep(0.1)
"""


def start(procs: Path, deed: str) -> Process:
    script = procs / "child.py"
    script.write_text(CHILD)
    process = spawn(procs / "a", [sys.executable, str(script), str(procs / "a"), deed], ENV)
    assert within(60, lambda: "beats" in process.log_path.read_text())
    return process


def within(timeout_s: float, check) -> bool:
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)
    return True


def has_ended(process: Process) -> bool:
    return process.status().state is not ProcessState.RUNNING


def is_left_alone(process: Process, for_s: float, since: float = 0.0) -> bool:
    """It is not killed for so long. `since`: before that it could not move on.

    There is nothing to see if the machine kept it waiting for as long as it had promised; or, where
    its shim was held up as well, for as long as that trusts it.
    """
    if not within(for_s, lambda: has_ended(process)):
        return True
    ended_at = process.status().exited_at
    assert ended_at is not None
    beat_at = (process.directory / "beat").stat().st_mtime
    waited_s = ended_at - max(beat_at, since)
    if waited_s > (2.4 if beat_at > since else 1.9):
        pytest.skip(f"it was kept waiting for {waited_s:.1f} s")
    return False


@pytest.mark.slow
def test_one_that_is_frozen_is_killed_and_it_is_said_why(procs: Path) -> None:
    process = start(procs, "goes on")
    assert is_left_alone(process, 4), "it moves on all the time"
    os.kill(process.status().child_pid, signal.SIGSTOP)
    assert within(60, lambda: has_ended(process))
    record = process.status()
    assert (record.signal, record.hung) == (signal.SIGKILL, "it fell silent")
    assert record.ending == "hung (it fell silent), and was killed"


@pytest.mark.slow
def test_one_whose_step_does_not_end_is_killed_though_it_is_alive(procs: Path) -> None:
    process = start(procs, "hangs in a step")
    assert within(60, lambda: has_ended(process))
    assert process.status().ending == "hung (a step did not end), and was killed"


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["never promises", "ends"])
def test_one_that_promises_nothing_may_take_its_time(procs: Path, deed: str) -> None:
    process = start(procs, deed)
    os.kill(process.status().child_pid, signal.SIGSTOP)
    assert not within(3.5, lambda: has_ended(process))


@pytest.mark.slow
def test_a_shim_that_was_held_up_itself_blames_nobody(procs: Path) -> None:
    """The whole host stood still: the child gets its chance first."""
    process = start(procs, "goes on")
    record = process.status()
    for pid in (record.shim_pid, record.child_pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)
    for pid in (record.shim_pid, record.child_pid):
        os.kill(pid, signal.SIGCONT)
    assert is_left_alone(process, 3, since=time.time())


@pytest.mark.slow
def test_the_pulse_of_the_run_before_is_not_this_ones(procs: Path) -> None:
    start(procs, "goes on").stop(1)
    link = procs / "a" / PULSE
    assert link.is_symlink(), "that of the run before"
    process = spawn(procs / "a", ["sleep", "60"], ENV)
    assert not within(5, lambda: has_ended(process))
    assert link.read_bytes() == bytes(8 * len(Slot))


@pytest.mark.slow
def test_one_that_hangs_while_it_is_stopped_is_not_waited_for(procs: Path) -> None:
    process = start(procs, "does not stop")
    stopping = threading.Thread(target=process.stop, args=(60,))
    stopping.start()
    assert within(60, lambda: "stops" in process.log_path.read_text())
    os.kill(process.status().child_pid, signal.SIGSTOP)
    assert within(60, lambda: has_ended(process))
    stopping.join()
    assert process.status().hung == "it fell silent"


def test_a_pulse_without_a_shim_is_a_file(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / PULSE)
    pulse.promise(Slot.STEP, 10)
    alive, step = struct.unpack("=2q", (tmp_path / PULSE).read_bytes())
    assert alive == 0
    assert 9e9 < step - time.monotonic_ns() <= 10e9
