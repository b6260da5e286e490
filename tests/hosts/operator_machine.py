"""The operator of the host tests: `llx`, run as somebody whose home is the rig's."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.rig import USER, Rig

CONTROL_PORT = 8900
SIM = {
    "name": "sim", "model": "llx/tiny", "engine": "sim", "instances": {"min": 2},
    "sim": {"step_base_ms": 40.0},
}  # fmt: skip
"""So slow that streams that go on all the time leave the cores to what they are to survive."""


@dataclass
class Operator:
    """Runs `llx` against the hosts of a rig."""

    rig: Rig
    python: str = ""
    """An environment on the hosts that is used as it is; empty: llx makes its own."""
    variables: dict[str, str] = field(default_factory=dict)
    """Set in the operator's shell."""
    gateway: dict[str, Any] = field(default_factory=dict)
    """More for the gateways' settings."""

    @property
    def environment(self) -> dict[str, str]:
        return {**self.rig.operator_environment(), **self.variables}

    def config(self, hosts: list[dict[str, Any]] | None = None, **changes: Any) -> str:
        """Write a cluster.yaml; returns its path."""
        runtime = {"platform": "cpu", "cpu_threads": 1}
        if self.python:
            runtime["python"] = self.python
        values = {
            "cluster": "c",
            "hosts": self.rig.cluster_hosts() if hosts is None else hosts,
            "models": [SIM],
            "gateway": {"host": "0.0.0.0", "port": 8000, "count": 1, **self.gateway},
            "runtime": runtime,
            **changes,
        }
        path = self.rig.home / "cluster.yaml"
        path.write_text(json.dumps(values))
        return str(path)

    def __call__(self, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end; one that takes too long fails with what it has said."""
        try:
            return subprocess.run(
                [sys.executable, "-m", "llx", *words],
                env=self.environment, capture_output=True, text=True,
                timeout=timeout_s, cwd=self.rig.home, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"") + b"\n" + (late.stderr or b"")
            told = said.decode(errors="replace")
            pytest.fail(f"llx {' '.join(words)}: more than {timeout_s} s\n{told}")

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "llx", *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=self.rig.home, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        done = self(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def glance(self) -> dict[str, Any]:
        """The cluster's status, asked on the head's host, the first one; empty if it is silent.

        For waiting: an `llx status` costs a second of CPU, and what is waited for needs that.
        """
        script = (
            f'curl -s -m 60 -H "Authorization: Bearer $(cat /home/{USER}/.llx/clusters/c/token)"'
            f" http://127.0.0.1:{CONTROL_PORT}/v1/status"
        )
        done = self.rig.hosts[0].x("sh", "-c", script)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}

    def states(self) -> dict[str, str]:
        """States of hosts, instances and gateways, at a glance."""
        status = self.glance()
        rows = [
            each for kind in ("hosts", "instances", "gateways") for each in status.get(kind, [])
        ]
        return {each["name"]: each["state"] for each in rows}

    def is_well(self) -> bool:
        """Whether all that there is is ready, at a glance."""
        return set(self.states().values()) == {"ready"}

    def becomes_well(self, timeout_s: float = 300, what: str = "") -> None:
        """Wait until all that there is is ready; what is not is told with the reason.

        A gateway that starts again imports vLLM, for which it needs some fifteen seconds of CPU:
        minutes beside other tests' engines.
        """
        eventually(self.is_well, timeout_s, lambda: f"{what}: not well: {self._why_not()}")

    def _why_not(self) -> str:
        """All that is not ready: as the head tells it, and the end of its log."""
        status = self.glance()
        rows = [
            each
            for kind in ("hosts", "instances", "gateways")
            for each in status.get(kind, [])
            if each["state"] != "ready"
        ]
        told = [json.dumps(status.get("state", "the head is silent"))]
        for each in rows:
            told += [json.dumps(each), self("logs", each["name"], "--tail", "40").stdout]
        return "\n".join(told)

    @property
    def state_dir(self) -> Path:
        """What this operator's machine knows of the cluster."""
        return self.rig.home / "state" / "llx" / "clusters" / "c"


def eventually(
    check: Callable[[], bool], timeout_s: float = 60.0, what: str | Callable[[], str] = ""
) -> None:
    """Wait until `check` holds; `what`: said if it does not, found out only then if it is asked."""
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() >= end:
            said = what if isinstance(what, str) else what()
            raise AssertionError(said or "it never came true")
        time.sleep(0.2)


def end(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    """End an `llx` that was started."""
    if process.poll() is None:
        process.send_signal(number)
    process.communicate(timeout=30)
