"""The state directory: its lock, its files, and which cluster is meant."""

import os
import subprocess
import sys
import time

import pytest

from llx.bootstrap.cluster_dir import clear, cluster_lock, purge, running_settings
from llx.bootstrap.contexts import contexts, pick_context
from llx.cluster_file import ClusterSettings
from llx.environment import Environment
from llx.errors import ConflictError, NotFoundError
from llx.settings import dump_cluster

HOLD = """
import sys
from pathlib import Path
from llx.bootstrap.cluster_dir import cluster_lock
with cluster_lock(Path(sys.argv[1]), "up"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another llx that holds the lock of tmp_path/c."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "c")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


class TestLock:
    def test_second_is_told_who_holds_it(self, tmp_path, holder):
        with (
            pytest.raises(ConflictError, match=rf"another llx up is at work \(pid {holder.pid}, "),
            cluster_lock(tmp_path / "c", "up"),
        ):
            pass

    def test_a_killed_holder_lets_go(self, tmp_path, holder):
        holder.kill()
        holder.wait()
        with cluster_lock(tmp_path / "c", "down"):
            assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700

    def test_leaves_no_empty_directory(self, tmp_path):
        with cluster_lock(tmp_path / "c", "up"):
            pass
        assert not (tmp_path / "c").exists()

    def test_leaves_a_directory_with_something(self, tmp_path):
        with cluster_lock(tmp_path / "c", "up"):
            (tmp_path / "c" / "events.jsonl").touch()
        assert [each.name for each in (tmp_path / "c").iterdir()] == ["events.jsonl"]

    def test_is_let_go_on_errors(self, tmp_path):
        with pytest.raises(ZeroDivisionError), cluster_lock(tmp_path / "c", "up"):
            _ = 1 / 0
        with cluster_lock(tmp_path / "c", "up"):
            pass


def fill(folder):
    for name in ("cluster.yaml", "keys.json", "token", "term", "events.jsonl", "up.lock"):
        (folder / name).write_text("x")
    process = folder / "procs" / "head"
    process.mkdir(parents=True)
    for name in ("log", "log.1", "shim.json", "status.json", "spec.json"):
        (process / name).write_text("x")


def test_clear_keeps_logs_and_history(tmp_path):
    fill(tmp_path)
    clear(tmp_path)
    clear(tmp_path)
    left = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()}
    assert left == {"term", "events.jsonl", "up.lock", "procs/head/log", "procs/head/log.1"}


def test_purge_keeps_its_own_lock_only(tmp_path):
    fill(tmp_path)
    purge(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["up.lock"]


class TestContexts:
    @pytest.fixture
    def environment(self, tmp_path):
        return Environment({"HOME": str(tmp_path)}, tmp_path)

    def make(self, environment, name, *, is_up, at):
        folder = environment.cluster_dir(name)
        folder.mkdir(parents=True)
        if is_up:
            (folder / "cluster.yaml").touch()
            os.utime(folder / "cluster.yaml", (at, at))
        os.utime(folder, (at, at))

    def test_none(self, environment):
        assert contexts(environment) == []
        with pytest.raises(NotFoundError, match="no cluster was started here"):
            pick_context(environment, None)

    def test_the_one_that_is_up_then_the_latest(self, environment):
        now = time.time()
        self.make(environment, "a", is_up=False, at=now)
        self.make(environment, "b", is_up=False, at=now - 50)
        assert pick_context(environment, None).name == "a"
        self.make(environment, "c", is_up=True, at=now - 100)
        assert pick_context(environment, None).name == "c"
        self.make(environment, "d", is_up=True, at=now - 90)
        assert pick_context(environment, None).name == "d"
        assert pick_context(environment, "b").name == "b"

    def test_a_wrong_name_lists_the_right_ones(self, environment):
        self.make(environment, "a", is_up=True, at=1)
        with pytest.raises(NotFoundError, match=r'no cluster "x" \(known here: a\)'):
            pick_context(environment, "x")


class TestRunningSettings:
    def test_come_back_equal(self, tmp_path):
        values = {"models": [{"name": "m", "model": "/m"}]}
        settings = ClusterSettings.model_validate(values)
        assert running_settings(tmp_path) is None
        (tmp_path / "cluster.yaml").write_text(dump_cluster(settings))
        assert running_settings(tmp_path) == settings

    def test_of_another_release(self, tmp_path):
        (tmp_path / "cluster.yaml").write_text("new_key: 1\n")
        with pytest.raises(ConflictError, match="started by another llx"):
            running_settings(tmp_path)
