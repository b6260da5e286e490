"""`llx` in this process, with directories of its own."""

import pytest
from typer.testing import CliRunner

from llx.cli.main import app
from llx.environment import Environment
from tests.cli.hosts_here import HostsHere
from tests.cli.servers import FakeGateway, FakeHead, cluster_status


class Command:
    def __init__(self, root):
        self.root = root
        self.variables = {
            "HOME": str(root),
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_DATA_HOME": str(root / "data"),
            "XDG_CONFIG_HOME": str(root / "config"),
            "COLUMNS": "100",
            "LLX_DEBUG": "",
            "LLX_OUTPUT": "",
            "LLX_CONTEXT": "",
            "LLX_URL": "",
            "LLX_API_KEY": "",
            "LLX_NODE_PREFIX": "",
        }

    @property
    def environment(self):
        return Environment(self.variables, self.root)

    def __call__(self, *words, stdin="", **variables):
        return CliRunner().invoke(
            app, list(words), input=stdin, env={**self.variables, **variables}, prog_name="llx"
        )


@pytest.fixture
def llx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path)


@pytest.fixture
def hosts(llx):
    return HostsHere(llx)


@pytest.fixture
def gateway():
    with FakeGateway().running() as server:
        yield server


@pytest.fixture
def head(llx, gateway):
    with FakeHead(cluster_status(gateway.url)).running() as server:
        server.register(llx.environment.cluster_dir("local"))
        yield server
