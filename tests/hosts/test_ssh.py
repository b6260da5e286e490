"""`llx.bootstrap.ssh` against real sshds: connecting and being refused, commands, files, faults."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.ssh import (
    AuthError,
    ConnectError,
    ConnectFailure,
    HostKeyError,
    SshShell,
    connect,
    resolve,
)
from llx.environment import Environment
from llx.errors import DeadlineError, ExitCode, HostError, LlxError, UnreachableError
from llx.settings import HostSettings
from tests.hosts.rig import Rig

pytestmark = pytest.mark.hosts

Hosts = Callable[..., Rig]
SOON_S = 20.0
"""For what takes seconds, and on a busy machine longer; whatever else would end it comes later."""


def never(*words: str) -> bool:
    raise AssertionError(f"nobody was to be asked about {words}")


def environment_of(rig: Rig, **more: str) -> Environment:
    return Environment({**rig.operator_environment(), **more}, Path.cwd())


def shell_to(
    rig: Rig,
    name: str = "h1",
    *,
    ask: Callable[[str, str, str], bool] = never,
    timeout_s: float = 30,
    variables: dict[str, str] | None = None,
    **changes: object,
) -> SshShell:
    """Connect to `name` as cluster.yaml would have it, with some keys of it changed."""
    given = next((each for each in rig.cluster_hosts() if each["name"] == name), {"name": name})
    wanted = {key: value for key, value in {**given, **changes}.items() if value is not None}
    environment = environment_of(rig, **(variables or {}))
    return connect(resolve(HostSettings(**wanted), environment), ask=ask, timeout_s=timeout_s)


def ssh_file(rig: Rig, name: str, text: str | None = None) -> Path:
    path = rig.home / ".ssh" / name
    if text is not None:
        path.write_text(text)
    return path


@pytest.fixture
def rig(hosts: Hosts) -> Rig:
    return hosts(1)


@pytest.fixture
def shell(rig: Rig) -> Iterator[SshShell]:
    with shell_to(rig) as shell:
        yield shell


def eventually(holds: Callable[[], bool], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class TestRun:
    def test_a_command_keeps_its_words_code_and_outputs(self, shell: SshShell) -> None:
        words = ["a b", "$HOME", "'", '"', "*", "", "é\n", "-n", "!x"]
        done = shell.run(["printf", "<%s>", *words])
        assert done.stdout == "".join(f"<{word}>" for word in words)
        done = shell.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
        assert shell.run(["no-such-command"]).exit_code == 127
        assert shell.host == "h1"

    def test_environment_and_input(self, shell: SshShell) -> None:
        done = shell.run(["sh", "-c", 'cat; echo "$GREETING"'], stdin=b"in\n",
                         environment={"GREETING": "a 'b'"})  # fmt: skip
        assert done.stdout == "in\na 'b'\n"
        assert shell.run(["cat"]).stdout == ""
        assert shell.run(["true"], stdin=b"x" * (4 << 20)).is_success

    def test_much_on_all_three_streams_at_once(self, shell: SshShell) -> None:
        given = os.urandom(3 << 20).hex().encode()
        done = shell.run(["tee", "/dev/stderr"], stdin=given)
        assert done.stdout.encode() == given
        assert given.endswith(done.stderr.encode())
        assert len(done.stderr) == 1 << 20

    def test_too_much_output_is_an_error_unless_lines_are_heard(self, shell: SshShell) -> None:
        argv = ["sh", "-c", "yes $(seq 30) | head -c 20000000"]
        with pytest.raises(HostError, match="more than 16 MiB"):
            shell.run(argv)
        lines: list[str] = []
        done = shell.run(argv, on_line=lines.append)
        assert sum(map(len, lines)) + len(lines) - 1 == 20_000_000
        assert len(done.stdout) == 1 << 20

    def test_lines_are_heard_as_they_come(self, rig: Rig, shell: SshShell) -> None:
        """The command goes on when the first lines have been heard."""
        heard: list[str] = []

        def hear(line: str) -> None:
            heard.append(line)
            if sorted(heard) == ["one", "two"]:
                rig["h1"].write("/tmp/heard", "")

        wait = "until [ -e /tmp/heard ]; do sleep 0.05; done"
        argv = ["sh", "-c", f"echo one; echo two >&2; {wait}; printf '1%%\\r2%%\\nlast'"]
        shell.run(argv, on_line=hear, timeout_s=30)
        assert sorted(heard) == ["1%", "2%", "last", "one", "two"]

    def test_what_a_command_leaves_behind_does_not_hold_us_up(
        self, rig: Rig, shell: SshShell
    ) -> None:
        began = time.monotonic()
        done = shell.run(["sh", "-c", "sleep 1234 & setsid sleep 4321 & echo started"])
        assert done.stdout == "started\n"
        assert time.monotonic() - began < 60, "they sleep for longer"

        def left() -> list[str]:
            lines = rig["h1"].processes().values()
            return [line for line in lines if line in {"sleep 1234", "sleep 4321"}]

        assert eventually(lambda: sorted(left()) == ["sleep 1234", "sleep 4321"])
        shell.close()
        time.sleep(1)
        assert sorted(left()) == ["sleep 1234", "sleep 4321"]

    @pytest.mark.parametrize("script", ["sleep 1234", "trap '' TERM; sleep 1234; sleep 1234"])
    def test_a_timeout_ends_the_command_there_too(
        self, rig: Rig, shell: SshShell, script: str
    ) -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineError, match=r"h1: .*sleep 1234.* longer than 1 s") as caught:
            shell.run(["sh", "-c", f"{script}; true"], timeout_s=1)
        assert time.monotonic() - began < 60
        assert caught.value.exit_code is ExitCode.TIMEOUT
        assert eventually(lambda: not rig["h1"].processes("sleep 1234"))

    @pytest.mark.parametrize("script", ["sleep 1234", "trap '' TERM; sleep 1234; sleep 1234"])
    def test_a_command_ends_with_the_connection(
        self, rig: Rig, shell: SshShell, script: str
    ) -> None:
        results: list[LlxError] = []

        def work() -> None:
            try:
                shell.run(["sh", "-c", f"{script}; true"], stdin=b"some")
            except LlxError as error:
                results.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert eventually(lambda: bool(rig["h1"].processes("sleep 1234")))
        shell.close()
        thread.join(20)
        assert [type(each) for each in results] == [UnreachableError]
        assert eventually(lambda: not rig["h1"].processes("sleep 1234"))

    def test_a_killed_command_is_no_lost_connection(self, rig: Rig, shell: SshShell) -> None:
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(shell.run, ["sleep", "1234"])
            # The wrapper's command line has these words, too.
            assert eventually(lambda: "sleep 1234" in rig["h1"].processes().values())
            for pid, line in rig["h1"].processes("sleep 1234").items():
                if line == "sleep 1234":
                    os.kill(pid, 9)
            assert ended.result(30).exit_code == 137

    def test_many_threads_share_a_connection(self, shell: SshShell) -> None:
        def work(item: str) -> str:
            return shell.run(["sh", "-c", f"sleep 0.05; echo {item}; echo {item} >&2"]).stdout

        items = [str(number) for number in range(60)]
        assert fan_out(items, work) == {item: f"{item}\n" for item in items}

    def test_an_sshd_that_allows_few_sessions_serves_all_in_turn(self, hosts: Hosts) -> None:
        rig = hosts(1, sshd="MaxSessions 1")
        items = [str(number) for number in range(12)]
        with shell_to(rig) as shell:
            results = fan_out(items, lambda item: shell.run(["echo", item]).stdout)
        assert results == {item: f"{item}\n" for item in items}

    def test_what_a_listener_raises_is_its_own(self, shell: SshShell, tmp_path: Path) -> None:
        def listener(*_: object) -> None:
            raise BrokenPipeError("closed")

        with pytest.raises(BrokenPipeError, match="closed"):
            shell.run(["echo", "x"], on_line=listener)
        source = tmp_path / "source"
        source.write_bytes(b"x")
        with pytest.raises(BrokenPipeError, match="closed"):
            shell.put_file(source, "/home/llx/sent", on_progress=listener)
        assert shell.read("/home/llx/sent") is None


class TestFiles:
    def test_put_replaces_a_file_with_exactly_these_rights(self, rig: Rig, shell: SshShell) -> None:
        content = bytes(range(256)) * 1000
        shell.put(b"old", "/home/llx/file", mode=0o644)
        shell.put(content, "/home/llx/file")
        assert shell.read("/home/llx/file") == content
        stat = rig["h1"].x("stat", "-c", "%a %U", "/home/llx/file").stdout.strip()
        assert stat == "600 llx"
        shell.put(b"", "/home/llx/a b'c", mode=0o750)
        assert rig["h1"].x("stat", "-c", "%a %s", "/home/llx/a b'c").stdout.strip() == "750 0"
        assert set(rig["h1"].x("ls", "-A", "/home/llx").stdout.splitlines()) == {
            ".ssh", "a b'c", "file"
        }  # fmt: skip

    def test_read_gives_some_bytes_or_none(self, rig: Rig, shell: SshShell) -> None:
        rig["h1"].write("/home/llx/file", "0123456789")
        assert shell.read("/home/llx/file", limit=4) == b"0123"
        assert shell.read("/home/llx/none") is None
        with pytest.raises(HostError, match=r"h1: read /etc/shadow: .*Permission denied"):
            shell.read("/etc/shadow")

    def test_a_file_is_sent_with_progress(self, rig: Rig, shell: SshShell, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(os.urandom((20 << 20) + 17))
        steps: list[tuple[int, int]] = []
        shell.put_file(source, "/home/llx/sent", on_progress=lambda *step: steps.append(step))
        wanted = hashlib.sha256(source.read_bytes()).hexdigest()
        assert rig["h1"].x("sha256sum", "/home/llx/sent").stdout.split()[0] == wanted
        assert rig["h1"].x("stat", "-c", "%a", "/home/llx/sent").stdout.strip() == "644"
        size = source.stat().st_size
        assert len(steps) > 100
        assert steps == sorted(steps)
        assert steps[-1] == (size, size)
        assert {total for _, total in steps} == {size}

    def test_what_cannot_be_written_is_said_and_leaves_nothing(
        self, hosts: Hosts, tmp_path: Path
    ) -> None:
        rig = hosts(1, size="8m")
        big = tmp_path / "big"
        big.write_bytes(bytes(16 << 20))
        with shell_to(rig) as shell:
            for path, reason in (
                ("/home/llx/none/file", "nonexistent|No such file"),
                ("/etc/file", "Permission denied"),
                ("/home/llx", "is a directory"),
            ):
                with pytest.raises(HostError, match=f"h1: write {path}: .*({reason})"):
                    shell.put(b"x", path)
                with pytest.raises(HostError, match=f"h1: write {path}: .*({reason})"):
                    shell.put_file(big, path)
            with pytest.raises(HostError, match="No space left"):
                shell.put(big.read_bytes(), "/home/llx/big")
            with pytest.raises(HostError, match=r"h1: write /home/llx/big: .*No space left"):
                shell.put_file(big, "/home/llx/big")
            assert rig["h1"].x("ls", "-A", "/home/llx").stdout.split() == [".ssh"]
            assert shell.run(["true"]).is_success


class TestRefusals:
    """Exit code 3 for all of them; each names host, step, reason and remedy."""

    def refused(self, kind: type[ConnectError], failure: ConnectFailure, rig: Rig,
                **changes: object) -> ConnectError:  # fmt: skip
        with pytest.raises(kind) as caught:
            shell_to(rig, **changes).close()  # type: ignore[arg-type]
        error = caught.value
        assert error.failure is failure
        assert error.exit_code is ExitCode.UNREACHABLE
        assert error.message.startswith(f"{error.host}: connect: ")
        assert error.step == "connect"
        assert error.remedy
        return error

    def test_a_key_that_is_not_welcome(self, rig: Rig) -> None:
        other = ssh_file(rig, "other")
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", other], check=True)
        error = self.refused(AuthError, ConnectFailure.AUTH, rig, identity_file=other)
        assert str(other) in error.message
        assert f"llx@{rig['h1'].address}" in error.message
        assert "identity_file" in error.remedy
        error = self.refused(AuthError, ConnectFailure.AUTH, rig, user="nobody-here")
        assert "nobody-here@" in error.message
        missing = ssh_file(rig, "missing")
        error = self.refused(AuthError, ConnectFailure.AUTH, rig, identity_file=missing)
        assert f"{missing} does not exist" in error.message

    def test_an_encrypted_key_needs_the_agent(self, rig: Rig) -> None:
        locked = ssh_file(rig, "locked")
        shutil.copy(rig.key, locked)
        shutil.copy(f"{rig.key}.pub", f"{locked}.pub")
        subprocess.run(["ssh-keygen", "-qp", "-N", "password", "-f", locked], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        error = self.refused(AuthError, ConnectFailure.AUTH, rig, identity_file=locked)
        assert f"{locked} is encrypted" in error.message
        assert error.remedy == f"ssh-add {locked}"
        with agent_with_key(rig) as path:
            variables = {"SSH_AUTH_SOCK": path}
            with shell_to(rig, identity_file=locked, variables=variables) as shell:
                assert shell.run(["true"]).is_success
            # Without a file, the agent's keys are offered.
            with shell_to(rig, identity_file=None, variables=variables) as shell:
                assert shell.run(["true"]).is_success

    def test_an_unknown_host_key_is_asked_about_once_and_remembered(self, rig: Rig) -> None:
        known = ssh_file(rig, "known_hosts", "")
        error = self.refused(HostKeyError, ConnectFailure.HOST_KEY, rig, ask=lambda *words: False)
        assert "unknown" in error.message
        assert known.read_text() == ""
        asked: list[tuple[str, str, str]] = []

        def ask(*words: str) -> bool:
            asked.append(words)  # type: ignore[arg-type]
            return True

        shell_to(rig, ask=ask).close()
        listed = subprocess.run(["ssh-keygen", "-lf", known], capture_output=True, text=True)
        ((host, kind, fingerprint),) = asked
        assert "h1" in host
        assert rig["h1"].address in host
        assert kind == "ssh-ed25519"
        assert fingerprint in listed.stdout
        shell_to(rig).close()

    def test_a_changed_host_key_is_refused_without_a_question(self, rig: Rig) -> None:
        known = ssh_file(rig, "known_hosts")
        known.write_text("# a comment\n" + known.read_text())
        before = fingerprint_of(known)
        rig["h1"].make_host_key()
        rig["h1"].restart()
        error = self.refused(HostKeyError, ConnectFailure.HOST_KEY, rig)
        after = ssh_file(rig, "new", f"h1 {rig['h1'].host_key}\n")
        for part in (before, fingerprint_of(after), f"{known}:2", "changed"):
            assert part in error.message
        assert f"ssh-keygen -R {rig['h1'].address} -f {known}" in error.remedy

    def test_nobody_there(self, rig: Rig) -> None:
        refuse = self.refused
        error = refuse(ConnectError, ConnectFailure.REFUSED, rig, port=2222)
        assert "port 2222" in error.message
        refuse(ConnectError, ConnectFailure.NAME, rig, address="no-such-host.invalid")
        nowhere = f"{rig.network}.99"
        began = time.monotonic()
        with pytest.raises(ConnectError, match=f"h1: connect: {nowhere} port 22"):
            shell_to(rig, address=nowhere, timeout_s=2)
        rig["h1"].off()
        with pytest.raises(ConnectError, match=r"h1: connect: .*(no answer|No route)"):
            shell_to(rig, timeout_s=2)
        assert time.monotonic() - began < SOON_S

    def test_a_host_that_accepts_and_says_nothing(self, rig: Rig) -> None:
        rig["h1"].freeze()
        began = time.monotonic()
        error = self.refused(ConnectError, ConnectFailure.PROTOCOL, rig, timeout_s=2)
        assert time.monotonic() - began < SOON_S
        assert f"ssh -v -p 22 llx@{rig['h1'].address}" in error.remedy


class TestSilentDeath:
    def lost(self, work: Callable[[], object]) -> None:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"h1: .*no answer for 5 s"):
            work()
        assert time.monotonic() - began <= SOON_S

    @pytest.mark.parametrize("how", ["off", "freeze"])
    def test_in_the_middle_of_a_command(self, rig: Rig, shell: SshShell, how: str) -> None:
        timer = threading.Timer(0.3, getattr(rig["h1"], how))
        # Switched off from another thread: nothing is started there.
        timer.start()
        self.lost(lambda: shell.run(["sleep", "60"], timeout_s=60))
        timer.join()
        for work in (
            lambda: shell.run(["true"]),
            lambda: shell.put(b"x", "/home/llx/x"),
            lambda: shell.dial("127.0.0.1", 22),
        ):
            took = []
            for _ in range(3):
                began = time.monotonic()
                self.lost(work)
                took.append(time.monotonic() - began)
            assert min(took) < 4, "a known death is not waited for again"

    def test_in_the_middle_of_a_file(self, rig: Rig, shell: SshShell, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(bytes(64 << 20))
        is_cut = threading.Event()

        def cut(done: int, total: int) -> None:
            if done > total // 4 and not is_cut.is_set():
                is_cut.set()
                rig["h1"].off()

        self.lost(lambda: shell.put_file(source, "/home/llx/sent", on_progress=cut))

    def test_behind_a_jump_host(self, hosts: Hosts) -> None:
        rig = hosts(2)
        ssh_file(rig, "config", f"Host {rig['h1'].address}\n ProxyJump llx@{rig['h2'].address}\n")
        with shell_to(rig) as shell:
            threading.Timer(0.3, rig["h1"].off).start()
            self.lost(lambda: shell.run(["sleep", "60"], timeout_s=60))
        rig["h1"].on()
        with shell_to(rig) as shell:
            threading.Timer(0.3, rig["h2"].off).start()
            with pytest.raises(UnreachableError, match=f"jump host llx@{rig['h2'].address}: no an"):
                shell.run(["sleep", "60"], timeout_s=60)

    def test_a_distant_host_is_not_a_dead_one(self, rig: Rig, tmp_path: Path) -> None:
        rig["h1"].delay(100)
        source = tmp_path / "source"
        source.write_bytes(os.urandom(1 << 20))
        with shell_to(rig) as shell:
            shell.put_file(source, "/home/llx/sent")
            assert shell.run(["sh", "-c", "sleep 5.5; echo ok"]).stdout == "ok\n"


class TestWays:
    def test_an_alias_of_the_ssh_configuration(self, rig: Rig) -> None:
        other = ssh_file(rig, "other_key")
        shutil.copy(rig.key, other)
        ssh_file(rig, "id_ed25519").rename(ssh_file(rig, "away"))
        known = ssh_file(rig, "known_hosts").rename(ssh_file(rig, "elsewhere"))
        ssh_file(rig, "extra", f"  HostName {rig['h1'].address}\n  User llx\n")
        ssh_file(
            rig,
            "config",
            "Host other\n  HostName 192.0.2.1\nHost gpu?\n  Include ~/.ssh/extra\n"
            "  IdentityFile ~/.ssh/other_key\n"
            f"  UserKnownHostsFile {known}\n  IdentitiesOnly yes\n",
        )
        try:
            with shell_to(rig, "alias", address="gpu1") as shell:
                assert shell.run(["id", "-un"]).stdout == "llx\n"
        finally:
            ssh_file(rig, "away").rename(rig.key)

    def test_through_two_jump_hosts(self, hosts: Hosts) -> None:
        rig = hosts(3)
        one, two, three = rig.hosts
        three.drop(f"{rig.network}.1", two)
        ssh_file(
            rig,
            "config",
            f"Host far\n  HostName {three.address}\n  ProxyJump llx@{two.address},near\n"
            f"Host near\n  HostName {one.address}\n  User llx\n",
        )
        with shell_to(rig, "far", address="far", user="llx") as shell:
            assert shell.run(["hostname"]).stdout == "h3\n"
            from_where = shell.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout.split()[0]
            assert from_where == one.address
            assert len(shell.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000
        one.off()
        with pytest.raises(ConnectError, match=r"far: connect: jump host llx@\S+: ") as caught:
            shell_to(rig, "far", address="far", user="llx", timeout_s=3)
        assert caught.value.host == "far"

    def test_through_a_proxy_command(self, rig: Rig) -> None:
        options = f"-F none -o UserKnownHostsFile={rig.home}/.ssh/known_hosts -i {rig.key}"
        command = f"ssh {options} -W %h:%p llx@{rig['h1'].address}"
        alias = f"Host h1\n  HostName 127.0.0.1\n  HostKeyAlias {rig['h1'].address}\n"
        ssh_file(rig, "config", f"{alias}  ProxyCommand {command}\n")
        with shell_to(rig, address="h1") as shell:
            assert shell.run(["hostname"]).stdout == "h1\n"

    def test_many_at_once_through_one_jump_host(self, hosts: Hosts) -> None:
        """More than sshd lets log in at the same time."""
        rig = hosts(2)
        config = f"Host *\n  ProxyJump llx@{rig['h2'].address}\n"
        ssh_file(rig, "config", config)

        def work(_: str) -> str:
            with shell_to(rig, timeout_s=20) as shell:
                return shell.run(["hostname"]).stdout

        results = fan_out([str(number) for number in range(24)], work)
        assert set(results.values()) == {"h1\n"}

    def test_hosts_are_connected_to_in_parallel(self, hosts: Hosts) -> None:
        rig = hosts(3)
        for host in rig.hosts:
            host.delay(100)  # what is waited for, rather than computed

        def took(names: list[str]) -> float:
            began = time.monotonic()
            assert fan_out(names, lambda name: shell_to(rig, name).close()) == dict.fromkeys(names)
            return time.monotonic() - began

        all_took, one_took = (
            [took(each) for _ in range(3)] for each in (["h1", "h2", "h3"], ["h1"])
        )
        assert min(all_took) < 2 * min(one_took)


def fingerprint_of(path: Path) -> str:
    done = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


@contextlib.contextmanager
def agent_with_key(rig: Rig) -> Iterator[str]:
    """An ssh-agent that holds the operator's key; its socket."""
    path = str(ssh_file(rig, "agent"))
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        assert eventually(Path(path).exists)
        environment = {**rig.operator_environment(), "SSH_AUTH_SOCK": path}
        subprocess.run(["ssh-add", "-q", rig.key], env=environment, check=True)
        yield path
    finally:
        agent.terminate()
        agent.wait()
