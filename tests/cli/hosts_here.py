"""A cluster on hosts, all of them this machine: a home each, and shells that need no SSH."""

import os
from contextlib import contextmanager

from llx.bootstrap.host_layout import HostLayout
from llx.cli.session import Session
from llx.errors import UnreachableError
from tests.bootstrap.fake_shell import LocalShell
from tests.cli.servers import FakeHead

CLUSTER = """
cluster: c
hosts: [{name: h1, address: 10.0.0.1}, {name: h2, address: 10.0.0.2}]
models: [{name: tiny, model: /m}]
"""


class HostsHere:
    """`off` are the hosts that cannot be reached."""

    def __init__(self, llx):
        self.environment = llx.environment
        self.root = llx.root
        self.file = llx.root / "c.yaml"
        self.file.write_text(CLUSTER)
        self.off: set[str] = set()
        for name in ("h1", "h2"):
            self.home(name).mkdir(parents=True)

    def home(self, name):
        return self.root / "hosts" / name

    def layout(self, name):
        return HostLayout(self.home(name), os.getuid(), "c")

    def shell(self, name):
        if name in self.off:
            raise UnreachableError(f"{name}: connect: no route to host")
        return LocalShell(name, {"HOME": str(self.home(name)), "PATH": os.environ["PATH"]})

    def know(self, file="cluster.yaml"):
        """The operator's machine knows the cluster, as being up; down: ``down.yaml``."""
        place = self.environment.cluster_dir("c")
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(CLUSTER)

    def session(self, **options):
        """A run of the command that reaches these hosts."""
        return HostsSession(self, **options)

    @contextmanager
    def head(self, status=None):
        """A head that answers, on h1."""
        with FakeHead(status).running() as server:
            server.register(self.home("h1") / ".llx" / "clusters" / "c")
            yield server

    def procs(self, host, **logs):
        """Logs of processes on a host."""
        for name, text in logs.items():
            place = self.home(host) / ".llx/clusters/c/procs" / name.replace("_", "-")
            place.mkdir(parents=True, exist_ok=True)
            (place / "log").write_text(text)


class HostsSession(Session):
    def __init__(self, hosts, **options):
        super().__init__(**options)
        self.environment = hosts.environment
        self.hosts = hosts

    def connect(self, host, ask=None):
        return self.hosts.shell(host.name)
