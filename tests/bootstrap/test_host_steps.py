"""What one host goes through, on this machine as a host: a home of its own, pretended Pythons."""

import os
from pathlib import Path, PurePosixPath

import pytest

from llx import __version__
from llx.bootstrap.cluster_secrets import new_secrets
from llx.bootstrap.host_facts import HostFacts, PythonFact
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_steps import HostWork, prepare_host
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hub_models import HubPins
from llx.settings import ClusterSettings, Environment, Platform
from tests.bootstrap.fake_shell import LocalShell


class Host:
    """A host with a finished node environment, and a Python beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = HostLayout(PurePosixPath(root / "home"), os.getuid(), "c")
        Path(self.layout.home).mkdir()
        self.own = self.pretend(Path(self.layout.node_python("cpu")))
        self.base = self.pretend(root / "bin" / "python3.12")
        self.shell = LocalShell()
        self.said: list[str] = []

    def pretend(self, path: Path, exit_code: int = 0) -> Path:
        """A Python that is content with every environment, or with none until it installed one."""
        done = path.parent / "done"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!/bin/sh\ncase "$*" in *" install "*) touch {done} ;; esac\n'
            f"[ -e {done} ] || exit {exit_code}\n"
        )
        path.chmod(0o755)
        return path

    def prepare(
        self, installed: str, runtime: dict[str, str] | None = None, python: Path | None = None
    ) -> list[str]:
        """Prepare it for a cluster of Python 3.12; the steps that changed something."""
        settings = ClusterSettings.model_validate(
            {
                "cluster": "c",
                "hosts": ["h1"],
                "models": [{"name": "m", "model": "@models/m"}],
                "runtime": {"platform": "cpu", **(runtime or {})},
            }
        )
        plan = make_hosts_plan(settings, Environment({"HOME": str(self.root)}, self.root))
        wheel = self.root / f"llx-{__version__}-py3-none-any.whl"
        wheel.touch()
        home = self.layout.home
        work = HostWork(
            plan=plan,
            host=settings.hosts[0],
            shell=self.shell,
            layout=self.layout,
            facts=HostFacts(
                "h1", "h1", "ann", os.getuid(), home,
                node_environments={f"{__version__}-cpu": installed},
                pythons=(PythonFact(str(self.base), (3, 12, 1), "/usr", True, {}),),
            ),
            platform=Platform.CPU,
            python_version="3.12",
            addresses={},
            cluster=new_secrets(),
            settings=settings,
            wheel=wheel,
            is_running=False,
            log=self.root / "log",
            proceed=lambda: None,
            pins=HubPins(),
        )  # fmt: skip
        used, changed = prepare_host(work, self.said.append)
        assert str(used) == str(python or self.own)
        return changed

    @property
    def installers(self) -> list[tuple[str, str]]:
        """Who ran our installer, and what for."""
        found = [each for each in self.shell.argvs if "llx.bootstrap.node_env" in each]
        return [(each[2], each[each.index("-m") + 2]) for each in found]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_an_environment_of_the_right_release_is_looked_at_with_its_own_python(host):
    """What it was made from may be gone, and need not be brought again."""
    host.base.unlink()
    assert "node environment" not in host.prepare("3.12.4")
    assert host.installers == [(str(host.own), "check")]


@pytest.mark.parametrize("installed", ["3.11.2", ""])
def test_one_of_another_release_is_looked_at_with_the_right_one(host, installed):
    assert "node environment" not in host.prepare(installed)
    assert host.installers == [(str(host.base), "check")]
    assert all("--same-release" in each for each in host.shell.argvs if each[0] == "env")


def test_one_that_is_not_as_it_should_be_is_made_with_a_python_beside_it(host):
    """Its own goes away while it is made."""
    host.pretend(host.own, exit_code=1)
    host.pretend(host.base, exit_code=1)
    assert "node environment" in host.prepare("3.12.4")
    assert [each for each in host.installers if each[1] == "install"] == [
        (str(host.base), "install")
    ]


def test_a_python_in_the_home_is_in_that_of_the_hosts_user(host):
    there = host.pretend(Path(host.layout.home) / "venv" / "bin" / "python")
    assert host.prepare("", {"python": "~/venv/bin/python"}, python=there)
    words = [word for argv in host.shell.argvs for word in argv]
    assert f"--python={there}" in words
    assert not [word for word in words if "~" in word]
