"""What a host goes through in `up`, with this machine's shell in a home of its own."""

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from llx.bootstrap.cluster_secrets import new_secrets
from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_steps import HostWork, prepare_host
from llx.bootstrap.hosts_plan import copied_name, make_hosts_plan
from llx.bootstrap.hub_models import HubPins
from llx.bootstrap.shell import OnProgress
from llx.environment import Environment
from llx.errors import HostError
from llx.settings import ClusterSettings, Platform
from tests.bootstrap.fake_shell import LocalShell, completed
from tests.bootstrap.hub_host import COMMIT, HubHost

PYTHON = "#!/bin/sh\nexit 0\n"
TOKEN = "hf_0123456789abcdef"


@dataclass
class Scene:
    """One host, whose node environment is a script, and the operator of it."""

    root: Path

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        self.operator = self.root / "operator"
        for each in (self.home, self.operator, self.operator / "weights"):
            each.mkdir()
        (self.operator / "weights" / "config.json").write_text("{}")
        (self.operator / "llx-1-py3-none-any.whl").write_bytes(b"wheel")
        self.python = self.root / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.layout = HostLayout(PurePosixPath(self.home), os.getuid(), "c")
        self.log = self.operator / "hosts" / "h1.log"
        self.said: list[str] = []

    def work(self, model: str, *, shell: LocalShell | None = None, **changes: object) -> HostWork:
        values = {
            "cluster": "c",
            "hosts": [{"name": "h1", "address": "h1"}],
            "models": [{"name": "m", "model": model}],
            "runtime": {"platform": "cpu", "python": str(self.python)},
            **changes,
        }
        settings = ClusterSettings.model_validate(values)
        variables = {"HOME": str(self.root), "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://hub"}
        plan = make_hosts_plan(settings, Environment(variables, self.root))
        return HostWork(
            plan=plan,
            host=settings.hosts[0],
            shell=shell or LocalShell(),
            layout=self.layout,
            facts=HostFacts("h1", "h1", "u", os.getuid(), PurePosixPath(self.home)),
            platform=Platform.CPU,
            python_version="3.12",
            addresses={"h1": "10.0.0.1"},
            cluster=new_secrets("1f"),
            settings=settings,
            wheel=self.operator / "llx-1-py3-none-any.whl",
            is_running=False,
            log=self.log,
            proceed=lambda: None,
            pins=HubPins(),
        )

    def prepare(self, work: HostWork) -> list[str]:
        return prepare_host(work, self.said.append)[1]


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path)


class Full(LocalShell):
    """No file of weights can be written there."""

    def put_file(
        self, source: Path, path: str, *, mode: int = 0o644, on_progress: OnProgress | None = None
    ) -> None:
        if path.endswith("config.json"):
            raise HostError("no space left", host="h1", step="write a file")
        super().put_file(source, path, mode=mode, on_progress=on_progress)


def test_a_model_that_cannot_be_copied_is_in_the_log_and_the_log_is_named(scene):
    weights = scene.operator / "weights"
    work = scene.work(str(weights), shell=Full())
    with pytest.raises(HostError, match="no space left") as caught:
        scene.prepare(work)
    assert caught.value.remedy == f"see {scene.log}"
    name = copied_name(weights)
    log = scene.log.read_text()
    assert f"model {name}: $ df -Pk {scene.layout.models}" in log
    assert f"model {name}: send {weights}/config.json -> " in log
    assert f"model {name}: failed: h1: write a file: no space left" in log
    assert scene.log.stat().st_mode & 0o777 == 0o600


def test_a_python_that_cannot_be_brought_along_is_in_the_log_and_the_log_is_named(scene):
    archive = "cpython-3.12.8+20250106-x86_64-unknown-linux-gnu-install_only.tar.gz"
    (scene.operator / archive).write_bytes(b"half of it")
    runtime = {"platform": "cpu", "wheelhouse": str(scene.operator)}
    work = scene.work("llx/tiny", runtime=runtime)
    work = replace(work, facts=replace(work.facts, machine="x86_64"))
    with pytest.raises(HostError, match="tar failed with exit code") as caught:
        scene.prepare(work)
    assert caught.value.detail
    assert caught.value.remedy == f"see {scene.log}"
    log = scene.log.read_text()
    assert "Python: $ tar -xzf" in log
    assert caught.value.detail.splitlines()[-1] in log


def test_a_model_of_the_hub_is_fetched_ahead_and_once(scene):
    host = HubHost()
    changed = scene.prepare(scene.work("org/name", shell=host))
    assert changed[-1] == "model org--name"
    assert scene.said[-2:] == ["model org--name", "model org--name: 0 of 0 MiB"]
    assert (scene.home / ".llx/models/org--name/llx-model.json").exists()
    assert (host.stdin, host.environment["HF_ENDPOINT"]) == (TOKEN.encode(), "http://hub")
    log = scene.log.read_text()
    assert f"-m llx.agent.hub_model org/name --to {scene.layout.models}/org--name" in log
    assert f'model org--name: | {{"llx": "found", "commit": "{COMMIT}"}}' in log
    assert "progress" not in log
    assert TOKEN not in log
    again = HubHost()
    assert scene.prepare(scene.work("org/name", shell=again)) == []
    assert again.asked == []


def test_a_model_of_the_hub_that_cannot_be_had_is_explained_where_the_log_is(scene):
    host = HubHost()
    host.says = [f'{{"llx": "away", "problem": "the hub is out of reach: {TOKEN}"}}']
    host.done = completed(exit_code=1)
    with pytest.raises(HostError, match="pull org/name: the hub is out of reach") as caught:
        scene.prepare(scene.work("org/name", shell=host))
    assert caught.value.remedy == (
        "let h1 reach http://hub, or copy the model from here: llx model add org--name DIR; "
        f"see {scene.log}"
    )
    assert TOKEN not in scene.log.read_text() + str(caught.value)


def test_a_simulated_engine_fetches_no_weights(scene):
    models = [{"name": "m", "model": "org/name", "engine": "sim"}]
    host = HubHost()
    scene.prepare(scene.work("", shell=host, models=models))
    assert host.asked == []
