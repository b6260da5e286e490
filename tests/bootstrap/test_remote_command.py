"""The line that is sent for a command, run by the shells that hosts have."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llx.bootstrap.remote_command import tied

SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)]


@pytest.fixture(params=SHELLS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH on which `sh` is the shell under test."""
    shell = shutil.which(request.param)
    assert shell is not None
    (tmp_path / "sh").symlink_to(shell)
    return f"{tmp_path}:/usr/bin:/bin"


def start(path: str, *argv: str, timeout_s: float = 20, given: bytes = b"") -> subprocess.Popen:
    line = tied(argv, None, timeout_s=timeout_s, num_input=len(given))
    process = subprocess.Popen(
        ["sh", "-c", line],
        env={"PATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # as sshd does
    )
    assert process.stdin is not None
    process.stdin.write(given)
    process.stdin.flush()
    return process


def ended(process: subprocess.Popen) -> tuple[int, bytes, bytes]:
    """How it ended, while its input is still open."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        outputs = process.stdout.read(), process.stderr.read()
        return (process.wait(20), *outputs)


def test_exit_code_and_outputs_pass_while_our_side_stays_open(path: str) -> None:
    script = "echo out; echo err >&2; exit 7"
    assert ended(start(path, "sh", "-c", script)) == (7, b"out\n", b"err\n")


@pytest.mark.parametrize("given", [b"", b"x", b"some\0bytes\n" * 100_000])
def test_the_command_reads_exactly_its_input_and_then_the_end(path: str, given: bytes) -> None:
    process = start(path, "wc", "-c", given=given)
    assert int(ended(process)[1]) == len(given)


def test_a_command_that_wants_no_input_does_not_hang(path: str) -> None:
    assert ended(start(path, "true", given=b"x" * 50_000))[0] == 0


def test_signals_are_the_commands_own_to_set(path: str) -> None:
    """A daemon started by it must not inherit an ignored SIGINT or SIGTERM."""
    _, status, _ = ended(start(path, "grep", "SigIgn", "/proc/self/status"))
    ignored = int(status.split()[1], 16)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        assert not ignored >> (number - 1) & 1


def test_it_ends_with_our_side(path: str) -> None:
    process = start(path, "sh", "-c", "echo $$; sleep 60; true", given=b"some")
    assert process.stdin is not None
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdin.close()
    with process:
        process.wait(20)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists(), "it would have slept for a minute"


def test_it_ends_in_time(path: str) -> None:
    process = start(path, "sleep", "60", timeout_s=1)
    began = time.monotonic()
    assert ended(process)[0] == 124
    assert time.monotonic() - began < 30


def test_what_it_started_as_a_session_of_its_own_stays(path: str) -> None:
    # It says its number once it is out of reach: what is about to be a session would be ended.
    apart = "setsid sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1' & sleep 60"
    process = start(path, "sh", "-c", apart)
    assert process.stdin is not None
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdin.close()
    with process:
        process.wait(20)
    try:
        assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        subprocess.run(["kill", str(pid)], check=True)
