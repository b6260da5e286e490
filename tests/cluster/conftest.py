"""A real head with real shims over fake instances and gateways; nothing of it survives its test."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import llx
from llx.agent import shim
from llx.agent.processes import Process, list_processes
from llx.api import ClusterState, ClusterStatus
from llx.client import Cluster
from llx.cluster.launch import launch_head, stop_everything
from llx.cluster.state_dir import HeadSpec, StateDir
from llx.errors import UnreachableError
from llx.settings import ClusterSettings, dump_cluster

FAKES = Path(__file__).parent / "fakes"


class Rig:
    """One cluster of fakes."""

    def __init__(self, root: Path) -> None:
        self.state = StateDir(root / "state" / "c")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "PYTHONPATH": str(Path(llx.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def settings(self, **changes: Any) -> ClusterSettings:
        model = {"name": "m", "model": "/m", "engine": "sim", "instances": {"min": 2}}
        values = {"cluster": "c", "models": [model], "control": {"port": 0}, **changes}
        return ClusterSettings.model_validate(values)

    def launch(self, settings: ClusterSettings | None = None) -> Process:
        spec = HeadSpec(
            cluster="c",
            state_dir=str(self.state.path),
            python=sys.executable,
            platform="cpu",
            instance_command=[sys.executable, str(FAKES / "fake_instance.py")],
            gateway_command=[sys.executable, str(FAKES / "fake_gateway.py")],
        )
        return launch_head(spec, dump_cluster(settings or self.settings()), self.environment)

    def client(self, timeout_s: float = 60.0) -> Cluster:
        """A client, once the head answers."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                client = Cluster.for_cluster(self.state.path)
                client.status()
                return client
            except UnreachableError:
                assert time.monotonic() < end, self.log("head")
                time.sleep(0.02)

    def reaches(self, client: Cluster, *states: ClusterState) -> ClusterStatus:
        found: list[ClusterStatus] = []

        def check() -> bool:
            found[:] = [client.status()]
            return found[0].state in states

        self.eventually(check, lambda: f"{states}, but {found[0]}\n{self.log('head')}")
        return found[0]

    def eventually(
        self, check: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 60.0
    ) -> None:
        end = time.monotonic() + timeout_s
        while not check():
            assert time.monotonic() < end, (
                f"not in time: {what if isinstance(what, str) else what()}"
            )
            time.sleep(0.02)

    def give(self, name: str, *requests: dict[str, Any]) -> None:
        """Make these the requests of an instance (`fakes/fake_llumlet.py`)."""
        write_requests(self.state.procs / name, requests)

    def log(self, name: str) -> str:
        path = self.state.procs / name / "log"
        return path.read_text() if path.exists() else ""

    def alive(self) -> set[str]:
        return {each.name for each in list_processes(self.state.procs) if each.is_alive()}

    def close(self) -> None:
        stop_everything(self.state.path, 0)
        for process in list_processes(self.state.procs):
            shim.kill_marked(process.status().mark)


def write_requests(folder: Path, requests: Sequence[dict[str, Any]]) -> None:
    """The requests of the fake instance of that directory."""
    new = folder / "requests.tmp"
    new.write_text(json.dumps(list(requests)))
    new.replace(folder / "requests.json")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()
