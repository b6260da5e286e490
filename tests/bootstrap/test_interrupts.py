"""Real signals to a real `up`, over pretended engines: whatever the moment, nothing is left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llx.agent.processes import list_processes
from llx.bootstrap.local_ports import real_ports
from llx.bootstrap.local_stop import down
from llx.cluster.launch import stop_everything

HERE = Path(__file__).parent
FAKES = HERE.parent / "cluster" / "fakes"


class Up:
    """`up` as a process, its lines on a pipe."""

    def __init__(self, home):
        self.home = home
        self.state_dir = home / "state" / "llx" / "clusters" / "c"
        self.process = None

    def start(self, behaviour="ready"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "up_with_fakes.py"), str(self.home), str(FAKES), behaviour],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def read_until(self, words):
        for line in self.process.stdout:
            if line.startswith(words):
                return
        raise AssertionError(f"never said {words!r}: {self.process.stderr.read()}")

    def finish(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def has_said(self, name, words):
        log = self.state_dir / "procs" / name / "log"
        return log.exists() and words in log.read_text()

    def alive(self):
        return [each.name for each in list_processes(self.state_dir / "procs") if each.is_alive()]

    def down(self):
        ports = real_ports(lambda *_: None, stop_everything)
        return down(self.state_dir, ports, lambda _: None, deadline_s=1)


@pytest.fixture
def run(tmp_path):
    found = Up(tmp_path)
    yield found
    if found.process is not None:
        found.process.kill()
        found.process.wait()
        found.process.stdout.close()
        found.process.stderr.close()
    if found.state_dir.exists():
        stop_everything(found.state_dir, 0.5)


def files_left(run):
    """But for what the scheduler was told and answered, which is kept as the logs are."""
    left = {each.name for each in run.state_dir.rglob("*") if not each.is_dir()}
    told = re.compile(r"(term-\d+|recent-\d+\.\d+)\.jsonl")
    return {each for each in left if not told.fullmatch(each)}


@pytest.mark.slow
def test_comes_up_and_goes_down(run):
    run.start()
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    assert "first token skipped" in out
    assert sorted(run.alive()) == ["gateway-0", "head", "m-0", "m-1"]
    assert run.down().was_running is True
    assert run.alive() == []
    assert files_left(run) <= {"log", "term", "events.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("preflight running", signal.SIGINT),
        ("head running", signal.SIGINT),
        ("head done", signal.SIGTERM),
        ("instance m-0 running", signal.SIGHUP),
    ],
)
def test_a_signal_at_a_moment(run, moment, number):
    run.start("never")
    run.read_until(moment)
    run.process.send_signal(number)
    code, _, err = run.finish()
    assert (code, err) == (130, "interrupted\n")
    assert run.alive() == []
    assert files_left(run) <= {"log", "term", "events.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("after_ms", range(100, 1500, 200))
def test_a_signal_at_any_time(run, after_ms):
    run.start("never")
    time.sleep(after_ms / 1000)
    run.process.send_signal(signal.SIGINT)
    code, _, _ = run.finish()
    assert code in {130, -signal.SIGINT, 1}, "before Python itself is up, the code is not ours"
    assert run.alive() == []


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_down_clears(run):
    run.start("deaf")
    run.read_until("instance m-0 running")
    end = time.monotonic() + 60
    while not all(run.has_said(name, "deaf") for name in ("m-0", "m-1")):
        assert time.monotonic() < end
        time.sleep(0.02)
    run.process.send_signal(signal.SIGINT)
    run.read_until("interrupted")
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.finish()
    assert code == 130
    assert "left at once" in err
    run.down()
    assert run.alive() == []
    assert files_left(run) <= {"log", "term", "events.jsonl"}


@pytest.mark.slow
def test_a_killed_up_is_cleared_by_down(run):
    run.start("never")
    run.read_until("head done")
    run.process.kill()
    run.finish()
    run.down()
    assert run.alive() == []
    assert files_left(run) <= {"log", "term", "events.jsonl"}
