"""How long the launcher of a Ray node waits for its raylet."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.cluster.ray import launch
from llx.cluster.ray.launch import RayletError, _patient


@pytest.fixture
def raylet() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "raylet.out").write_text(
        "[2026-01-31 12:00:00,123 I 355 355] (raylet) main.cc:283: Setting cluster ID to: fc93\n"
    )
    return tmp_path


NOT_YET = (RuntimeError, LookupError)


class Store:
    """A control store that knows a node from the `after`-th question on."""

    def __init__(self, after: float) -> None:
        self.num_asked = 0
        self._after = after

    def get_node(self, address: str, node_id: str) -> dict[str, str]:
        self.num_asked += 1
        if self.num_asked < self._after:
            raise RuntimeError("not found")
        return {"at": address, "id": node_id}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launch, "_ASK_EVERY_S", 0.01)


def test_a_slow_raylet_is_waited_for(raylet, logs):
    store = Store(after=20)
    assert _patient(store.get_node, raylet, NOT_YET, logs)("h1:1", "n") == {"at": "h1:1", "id": "n"}
    assert store.num_asked == 20


def test_one_that_has_ended_is_not(raylet, logs):
    raylet.kill()
    began = time.monotonic()
    with pytest.raises(RayletError, match="exit code -9") as failed:
        _patient(Store(after=float("inf")).get_node, raylet, NOT_YET, logs)("h1:1", "n")
    assert time.monotonic() - began < 20
    assert failed.value.words == "", "the keeper takes words for a reason that is known"


def test_nor_one_that_says_that_it_has_failed(raylet, logs):
    """It would go on for half a minute; and what it says is what the operator must know."""
    with (logs / "raylet.out").open("a") as out:
        out.write(
            "[2026-01-31 12:00:01,019 C 355 355] (raylet) grpc_server.cc:134:  An unexpected system"
            " state has occurred. You have likely discovered a bug in Ray. Please report this issue"
            " at https://example.org and we'll work with you to fix it. Check failed: server_"
            " Failed to start the grpc server. The specified port is 20001.\n*** StackTrace ***\n"
        )
    with pytest.raises(RayletError, match=r"^the raylet has failed: Check failed: .* is 20001\.$"):
        _patient(Store(after=float("inf")).get_node, raylet, NOT_YET, logs)("h1:1", "n")
    assert raylet.returncode == -9


def test_nor_one_for_ever(raylet, logs, monkeypatch):
    monkeypatch.setattr(launch, "_RAYLET_S", 0.1)
    with pytest.raises(RuntimeError, match="not found"):
        _patient(Store(after=float("inf")).get_node, raylet, NOT_YET, logs)("h1:1", "n")
