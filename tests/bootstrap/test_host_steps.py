"""What one host goes through, on this machine as a host: a home of its own, pretended Pythons."""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from llx import __version__
from llx.bootstrap.cluster_secrets import new_secrets
from llx.bootstrap.gateway_tls import authority_of, read_given
from llx.bootstrap.host_facts import HostFacts, PythonFact
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_steps import HostWork, configure_host, prepare_host
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hub_models import HubPins
from llx.environment import Environment
from llx.settings import ClusterSettings, Platform
from tests.bootstrap.fake_shell import LocalShell
from tests.bootstrap.test_gateway_tls import names_of, write_pair


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
        used, changed = prepare_host(self.work(installed, runtime), self.said.append)
        assert str(used) == str(python or self.own)
        return changed

    def work(
        self,
        installed: str = "",
        runtime: dict[str, str] | None = None,
        gateway: dict[str, object] | None = None,
    ) -> HostWork:
        settings = ClusterSettings.model_validate(
            {
                "cluster": "c",
                "hosts": ["h1"],
                "models": [{"name": "m", "model": "@models/m"}],
                "runtime": {"platform": "cpu", **(runtime or {})},
                "gateway": gateway or {},
            }
        )
        plan = make_hosts_plan(settings, Environment({"HOME": str(self.root)}, self.root))
        wheel = self.root / f"llx-{__version__}-py3-none-any.whl"
        wheel.touch()
        home = self.layout.home
        return HostWork(
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
            addresses={"h1": "10.0.0.1"},
            cluster=new_secrets(),
            settings=settings,
            wheel=wheel,
            is_running=False,
            log=self.root / "log",
            proceed=lambda: None,
            pins=HubPins(),
        )  # fmt: skip

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


def test_a_gateways_certificate_is_laid_out_kept_replaced_and_taken_away(host):
    own, path = PurePosixPath(host.own), Path(host.layout.state) / "gateway.pem"
    work = host.work(gateway={"tls": "generated", "host": "api.example.com"})
    step = "the gateway's certificate"

    def configured(work: HostWork) -> list[str]:
        return configure_host(work, own, host.said.append)

    prepare_directories(work)
    assert step in configured(work)
    first = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert {"h1", "10.0.0.1", "api.example.com"} <= names_of(first)
    assert authority_of(first) == work.cluster.gateway_authority.cert_pem
    authority_key = path.parent / "tls" / "gateway-ca.key"
    assert authority_key.read_text() == work.cluster.gateway_authority.key_pem.reveal()
    assert authority_key.stat().st_mode & 0o777 == 0o600
    assert step not in configured(work)
    assert step in configured(replace(work, plan=replace(work.plan, rotates=True)))
    mine = write_pair(host.root / "mine")
    given = replace(work.plan, certificate=read_given(mine))
    assert step in configured(replace(work, plan=given))
    assert path.read_text() == read_given(mine).pem.reveal()
    plain = replace(host.work(), cluster=work.cluster, is_running=True)
    assert step not in configured(replace(plain, keeps_settings=True))
    assert path.exists()
    assert authority_key.exists(), "another operator's file may say more than ours"
    assert step in configured(plain)
    assert not path.exists()
    assert not authority_key.exists(), "clients trust nothing of llx's making any more"
    log = (host.root / "log").read_text()
    assert "PRIVATE KEY" not in log


def prepare_directories(work: HostWork) -> None:
    Path(work.layout.state).mkdir(parents=True, mode=0o700)
