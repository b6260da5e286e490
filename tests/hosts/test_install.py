"""Installing on namespace hosts: what is there, what is missing, a Python of ours, models.

Real SSH, the real hub library. What must work where nothing is, gets a host that has nothing. A
whole environment from a wheelhouse is the third host of `test_cluster`.
"""

import io
import json
import os
import sys
import tarfile
import threading
import time
from pathlib import Path, PurePosixPath

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner

from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_python import ArchivedPython, ensure_python, plan_python
from llx.bootstrap.node_probe import NodePlatform
from llx.cli import model, play
from llx.environment import Environment
from llx.settings import HostSettings
from tests.agent.fake_hub import FakeHub
from tests.hosts.rig import UID, python_binds

pytestmark = pytest.mark.hosts

BASE = Path(sys.base_prefix)
BASE_PYTHON = BASE / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE_BINDS = (BASE,) if str(BASE) != "/usr" else ()
LAYOUT = HostLayout(PurePosixPath("/home/llx"), UID, "prod")


@pytest.fixture
def node_python():
    """The node environment's interpreter; `make test` makes it before pytest runs."""
    prefix = os.environ.get("LLX_NODE_PREFIX")
    assert prefix, "tests of the node tier need LLX_NODE_PREFIX: run them with `make test`"
    return Path(prefix) / "bin" / "python"


class Operator:
    """`llx play` and `llx model`, by somebody whose hosts are the rig's."""

    def __init__(self, rig, directory, **runtime):
        self.rig = rig
        self.file = directory / "cluster.yaml"
        cluster = {
            "cluster": "prod",
            "hosts": rig.cluster_hosts(),
            "models": [{"name": "m", "model": "@models/used"}],
            "runtime": {"platform": "cpu", **runtime},
        }
        self.file.write_text(yaml.safe_dump(cluster))
        self.app = Typer()
        self.app.command("play")(play.play)
        self.app.add_typer(model.app, name="model")
        rig.trust()

    def __call__(self, *words, **variables):
        environment = dict.fromkeys(
            ("LLX_CONTEXT", "LLX_DEBUG", "LLX_OUTPUT", "SSH_AUTH_SOCK", "HF_TOKEN", "HF_ENDPOINT"),
            "",
        )
        environment |= self.rig.operator_environment() | variables
        argv = [*words, "--file", str(self.file)]
        return CliRunner().invoke(self.app, argv, env=environment)

    def play(self, playbook, **values):
        settings = [f"--set={name}={value}" for name, value in values.items()]
        done = self("play", playbook, "-y", *settings)
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    def connect(self, host):
        from llx.bootstrap.ssh import connect, resolve

        [entry] = [each for each in self.rig.cluster_hosts() if each["name"] == host.name]
        environment = Environment(self.rig.operator_environment(), Path.cwd())
        target = resolve(HostSettings.model_validate(entry), environment)
        return connect(target, ask=lambda *_: False)


def below(host, path="/home/llx/.llx"):
    """Paths of all files there."""
    return set(host.x("find", path, "-type", "f", "-printf", "%P\n").stdout.splitlines())


# --- the node environment --------------------------------------------------------------------


@pytest.mark.node
def test_an_environment_that_is_there_is_looked_at_only(hosts, node_python, tmp_path):
    """The one of the tests follows the working tree: any path of llx will do."""
    rig = hosts(1, binds=python_binds(node_python))
    operator = Operator(rig, tmp_path)
    operator.play("bootstrap")
    assert operator.play("node-existing", python=node_python) == ["h1: nothing changed"]
    done = operator("play", "node-existing", "-y", f"--set=python={BASE_PYTHON}")
    assert done.exit_code != 0


def test_the_installer_tells_a_host_without_packages_what_is_missing(hosts, tmp_path):
    """An empty wheelhouse, and no network: it fails soon, says why, and keeps nothing half done."""
    rig = hosts(1, binds=BASE_BINDS)
    operator = Operator(rig, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "nothing.txt").touch()
    operator.play("bootstrap")
    operator.play("wheelhouse", wheelhouse_dir=empty)
    done = operator("play", "node-wheelhouse", "-y", f"--set=base_python={BASE_PYTHON}")
    assert done.exit_code != 0
    log = (rig.home / "state/llx/clusters/prod/hosts/h1.log").read_text()
    assert "error: installing torch==" in log
    assert "remedy: pip found no wheel for this Python and machine" in log
    assert "llx-node.json" not in "".join(below(rig.hosts[0]))


# --- a Python of our own ---------------------------------------------------------------------


def archive(folder):
    """In the shape of python-build-standalone's; the Python in it is this machine's, bound."""
    path = folder / "cpython-3.11.9+20250106-x86_64-unknown-linux-gnu-install_only.tar.gz"
    script = f'#!/bin/sh\nexec {BASE_PYTHON} "$@"\n'.encode()
    with tarfile.open(path, "w:gz") as packed:
        entry = tarfile.TarInfo("python/bin/python3")
        entry.mode, entry.size = 0o755, len(script)
        packed.addfile(entry, io.BytesIO(script))
    return path


