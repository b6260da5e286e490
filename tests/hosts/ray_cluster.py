"""A cluster on namespace hosts without the bootstrap: its files laid out by hand, Ray started.

What `llx up` does over SSH is tested elsewhere; here it is what runs afterwards.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.tls import Authority, make_authority
from llx.curve import ClusterKeys
from llx.host_ports import HostPorts
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import HostSpec, Phase, ProcessStatus
from tests.hosts.rig import UID, USER, Host, Rig, python_binds

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("LLX_NODE_PREFIX", ROOT / ".node")) / "bin" / "python"
BINDS = (*python_binds(PYTHON), ROOT)
TOKEN = "t0ken-" + "4" * 40
CONTROL_TOKEN = "c0ntrol-" + "4" * 32
PORTS = HostPorts(20000)
CONTROL_PORT = 8900


class RayCluster:
    """A cluster on all hosts of a rig; the first one is the head."""

    def __init__(self, rig: Rig, *, is_tls: bool = True) -> None:
        self.rig = rig
        self.head = rig.hosts[0]
        self.layout = HostLayout(PurePosixPath(f"/home/{USER}"), UID, "c")
        self.authority: Authority = make_authority()
        self.keys = ClusterKeys.create().dump()
        self.is_tls = is_tls
        for host in rig.hosts:
            self.lay_out(host)
        self.configure()

    # ------------------------------------------------------------------ files

    def spec(self, host: Host, **changes: Any) -> HostSpec:
        layout = self.layout
        spec = HostSpec(
            cluster="c",
            cluster_id="1d",
            host=host.name,
            address=host.address,
            head=self.head.name,
            head_address=self.head.address,
            state_dir=str(layout.state),
            models_dir=str(layout.models),
            cache_dir=str(layout.caches),
            python=str(PYTHON),
            platform="cpu",
            first_port=PORTS.first,
            is_tls=self.is_tls,
            ray_tmp=str(layout.ray_tmp),
        )
        return msgspec.structs.replace(spec, **changes)

    def lay_out(self, host: Host, **changes: Any) -> None:
        spec = self.spec(host, **changes)
        certificate = self.authority.issue(host.name, host.address)
        files = {
            str(self.layout.spec): msgspec.json.encode(spec).decode(),
            spec.ray_token_path: TOKEN,
            f"{spec.tls_dir}/ca.pem": self.authority.cert_pem,
            f"{spec.tls_dir}/host.pem": certificate.cert_pem,
            f"{spec.tls_dir}/host.key": certificate.key_pem.reveal(),
            f"{spec.state_dir}/keys.json": self.keys,
        }
        for path, content in files.items():
            host.write(path, content, mode=0o600)
        host.x("mkdir", "-p", str(self.layout.procs), str(self.layout.models), check=True)
        host.x("chown", "-R", f"{UID}:{UID}", str(self.layout.root), check=True)
        host.x("chmod", "-R", "go-rwx", str(self.layout.root), check=True)

    def configure(self, **changes: Any) -> None:
        """The head's cluster.yaml."""
        model = {"name": "m", "model": "/m", "engine": "sim", "instances": {"min": 2}}
        settings = ClusterSettings.model_validate(
            {
                "cluster": "c",
                "hosts": self.rig.cluster_hosts(),
                "models": [model],
                "gateway": {"host": "0.0.0.0"},
                "control": {"port": CONTROL_PORT},
                "runtime": {"platform": "cpu"},
            }
            | changes
        )
        files = {"cluster.yaml": dump_cluster(settings), "token": CONTROL_TOKEN}
        for name, content in files.items():
            path = str(self.layout.state / name)
            self.head.write(path, content, mode=0o600)
            self.head.x("chown", f"{UID}:{UID}", path, check=True)

    # ------------------------------------------------------------------ verbs

    def verb(self, host: Host, verb: str, *options: str) -> Any:
        command = [str(PYTHON), "-m", "llx.cluster.ray.node", verb, str(self.layout.spec)]
        return host.x(*command, *options, user=USER, timeout=120)

    def start(self, *hosts: Host) -> None:
        for host in hosts or self.rig.hosts:
            done = self.verb(host, "start")
            assert done.returncode == 0, done.stderr

    def wait_up(self, *hosts: Host, timeout_s: float = 60) -> None:
        for host in hosts or self.rig.hosts:
            eventually(
                lambda host=host: self.verb(host, "check").returncode == 0,
                lambda host=host: self.log(host, "ray"),
                timeout_s,
            )

    # ------------------------------------------------------------------ looking

    def read(self, host: Host, path: str) -> str:
        return host.x("cat", str(self.layout.state / path)).stdout

    def log(self, host: Host, name: str) -> str:
        return self.read(host, f"procs/{name}/log")

    def said(self, host: Host, name: str) -> ProcessStatus | None:
        text = self.read(host, f"procs/{name}/status.json")
        return msgspec.json.decode(text, type=ProcessStatus) if text else None

    def is_ready(self, host: Host, name: str) -> bool:
        said = self.said(host, name)
        return said is not None and said.phase is Phase.READY

    def control(self, method: str, path: str, **body: Any) -> Any:
        """The control API's answer; None if there is none."""
        command = [
            "curl", "-s", "-m", "10", "-X", method, f"http://127.0.0.1:{CONTROL_PORT}{path}",
            "-H", f"Authorization: Bearer {CONTROL_TOKEN}", "-H", "Content-Type: application/json",
        ]  # fmt: skip
        if body:
            command += ["-d", json.dumps(body)]
        done = self.head.x(*command)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None

    def status(self) -> dict[str, Any]:
        return self.control("GET", "/v1/status") or {}

    def pids(self, host: Host, name: str) -> list[int]:
        """Processes whose command line contains `name`, by their numbers on this machine."""
        return sorted(host.processes(name))


def eventually(
    check: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 30
) -> float:
    """Wait until it is so; returns after how many seconds."""
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not in time: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return time.monotonic() - began
