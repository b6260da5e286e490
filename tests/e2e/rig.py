"""What the end-to-end tests drive: `llx` in directories of its own, and the processes it leaves."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Llx:
    """The `llx` command in directories of its own."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "HF_HUB_OFFLINE": "1",
        }

    def __call__(self, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llx", *words],
            env=self.environment, capture_output=True, text=True, timeout=timeout_s,
            cwd=self.home, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def json(self, *words: str) -> dict:
        done = self(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "llx", *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.home, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def processes_of(folder: Path) -> dict[int, str]:
    """Live processes whose command line names something below `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line and int(entry.name) != os.getpid():
                found[int(entry.name)] = line
    return found


def sweep(folder: Path) -> None:
    """The last resort of a failed test: end what is left, by the directory in its command line."""
    for pid in processes_of(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@dataclass
class Cluster:
    llx: Llx
    url: str
    config: Path

    @property
    def directory(self) -> Path:
        return self.llx.home / "state/llx/clusters/e2e"


@contextmanager
def cluster_up(home: Path, settings: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster with these settings besides its name and ports; `llx down` must leave nothing."""
    llx, config, port = Llx(home), home / "cluster.yaml", random.randrange(21000, 29000)
    gateway = settings.get("gateway", {}) | {"port": port}
    own = {"cluster": "e2e", "gateway": gateway, "control": {"port": 0}}
    config.write_text(json.dumps(settings | own))
    done = llx("up", "-y", str(config), timeout_s=600)
    assert done.returncode == 0, done.stderr
    try:
        scheme = "https" if "tls" in gateway else "http"
        yield Cluster(llx, f"{scheme}://127.0.0.1:{port}", config)
    finally:
        done = llx("down", "--deadline", "5s")
        left = processes_of(home)
        sweep(home)
    assert done.returncode == 0, done.stderr
    assert left == {}, "`llx down` left processes behind"
