"""Ray's keeper and the verbs around it, over a fake Ray: what is started, watched and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import llx
from llx.agent import shim
from llx.agent.processes import Process, list_processes, spawn
from llx.cluster.ray import node as ray_node
from llx.cluster.ray.launch import RayNode
from llx.cluster.ray.paths import RayPaths, ray_environment
from llx.cluster.state_dir import StateDir
from llx.errors import ExitCode
from llx.specs import HostSpec, ProcessStatus, load_spec, save_spec

pytestmark = pytest.mark.slow

FAKES = Path(__file__).parent / "fakes"
PYTHON = """#!/bin/sh
case "$2" in
llx.cluster.ray.launch|llx.cluster.ray.talks) exec {python} {fakes}/fake_ray.py "$@";;
esac
exec {python} "$@"
"""


class Rig:
    """One host, on which Ray is some sleeping processes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir(mode=0o700)
        python = root / "python"
        python.write_text(PYTHON.format(python=sys.executable, fakes=FAKES))
        python.chmod(0o755)
        self.spec = HostSpec(
            cluster="c", cluster_id="1d", host="h1", address="127.0.0.1", head="h1",
            head_address="127.0.0.1", state_dir=str(self.state), models_dir=str(root / "models"),
            cache_dir=str(root / "cache"), python=str(python), platform="cpu", first_port=20000,
            is_tls=False, ray_tmp=str(root / "ray"),
        )  # fmt: skip
        self.path = self.state / "host.spec.json"
        self.save()
        monkeypatch.setenv("PYTHONPATH", str(Path(llx.__file__).parents[1]))
        self.others: list[subprocess.Popen[bytes]] = []

    @property
    def paths(self) -> RayPaths:
        return RayPaths(self.spec)

    def save(self, **changes: object) -> None:
        self.spec = msgspec.structs.replace(self.spec, **changes)
        save_spec(self.path, self.spec)

    def verb(self, verb: str, *options: str) -> int:
        return ray_node.main([verb, str(self.path), *options])

    def start(self) -> None:
        assert self.verb("start") == 0
        self.eventually(lambda: self.verb("check") == 0, self.log)

    def start_hasty(self) -> None:
        for directory in (self.paths.head, self.paths.agent):
            directory.mkdir(parents=True, exist_ok=True)
        command = [self.spec.python, str(FAKES / "hasty_keeper.py"), str(self.path)]
        spawn(self.paths.keeper, command, os.environ)

    def fake(self, name: str, content: object) -> None:
        (self.state / "fake").mkdir(exist_ok=True)
        (self.state / "fake" / name).write_text(str(content))

    def lines(self, name: str) -> list[str]:
        path = self.state / "fake" / name
        return path.read_text().split() if path.exists() else []

    def node(self) -> dict[str, int]:
        """Ray's processes by name."""
        node = load_spec(self.paths.node, RayNode)
        return {each.name: each.pid for each in node.processes}

    def said(self) -> str:
        path = self.paths.keeper / "status.json"
        return load_spec(path, ProcessStatus).detail if path.exists() else ""

    def log(self) -> str:
        path = self.paths.keeper / "log"
        return path.read_text() if path.exists() else "no log"

    def sleeper(self, name: str) -> Process:
        """A process of the cluster under a shim of its own."""
        return spawn(self.paths.procs / name, ["sleep", "1000"], os.environ)

    def eventually(self, check: Callable[[], bool], what: Callable[[], str]) -> None:
        end = time.monotonic() + 60
        while not check():
            assert time.monotonic() < end, what()
            time.sleep(0.05)

    def close(self) -> None:
        for process in list_processes(self.paths.procs):
            process.stop(0)
            shim.kill_marked(process.status().mark)
        for other in self.others:
            other.kill()
            other.wait()


@pytest.fixture
def rig(tmp_path, monkeypatch) -> Iterator[Rig]:
    made = Rig(tmp_path, monkeypatch)
    yield made
    made.close()


def is_alive(pid: int) -> bool:
    return shim.start_time(pid) is not None


