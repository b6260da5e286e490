"""What is done to a process or a host, done to a real one of our own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llx.agent.shim import MARK
from llx.chaos import inject
from llx.chaos.inject import ProcessId, ThisMachine
from llx.errors import ConflictError, NotFoundError

HAND = ThisMachine()


def stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def wait_state(pid, states):
    deadline = time.monotonic() + 20
    while stat(pid)[0] not in states:
        assert time.monotonic() < deadline, stat(pid)[0]
        time.sleep(0.02)


@pytest.fixture
def victim():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield ProcessId(process.pid, int(stat(process.pid)[19]))
        process.kill()


def test_a_frozen_process_goes_on_by_itself(victim):
    inject.freeze(HAND, victim, 1)
    deadline = time.monotonic() + 60
    # Only what was stopped can have been continued.
    while os.waitid(os.P_PID, victim.pid, os.WCONTINUED | os.WNOHANG) is None:
        assert time.monotonic() < deadline, stat(victim.pid)[0]
        time.sleep(0.02)
    wait_state(victim.pid, "S")


def test_a_slow_process_stops_again_and_again_and_goes_on(victim):
    inject.slow(HAND, victim, 30)  # it ends with its victim
    for state in ("T", "S", "T", "S"):
        wait_state(victim.pid, state)


def test_a_killed_process_is_dead(victim):
    inject.kill(HAND, victim)
    wait_state(victim.pid, "Z")


@pytest.mark.parametrize(
    "fault", [inject.kill, lambda *a: inject.freeze(*a, 1), lambda *a: inject.slow(*a, 1)]
)
def test_another_process_of_the_same_number_is_left_alone(victim, fault):
    with pytest.raises(NotFoundError, match="gone"):
        fault(HAND, ProcessId(victim.pid, victim.start - 1))
    wait_state(victim.pid, "S")


REACH = [
    sys.executable,
    "-c",
    (
        "import errno, socket, sys; s = socket.socket(); s.settimeout(1)\n"
        "sys.exit(s.connect_ex((sys.argv[1], 9)) != errno.ECONNREFUSED)"
    ),
]
"""Nobody listens there: who is reached refuses, who is cut off says nothing."""


def test_only_a_process_of_this_cluster_is_found_by_its_title(tmp_path):
    record = {"state": "running", "shim_pid": 1, "shim_start": 1, "mark": "ours"}
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "shim.json").write_text(json.dumps(record))

    def sleep(mark):
        return subprocess.Popen(["sleep", "61.7"], env={MARK: mark})

    with sleep("ours") as ours, sleep("ours, and more") as others:
        found = inject.find_titled(HAND, tmp_path, "ray", "*leep")
        assert found == ProcessId(ours.pid, int(stat(ours.pid)[19]))
        ours.kill()
        ours.wait()
        with pytest.raises(NotFoundError):
            inject.find_titled(HAND, tmp_path, "ray", "*leep")
        others.kill()


class Namespace:
    """A host with a network of its own, cut off from everything."""

    def __init__(self, pid):
        self.pid = pid

    def run(self, argv, *, timeout_s=30.0, stdin=b""):
        inside = ["nsenter", "-t", str(self.pid), "-n", *argv]
        return HAND.run(inside, timeout_s=timeout_s, stdin=stdin)


@pytest.mark.hosts
def test_a_partition_drops_what_peers_say_and_ends_by_itself():
    with subprocess.Popen(["unshare", "-n", "sleep", "600"]) as process:
        host = Namespace(process.pid)
        deadline = time.monotonic() + 120
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{process.pid}/ns/net").readlink() == own:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        host.run(["ip", "link", "set", "lo", "up"])
        assert host.run([*REACH, "127.0.0.2"]).exit_code == 0
        inject.partition(host, ["127.0.0.2", "2001:db8::1"], 10)
        with pytest.raises(ConflictError, match="already"):
            inject.partition(host, ["127.0.0.3"], 10)
        assert host.run([*REACH, "127.0.0.2"]).exit_code != 0
        assert host.run([*REACH, "127.0.0.1"]).exit_code == 0
        while host.run(["nft", "list", "tables"]).stdout.strip():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert host.run([*REACH, "127.0.0.2"]).exit_code == 0
        process.kill()
