"""A connection that verbs share: who is told what, and when it ends; over this machine's shell."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llx.bootstrap import ssh_master, ssh_sharing
from llx.bootstrap.ssh_sharing import MASTER_FILE, begin_sharing, shared_control
from llx.errors import RemoteError, UnreachableError
from llx.file_lock import is_held
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import Phase, ProcessStatus, save_spec
from tests.bootstrap.fake_shell import LocalShell
from tests.node import ROOT

SETTINGS = ClusterSettings.model_validate(
    {
        "cluster": "c",
        "hosts": [{"name": "h1", "address": "127.0.0.1"}],
        "models": [{"name": "m", "model": "/m"}],
    }
)


class Api(BaseHTTPRequestHandler):
    """A head that knows its token, and of no event."""

    protocol_version = "HTTP/1.1"  # a connection lasts
    tokens: tuple[str, ...] = ("secret",)

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] in {f"Bearer {each}" for each in self.tokens}
        body = json.dumps({"events": [], "cursor": "7"} if is_known else {}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Place:
    """A head's host, and what an operator's machine knows of the cluster."""

    state_dir: Path
    host_dir: Path
    shell: LocalShell
    connections: int = 0
    master: threading.Thread | None = None

    def head_is_at(self, port: int, token: str = "secret", phase: Phase = Phase.READY) -> None:
        (self.host_dir / "procs/head").mkdir(parents=True, exist_ok=True)
        status = ProcessStatus(phase, addresses=[f"http://127.0.0.1:{port}"])
        save_spec(self.host_dir / "procs/head/status.json", status)
        (self.host_dir / "token").write_text(f"{token}\n")

    def lend(self, persist_s: float = 30.0) -> None:
        """Begin a master, and wait until it can be asked."""

        def connect(_host: object) -> LocalShell:
            self.connections += 1
            return self.shell

        self.master = threading.Thread(
            target=ssh_master.lend, args=(self.state_dir, persist_s, connect)
        )
        self.master.start()
        eventually(lambda: self.path_of_master.exists() and self.path_of_master.read_bytes())

    @property
    def path_of_master(self) -> Path:
        return self.state_dir / MASTER_FILE

    def asked(self) -> str:
        client = shared_control(self.state_dir)
        assert client is not None, "it is of use"
        with client:
            return client.events().cursor

    def ends(self) -> None:
        assert self.master is not None
        self.master.join(60)
        assert not self.master.is_alive(), "it ends by itself"
        assert not self.path_of_master.exists()


def eventually(check) -> None:
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Place]:
    monkeypatch.setattr(ssh_master, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(ssh_master, "_GRACE_S", 0.3)
    monkeypatch.setattr(ssh_sharing, "_ASK_TIMEOUT_S", 60.0)
    state_dir = tmp_path / "operator/c"
    state_dir.mkdir(parents=True)
    (state_dir / "cluster.yaml").write_text(dump_cluster(SETTINGS))
    home = tmp_path / "home"
    variables = {**os.environ, "HOME": str(home)}
    place = Place(state_dir, home / ".llx/clusters/c", LocalShell(environment=variables))
    yield place
    (state_dir / "cluster.yaml").unlink(missing_ok=True)
    if place.master is not None:
        place.ends()


@contextlib.contextmanager
def head(*tokens: str) -> Iterator[int]:
    """Its port."""
    kind = type("OtherApi", (Api,), {"tokens": tokens or Api.tokens})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_verbs_share_one_connection_that_is_this_users_alone(place):
    assert shared_control(place.state_dir) is None, "nobody has left one"
    with head() as port:
        place.head_is_at(port)
        place.lend()
        assert [place.asked() for _ in range(3)] == ["7"] * 3
        assert place.connections == 1
    told = place.path_of_master.read_text()
    assert "secret" not in told
    assert stat.S_IMODE(place.path_of_master.stat().st_mode) == 0o600
    folder = Path(json.loads(told)["path"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_token_that_was_renewed_and_a_head_elsewhere_are_found(place):
    with head("first") as port, head("second") as other:
        place.head_is_at(port, "first")
        place.lend()
        assert place.asked() == "7"
        place.head_is_at(other, "first")
        with pytest.raises(RemoteError):
            place.asked()
        place.head_is_at(other, "second")
        assert place.asked() == "7"


def test_it_is_of_no_use_where_there_is_no_head(place):
    place.lend()
    assert shared_control(place.state_dir) is None, "nothing is known of a head"
    place.head_is_at(9, phase=Phase.FAILED)
    assert shared_control(place.state_dir) is None
    with head() as port:
        place.head_is_at(port)
        assert place.asked() == "7", "it has gone on meanwhile"
    with pytest.raises(UnreachableError) as caught:
        place.asked()
    assert 'cluster "c": its head on h1' in str(caught.value), "as with a connection of one's own"
    assert "llx up" in (caught.value.remedy or "")


def test_it_ends_when_nobody_has_come_for_a_while(place):
    with head() as port:
        place.head_is_at(port)
        place.lend(persist_s=6.0)
        client = shared_control(place.state_dir)
        assert client is not None
        with client:
            client.events()
            time.sleep(8)
            assert client.events().cursor == "7", "who is connected uses it"
        place.ends()
    assert shared_control(place.state_dir) is None


def test_who_is_connected_may_finish_when_the_settings_change(place):
    with head() as port:
        place.head_is_at(port)
        place.lend()
        client = shared_control(place.state_dir)
        assert client is not None
        with client:
            client.events()
            (place.state_dir / "cluster.yaml").write_text(dump_cluster(SETTINGS) + "\n")
            eventually(lambda: not place.path_of_master.exists())
            time.sleep(1.0)
            assert client.events().cursor == "7"
        place.ends()


def test_what_a_dead_one_has_left_is_not_believed(place):
    with head() as port:
        place.head_is_at(port)
        place.lend()
        left = place.path_of_master.read_text()
        place.shell.is_active = False
        place.ends()
        place.path_of_master.write_text(left)
        assert shared_control(place.state_dir) is None
        place.path_of_master.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_somebody_elses_directory_is_not_believed(place):
    with head() as port:
        place.head_is_at(port)
        place.lend()
        folder = Path(json.loads(place.path_of_master.read_text())["path"]).parent
        os.chown(folder, 65534, -1)
        assert shared_control(place.state_dir) is None
        os.chown(folder, 0, -1)
        assert place.asked() == "7"


def test_one_that_is_too_slow_for_its_verbs_ends(place, monkeypatch):
    monkeypatch.setattr(ssh_sharing, "_ASK_TIMEOUT_S", 0.2)
    with head() as port:
        place.head_is_at(port)
        place.lend()
        read = place.shell.read
        monkeypatch.setattr(place.shell, "read", lambda path: (time.sleep(1.0), read(path))[1])
        assert shared_control(place.state_dir) is None
        place.ends()


def test_one_of_another_release_is_replaced(place, monkeypatch):
    begun = []
    with head() as port:
        place.head_is_at(port)
        place.lend()
        monkeypatch.setattr(ssh_sharing, "__version__", "9.9.9")
        assert shared_control(place.state_dir) is None
        monkeypatch.setattr(subprocess, "Popen", lambda argv, **_: begun.append(argv) or Ended())
        begin_sharing(place.state_dir, 60.0, {})
        assert len(begun) == 1
        place.ends()


def test_many_verbs_at_once_are_answered(place):
    with head() as port:
        place.head_is_at(port)
        place.lend()
        with ThreadPoolExecutor(12) as verbs:
            assert list(verbs.map(lambda _: place.asked(), range(24))) == ["7"] * 24
        assert place.connections == 1


@pytest.mark.parametrize("how", ["down", "others", "replaced", "lost"])
def test_it_ends_when_it_is_of_no_use_any_more(place, how):
    with head() as port:
        place.head_is_at(port)
        place.lend()
        assert place.asked() == "7"
        settings = place.state_dir / "cluster.yaml"
        match how:
            case "down":
                settings.unlink()
            case "others":
                settings.write_text(dump_cluster(SETTINGS) + "\n")
                assert shared_control(place.state_dir) is None, "at once"
            case "replaced":
                place.path_of_master.unlink()
            case "lost":
                place.shell.is_active = False
        place.ends()


def test_there_is_one_at_a_time(place, monkeypatch):
    begun = []
    with head() as port:
        place.head_is_at(port)
        place.lend()
        monkeypatch.setattr(subprocess, "Popen", lambda argv, **_: begun.append(argv) or Ended())
        begin_sharing(place.state_dir, 60.0, {})
        assert begun == []
        ssh_master.lend(place.state_dir, 60.0, lambda _host: pytest.fail("it connects"))
        assert place.asked() == "7", "and leaves the first one's file alone"
    (place.state_dir / "cluster.yaml").unlink()
    place.ends()
    begin_sharing(place.state_dir, 60.0, {})
    assert begun[0][1:] == ["-P", "-m", "llx.bootstrap.ssh_master", str(place.state_dir), "60.0"]


class Ended:
    def wait(self) -> int:
        return 0


def test_one_that_cannot_be_started_is_done_without(place, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    begin_sharing(place.state_dir, 60.0, {})
    assert not place.path_of_master.exists()


def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of an operator without a configuration of SSH."""
    return {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def settings_with_port(port: int) -> str:
    host = SETTINGS.hosts[0].model_copy(update={"port": port})
    return dump_cluster(SETTINGS.model_copy(update={"hosts": (host,)}))


def test_a_real_one_holds_nothing_of_the_verbs_and_ends_on_term(place, tmp_path, monkeypatch):
    """Neither what the verb had open, nor its directory's modules; and it leaves no file."""
    (tmp_path / "json.py").write_text("raise SystemExit('of the directory')")
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        (place.state_dir / "cluster.yaml").write_text(settings_with_port(silent.getsockname()[1]))
        begin_sharing(place.state_dir, 60.0, alone(tmp_path))
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            os.close(writing)
            os.set_blocking(reading, False)
            assert os.read(reading, 1) == b"", "nobody has the other end any more"
            assert is_held(place.path_of_master)
            (pid,) = masters(place.state_dir)
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: not masters(place.state_dir))
    os.close(reading)
    assert not place.path_of_master.exists()


def masters(state_dir: Path) -> list[int]:
    """Processes that were begun for this cluster and have not ended."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0")
            if b"llx.bootstrap.ssh_master" in words and str(state_dir).encode() in words:
                found.append(int(each.name))
    return found


def test_one_that_cannot_connect_ends_without_a_word(place, tmp_path):
    (place.state_dir / "cluster.yaml").write_text(settings_with_port(1))
    argv = [sys.executable, "-m", "llx.bootstrap.ssh_master", str(place.state_dir), "60.0"]
    done = subprocess.run(argv, env=alone(tmp_path), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not place.path_of_master.exists()