class TestStart:
    def test_what_is_not_there_is_started_and_what_is_there_is_left(self, rig):
        assert rig.verb("check") == ExitCode.CHECK_FAILED
        rig.start()
        first = rig.node()
        assert set(first) == {"gcs_server", "raylet"}
        rig.start()
        assert rig.node() == first
        assert rig.lines("launches") == ["launch"]

    @pytest.mark.parametrize("what", ["specification", "token", "release of llx"])
    def test_a_change_restarts_it(self, rig, what, monkeypatch):
        rig.start()
        first = rig.node()
        if what == "release of llx":
            monkeypatch.setattr(ray_node, "__version__", "99")
        elif what == "token":
            Path(rig.spec.ray_token_path).write_text("another")
        else:
            rig.save(kv_cache_gib=2)
        assert rig.verb("check") == ExitCode.CHECK_FAILED
        rig.start()
        assert not any(map(is_alive, first.values()))
        assert all(map(is_alive, rig.node().values()))

    def test_rays_directory_is_ours_alone(self, rig):
        rig.start()
        assert rig.paths.tmp.stat().st_mode & 0o777 == 0o700
        assert rig.paths.keeper.stat().st_mode & 0o777 == 0o700

    def test_a_directory_that_is_somebody_elses_is_not_used(self, rig, capsys):
        (rig.root / "elsewhere").mkdir()
        rig.paths.tmp.symlink_to(rig.root / "elsewhere")
        assert rig.verb("start") == 0
        rig.eventually(lambda: "is not ours" in rig.log(), rig.log)
        assert rig.lines("launches") == []
        assert rig.verb("check") == ExitCode.CHECK_FAILED
        assert "is not ours" in capsys.readouterr().err

    def test_a_worker_waits_for_the_head(self, rig):
        with socket.socket() as head:
            head.bind(("127.0.0.1", 0))
            rig.save(head="h0", first_port=head.getsockname()[1])
            assert rig.verb("start") == 0
            rig.eventually(
                lambda: rig.verb("check") != 0 and "waits for the head" in rig.said(),
                rig.log,
            )
            assert rig.lines("launches") == []
            head.listen()
            rig.eventually(lambda: rig.verb("check") == 0, rig.log)
            assert set(rig.node()) == {"raylet"}


class TestKeeping:
    @pytest.mark.parametrize("name", ["gcs_server", "raylet"])
    def test_ray_is_begun_anew_when_a_part_of_it_ends(self, rig, name):
        rig.start()
        first = rig.node()
        os.kill(first[name], signal.SIGKILL)
        rig.eventually(lambda: len(rig.lines("launches")) == 2, rig.log)
        rig.eventually(lambda: rig.verb("check") == 0, rig.log)
        assert not any(map(is_alive, first.values()))
        assert f"{name} ended" in rig.log()

    def test_the_logs_of_the_life_before_are_kept(self, rig):
        rig.start()
        os.kill(rig.node()["raylet"], signal.SIGKILL)
        rig.eventually(lambda: rig.paths.former_logs.exists(), rig.log)
        assert (rig.paths.former_logs / "raylet.out").read_text() == "words"

    def test_a_failed_start_is_tried_again_and_said(self, rig):
        rig.fake("fail", 1)
        assert rig.verb("start") == 0
        rig.eventually(lambda: "could not be started" in rig.log(), rig.log)
        rig.eventually(lambda: rig.verb("check") == 0, rig.log)

    def test_what_a_raylet_says_of_its_failure_is_in_the_status(self, rig):
        rig.paths.storage.mkdir()
        rig.fake("words", "the raylet has failed: the port is taken")
        assert rig.verb("start") == 0
        said = "Ray is starting; last: the raylet has failed: the port is taken"
        rig.eventually(lambda: rig.said() == said, rig.log)
        rig.eventually(lambda: len(rig.lines("launches")) > 2, rig.log)
        assert rig.paths.storage.exists(), "that is not what it could not read"
        (rig.state / "fake" / "words").unlink()
        rig.eventually(lambda: rig.verb("check") == 0, rig.log)
        assert not rig.paths.failure.exists()
        assert "port" not in rig.said()

    def test_a_head_that_cannot_start_does_without_what_it_kept(self, rig):
        rig.paths.storage.mkdir()
        rig.fake("fail", 2)
        rig.start()
        assert not rig.paths.storage.exists()

    def test_nothing_outlives_a_killed_keeper_and_the_next_one(self, rig):
        rig.start()
        first, keeper = rig.node(), Process(rig.paths.keeper).status()
        os.kill(keeper.shim_pid, signal.SIGKILL)
        rig.eventually(lambda: not is_alive(keeper.child_pid), rig.log)
        assert all(map(is_alive, first.values()))
        assert rig.verb("gone") == ExitCode.CHECK_FAILED
        rig.start()
        assert not any(map(is_alive, first.values()))


