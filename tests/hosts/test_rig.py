"""The rig itself: what a test on namespace hosts may rely on."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts.rig import HERE, Host, Rig, python_binds

pytestmark = pytest.mark.hosts

Hosts = Callable[..., Rig]


def reaches(one: Host, another: Host) -> bool:
    script = f"timeout 5 bash -c '</dev/tcp/{another.address}/22'"
    return one.x("sh", "-c", script).returncode == 0


def is_cut_off(one: Host, another: Host) -> bool:
    """Whether a connection is neither made nor refused."""
    script = f"timeout 1 bash -c '</dev/tcp/{another.address}/22'"
    return one.x("sh", "-c", script).returncode == 124


def answers(host: Host, timeout_s: float = 10) -> bool:
    try:
        with socket.create_connection((host.address, 22), timeout_s) as connection:
            connection.settimeout(timeout_s)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def is_silent(host: Host) -> bool:
    try:
        with socket.create_connection((host.address, 22), 1) as connection:
            connection.settimeout(1)
            connection.recv(4)
    except TimeoutError:
        return True
    return False


def test_hosts_are_apart_from_each_other_and_from_this_machine(hosts: Hosts) -> None:
    rig = hosts(2)
    one, two = rig.hosts
    one.write("/home/llx/note", "mine")
    assert one.x("hostname").stdout.strip() == "h1"
    assert one.x("cat", "/home/llx/note").stdout == "mine"
    assert two.x("ls", "/home/llx").stdout == ""
    assert one.x("id", "-u", user="llx").stdout.strip() == "4242"
    assert one.x("ls", str(HERE)).returncode != 0
    assert one.x("ls", "-A", "/tmp", "/opt", "/usr/local").stdout.split() == [
        "/opt:", "/tmp:", "/usr/local:"
    ]  # fmt: skip
    assert os.getpid() not in one.pids()
    assert not Path("/home/llx/note").exists()
    assert reaches(one, two)
    assert reaches(two, one)


def test_a_python_of_ours_is_there_only_when_bound_and_read_only(hosts: Hosts) -> None:
    python = Path(sys.executable)
    rig = hosts(1, hide=("/usr/bin/python3*",))
    assert rig["h1"].x("sh", "-c", "command -v python3").returncode != 0
    assert rig["h1"].x(str(python), "--version").returncode != 0
    rig["h1"].restart(binds=python_binds(python))
    ran = rig["h1"].x(str(python), "-c", "import msgspec; print(6 * 7)", user="llx")
    assert ran.stdout == "42\n", ran.stderr
    assert "Read-only" in rig["h1"].x("touch", str(python.parent / "new")).stderr


def test_its_own_paths_are_told_from_what_it_sees_of_ours(hosts: Hosts, tmp_path: Path) -> None:
    """Also where ours lies in a directory of which it has its own, as a clone below /tmp does."""
    (tmp_path / "ours").touch()
    rig = hosts(1, binds=(tmp_path,))
    rig["h1"].write("/tmp/note", "mine")
    assert rig["h1"].x("ls", str(tmp_path)).stdout == "ours\n"
    assert rig["h1"].own_paths("/tmp") == ["/tmp/note"]


def test_a_small_disk_is_full_soon(hosts: Hosts) -> None:
    rig = hosts(1, size="8m")
    written = rig["h1"].x("dd", "if=/dev/zero", "of=/home/llx/big", "bs=1M", "count=16")
    assert "No space left" in written.stderr


def test_a_power_cycle_cleans_the_disk_unless_it_is_kept(hosts: Hosts) -> None:
    rig = hosts(1)
    rig["h1"].write("/home/llx/note", "mine")
    rig["h1"].restart()
    assert rig["h1"].x("ls", "/home/llx").stdout == ""
    rig["h1"].restart(keeps_disk=True)
    for path in ("/home/llx/note", "/etc/note", "/tmp/note", "/run/note"):
        rig["h1"].write(path, "mine")
    rig["h1"].restart()
    assert rig["h1"].x("cat", "/home/llx/note", "/etc/note").stdout == "minemine"
    assert rig["h1"].x("ls", "/tmp/note", "/run/note").stdout == ""
    rig = hosts(1, keeps_disk=True)
    assert rig["h1"].x("ls", "/home/llx").stdout == ""


def test_a_silent_power_cut_says_nothing_a_loud_one_does(hosts: Hosts) -> None:
    rig = hosts(2)
    for host, is_silent in zip(rig.hosts, (True, False), strict=True):
        with socket.create_connection((host.address, 22), 20) as connection:
            connection.recv(100)
            connection.settimeout(1 if is_silent else 20)
            host.off(is_silent=is_silent)
            if is_silent:
                with pytest.raises(TimeoutError):
                    connection.recv(1)
            else:
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        host.on()
        assert answers(host)


def test_cable_partition_freeze_and_kill(hosts: Hosts) -> None:
    rig = hosts(3)
    one, two, three = rig.hosts
    one.cable(is_in=False)
    assert is_silent(one)
    one.cable(is_in=True)
    assert answers(one)

    one.drop(two)
    assert is_cut_off(one, two)
    assert is_cut_off(two, one)
    assert reaches(one, three)
    assert answers(one)
    one.heal()
    assert reaches(one, two)
    one.drop()
    assert is_silent(one)
    one.heal()
    assert answers(one)

    two.freeze()
    assert is_silent(two)
    two.thaw()
    assert answers(two)

    sleeper = three.spawn("sleep", "1234")
    deadline = time.monotonic() + 20
    while not three.processes("sleep 1234") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert three.kill("sleep 1234") == 1
    assert sleeper.wait(20) != 0
    assert not three.processes("sleep 1234")


def test_delay_is_added_each_way_and_taken_away_again(hosts: Hosts) -> None:
    rig = hosts(1)

    def connect_s() -> float:
        took = []
        for _ in range(3):
            began = time.monotonic()
            socket.create_connection((rig["h1"].address, 22), 20).close()
            took.append(time.monotonic() - began)
        return min(took)

    rig["h1"].delay(60)
    assert connect_s() >= 0.12
    rig["h1"].delay(0)
    assert connect_s() < 0.12


def test_a_covered_file_reads_otherwise(hosts: Hosts) -> None:
    rig = hosts(1)
    rig["h1"].cover("/proc/meminfo", "MemTotal: 1 kB\n")
    assert rig["h1"].x("cat", "/proc/meminfo", user="llx").stdout == "MemTotal: 1 kB\n"
    rig["h1"].uncover("/proc/meminfo")
    assert "SwapTotal" in rig["h1"].x("cat", "/proc/meminfo", user="llx").stdout


def test_the_operator_has_a_home_of_its_own(hosts: Hosts) -> None:
    rig = hosts(2)
    environment = rig.operator_environment()
    (rig.home / "state").mkdir()
    assert "SSH_AUTH_SOCK" not in environment
    assert Path(environment["HOME"]) == rig.home
    options = ["-F", "none", "-o", f"UserKnownHostsFile={rig.home}/.ssh/known_hosts", "-i", rig.key]
    for host in rig.cluster_hosts():
        command = ["ssh", *options, f"{host['user']}@{host['address']}", "hostname"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == host["name"], done.stderr
    assert not (hosts(1).home / "state").exists()


def test_everything_ends_with_its_maker_even_by_sigkill(host_rig: Rig) -> None:
    """A rig made by a process that is killed: its hosts end, its number can be used again."""
    script = (
        "from tests.hosts.rig import *; import time; rig = Rig(); rig.up(2); "
        "rig['h1'].delay(1); "
        "print(rig.number, *(host.init for host in rig.hosts), rig.switch.pid, flush=True); "
        "time.sleep(600)"
    )
    root = HERE.parents[1]
    maker = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    number, *pids = map(int, maker.stdout.readline().split())
    assert len(pids) == 3
    assert number != host_rig.number
    namespaces = [Path(f"/proc/{pid}/ns/net").readlink() for pid in pids]
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    deadline = time.monotonic() + 20
    while _in_namespaces(namespaces) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _in_namespaces(namespaces)
    again = Rig()
    try:
        assert again.number == number
        again.up(1)
        assert answers(again["h1"])
    finally:
        again.close()
    assert not again.directory.exists()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert f"llx-rig{number}" not in links


@pytest.mark.parametrize(
    ("require", "code", "outcome", "reason"),
    [("0", 0, "1 skipped", "needs root"), ("1", 1, "1 error", "LLX_REQUIRE_HOSTS is set")],
)
def test_without_root_the_tier_is_skipped_and_counted_or_fails_if_required(
    host_rig: Rig, require: str, code: int, outcome: str, reason: str
) -> None:
    test = f"{HERE}/test_rig.py::test_a_covered_file_reads_otherwise"
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        ["unshare", "--user", *pytest_],
        capture_output=True,
        text=True,
        env={**os.environ, "LLX_REQUIRE_HOSTS": require},
        cwd=HERE.parents[1],
    )
    assert done.returncode == code, done.stdout
    assert outcome in done.stdout
    assert reason in done.stdout


def _in_namespaces(namespaces: list[Path]) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns" / "net").readlink() in namespaces:
                found.append(entry.name)
        except OSError:
            continue
    return found