def test_a_host_without_python_gets_one_from_the_wheelhouse(hosts, tmp_path):
    rig = hosts(1, binds=(BASE,), hide=("/usr/bin/python3*", "/usr/local/bin/python3*"))
    host = rig.hosts[0]
    assert host.x("sh", "-c", "command -v python3").returncode != 0
    operator = Operator(rig, tmp_path)
    archive(tmp_path)
    facts = HostFacts(host.name, host.name, "llx", UID, LAYOUT.home, machine="x86_64")
    plan = plan_python(facts, NodePlatform.CPU, tmp_path)
    assert isinstance(plan, ArchivedPython)
    with operator.connect(host) as shell:
        said: list[str] = []
        python = ensure_python(shell, LAYOUT, plan, uv_cache=tmp_path, report=said.append)
        assert len(said) == 2
        said.clear()
        assert ensure_python(shell, LAYOUT, plan, uv_cache=tmp_path, report=said.append) == python
        assert said == []
    assert host.x(str(python), "-c", "print(1)", user="llx").stdout == "1\n"
    assert [path for path in below(host) if path.startswith("python/")] == [
        "python/cpython-3.11.9+20250106-x86_64-unknown-linux-gnu/bin/python3"
    ]


# --- models ----------------------------------------------------------------------------------


def weights(folder, size):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for number in range(4):
        (folder / f"model-{number}.safetensors").write_bytes(os.urandom(size // 4))
    return folder


def listed(operator):
    done = operator("model", "ls", "-o", "json")
    assert done.exit_code == 0, done.output
    return {(each["host"], each["name"], each["is_complete"]) for each in json.loads(done.stdout)}


def test_models_are_copied_listed_and_removed(hosts, tmp_path):
    rig = hosts(3)
    operator = Operator(rig, tmp_path)
    source = weights(tmp_path / "src", 2_000_000)
    done = operator("model", "add", "m1", str(source), "--hosts", "h1,h3")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == ["m1 is on h1, h3", 'in cluster.yaml: model: "@models/m1"']
    assert listed(operator) == {("h1", "m1", True), ("h3", "m1", True)}
    for host in (rig["h1"], rig["h3"]):
        for path in source.iterdir():
            there = f"/home/llx/.llx/models/m1/{path.name}"
            assert host.x("sha256sum", there).stdout.split()[0] == sha256(path)
    operator("model", "add", "used", str(source))
    kept = operator("model", "rm", "used", "-y")
    assert kept.exit_code == 5
    assert "serves as m" in kept.stderr
    rig["h2"].off()
    done = operator("model", "rm", "m1", "-y")
    assert done.exit_code == 6, done.output
    assert "removing m1 failed on h2:" in done.stderr
    rig["h2"].on()
    assert {each for each in listed(operator) if each[1] == "m1"} == set()
    assert operator("model", "rm", "m1", "-y").exit_code == 4
    assert operator("model", "rm", "used", "-y", "--force").exit_code == 0
    assert below(rig["h1"]) == set()


def sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_copy_that_a_power_cut_ended_goes_on(hosts, tmp_path):
    rig = hosts(1, keeps_disk=True)
    host = rig.hosts[0]
    host.delay(15)  # so that there is a middle to be cut in
    operator = Operator(rig, tmp_path)
    source = weights(tmp_path / "src", 80_000_000)

    def cut_off():
        deadline = time.monotonic() + 300
        while "models/m/model-1.safetensors" not in below(host):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        host.off()

    power = threading.Thread(target=cut_off)
    power.start()
    cut = operator("model", "add", "m", str(source))
    power.join()
    assert cut.exit_code == 3, cut.output
    host.on()
    assert listed(operator) == {("h1", "m", False)}
    arrived = {path for path in below(host) if path.endswith("safetensors")}
    assert arrived
    times = host.x("sh", "-c", "stat -c '%n %Z' /home/llx/.llx/models/m/model-0.*").stdout
    done = operator("model", "add", "m", str(source))
    assert done.exit_code == 0, done.output
    assert host.x("sh", "-c", "stat -c '%n %Z' /home/llx/.llx/models/m/model-0.*").stdout == times
    assert listed(operator) == {("h1", "m", True)}
    assert below(host, "/home/llx/.llx/models/m") == {
        *(path.name for path in source.iterdir()),
        "llx-model.json",
    }


def test_a_model_that_does_not_fit_is_refused_before_it_is_sent(hosts, tmp_path):
    rig = hosts(1, size="32m")
    operator = Operator(rig, tmp_path)
    source = weights(tmp_path / "src", 40_000_000)
    done = operator("model", "add", "m", str(source))
    assert done.exit_code == 1
    assert "h1: model m: needs 40 MB in /home/llx/.llx/models, and 3" in done.stderr
    assert below(rig.hosts[0]) == set()


@pytest.mark.node
def test_hosts_pull_from_a_hub(hosts, node_python, tmp_path):
    rig = hosts(2, binds=python_binds(node_python))
    operator = Operator(rig, tmp_path, python=str(node_python))
    hub = FakeHub("org/name", {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000})
    hub.token = "hf_right"
    with hub.running(f"{rig.network}.1") as url:
        refused = operator("model", "pull", "org/name", HF_ENDPOINT=url)
        assert refused.exit_code == 1
        assert "h1: pull org/name: org/name is gated" in refused.stderr
        done = operator("model", "pull", "org/name", HF_ENDPOINT=url, HF_TOKEN="hf_right")
        assert done.exit_code == 0, done.output
        again = operator("model", "pull", "org/name", HF_ENDPOINT=url, HF_TOKEN="hf_right")
    assert "host h1 done" in again.stderr
    assert "there already" in again.stderr
    assert listed(operator) == {("h1", "org--name", True), ("h2", "org--name", True)}
    for host in rig.hosts:
        assert below(host, "/home/llx") - {".ssh/authorized_keys"} == {
            f".llx/models/org--name/{name}"
            for name in ("config.json", "model.safetensors", "llx-model.json")
        }