class TestAsking:
    def test_the_scheduler_is_looked_for_whenever_it_is_silent(self, rig):
        rig.start_hasty()
        rig.eventually(lambda: len(rig.lines("asked")) >= 3, rig.log)
        assert set(rig.lines("asked")) == {"ensure"}

    def test_not_while_it_is_heard(self, rig):
        rig.start_hasty()
        rig.eventually(lambda: len(rig.lines("asked")) >= 1, rig.log)
        rig.paths.alive.touch()
        later = time.time() + 3600
        os.utime(rig.paths.alive, (later, later))
        count = len(rig.lines("asked"))
        time.sleep(2)
        assert len(rig.lines("asked")) <= count + 1, "but for one that was on its way"

    def test_not_once_it_has_stopped_the_cluster(self, rig):
        rig.paths.head.mkdir(parents=True)
        rig.paths.stopped.touch()
        rig.start_hasty()
        rig.eventually(lambda: rig.lines("launches") == ["launch"], rig.log)
        time.sleep(1.5)
        assert rig.lines("asked") == []

    def test_a_start_asks_again(self, rig):
        rig.paths.head.mkdir(parents=True)
        for file in (rig.paths.stopping, rig.paths.stopped):
            file.touch()
        rig.start()
        assert not rig.paths.stopping.exists()
        assert not rig.paths.stopped.exists()
        rig.eventually(lambda: rig.lines("asked") == ["ensure"], rig.log)

    @pytest.mark.parametrize("file", ["stopping", "stopped"])
    def test_a_cluster_that_was_asked_to_stop_is_not_as_it_should_be(self, rig, file, capsys):
        rig.start()
        assert rig.verb("check") == 0
        rig.paths.head.mkdir(parents=True, exist_ok=True)
        getattr(rig.paths, file).touch()
        assert rig.verb("check") == ExitCode.CHECK_FAILED
        assert "the cluster was stopped" in capsys.readouterr().err
        assert rig.paths.stopping == StateDir(Path(rig.spec.state_dir)).stopping

    @pytest.mark.parametrize(("answer", "is_restarted"), [(3, True), (0, False), (1, False)])
    def test_a_worker_that_the_head_has_forgotten_joins_anew(self, rig, answer, is_restarted):
        with socket.create_server(("127.0.0.1", 0)) as head:
            rig.save(head="h0", first_port=head.getsockname()[1])
            rig.fake("answer", answer)
            rig.start_hasty()
            rig.eventually(lambda: len(rig.lines("asked")) >= 2, rig.log)
        assert set(rig.lines("asked")) == {"known"}
        assert (len(rig.lines("launches")) > 1) == is_restarted


class TestStop:
    def test_nothing_of_the_cluster_is_left_and_nothing_else_is_touched(self, rig):
        stranger = subprocess.Popen(["sleep", "1000"], env={"RAY_AUTH_MODE": "token"})
        rig.others.append(stranger)
        rig.start()
        instance = rig.sleeper("m-0")
        pids = [*rig.node().values(), instance.status().child_pid]
        rig.paths.storage.mkdir()
        assert rig.verb("gone") == ExitCode.CHECK_FAILED
        assert rig.verb("stop", "--grace", "5") == 0
        assert rig.verb("gone") == 0
        assert not any(map(is_alive, pids))
        assert not rig.paths.tmp.exists()
        assert not rig.paths.storage.exists()
        assert stranger.poll() is None

    def test_what_a_killed_shim_left_behind_goes_too(self, rig):
        rig.start()
        pids = list(rig.node().values())
        os.kill(Process(rig.paths.keeper).status().shim_pid, signal.SIGKILL)
        assert rig.verb("stop", "--grace", "0") == 0
        assert rig.verb("gone") == 0
        assert not any(map(is_alive, pids))

    def test_twice_is_once(self, rig):
        rig.start()
        assert rig.verb("stop") == 0
        assert rig.verb("stop") == 0
        assert rig.verb("gone") == 0

    def test_gone_names_what_runs(self, rig, capsys):
        rig.sleeper("m-0")
        assert rig.verb("gone") == ExitCode.CHECK_FAILED
        assert "h1: still running: m-0" in capsys.readouterr().err


class TestEnvironment:
    def test_secrets_are_paths(self, rig):
        rig.save(is_tls=True)
        Path(rig.spec.ray_token_path).write_text("s3cret")
        found = ray_environment(rig.spec, rig.path, {"PATH": "/bin"})
        assert found["RAY_AUTH_TOKEN_PATH"] == rig.spec.ray_token_path
        assert found["RAY_TLS_SERVER_KEY"] == f"{rig.spec.tls_dir}/host.key"
        assert "s3cret" not in str(found)

    def test_without_tls_there_are_no_certificates(self, rig):
        assert not [each for each in ray_environment(rig.spec, rig.path, {}) if "TLS" in each]

    def test_nobody_elses_settings_of_ray_count(self, rig):
        foreign = {"RAY_ADDRESS": "10.9.9.9:6379", "RAY_AUTH_TOKEN": "theirs", "PATH": "/bin"}
        found = ray_environment(rig.spec, rig.path, foreign)
        assert "RAY_ADDRESS" not in found
        assert "RAY_AUTH_TOKEN" not in found
        assert found["PATH"] == "/bin"

    def test_actors_that_set_their_titles_keep_the_shims_mark(self, rig):
        assert ray_environment(rig.spec, rig.path, {})["SPT_NOENV"] == "1"

    def test_only_the_head_keeps_what_the_control_store_knows(self, rig):
        assert "RAY_gcs_storage" in ray_environment(rig.spec, rig.path, {})
        rig.save(head="h0")
        assert "RAY_gcs_storage" not in ray_environment(rig.spec, rig.path, {})
