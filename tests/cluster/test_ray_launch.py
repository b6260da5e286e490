"""How long the launcher of a Ray node waits for its raylet."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from llx.cluster.ray import launch
from llx.cluster.ray.launch import RayletError, _patient


@pytest.fixture
def raylet() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


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


def test_a_slow_raylet_is_waited_for(raylet):
    store = Store(after=20)
    assert _patient(store.get_node, raylet, NOT_YET)("h1:1", "n") == {"at": "h1:1", "id": "n"}
    assert store.num_asked == 20


def test_one_that_has_ended_is_not(raylet):
    raylet.kill()
    began = time.monotonic()
    with pytest.raises(RayletError, match="exit code -9"):
        _patient(Store(after=float("inf")).get_node, raylet, NOT_YET)("h1:1", "n")
    assert time.monotonic() - began < 20


def test_nor_one_for_ever(raylet, monkeypatch):
    monkeypatch.setattr(launch, "_RAYLET_S", 0.1)
    with pytest.raises(RuntimeError, match="not found"):
        _patient(Store(after=float("inf")).get_node, raylet, NOT_YET)("h1:1", "n")
