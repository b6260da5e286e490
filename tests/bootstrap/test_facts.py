"""Facts of this very machine."""

import os
import socket
import sys
from pathlib import Path

import pytest

from llx.bootstrap import facts
from llx.cluster_file import ClusterSettings


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_and_its_holder(taken_port):
    found = facts.probe_port("127.0.0.1", taken_port)
    name = Path("/proc/self/comm").read_text().strip()
    assert found == facts.PortFact(f"port {taken_port} is taken", f"{name} (pid {os.getpid()})")


def test_a_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert facts.probe_port("127.0.0.1", port) == facts.PortFact()
    assert facts.port_holder(port) == ""


def test_an_address_of_another_machine():
    found = facts.probe_port("192.0.2.1", 8000)
    assert found.problem.startswith("cannot listen on 192.0.2.1:8000: ")


def test_an_address_that_is_none():
    assert "cannot be resolved" in facts.probe_port("no.such.name.invalid", 8000).problem


def test_gather(tmp_path, taken_port):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    settings = ClusterSettings.model_validate(
        {
            "models": [
                {"name": "a", "model": str(tmp_path)},
                {"name": "b", "model": str(tmp_path / "none")},
                {"name": "c", "model": "org/name"},
            ],
            "gateway": {"port": taken_port},
            "control": {"port": 0},
        }
    )
    node = facts.node_fact(None, tmp_path / "deep" / "node")
    found = facts.gather(settings, node=node, gpus=())
    assert found.models == {
        str(tmp_path): facts.ModelFact(is_directory=True, has_config=True, weights_bytes=100),
        str(tmp_path / "none"): facts.ModelFact(is_directory=False, has_config=False),
    }
    assert list(found.ports) == [("127.0.0.1", taken_port)]
    assert found.memory_available_bytes > 0
    assert found.disk_free_bytes > 0
    ignoring = facts.gather(settings, node=node, gpus=(), ignored_ports=frozenset({taken_port}))
    assert ignoring.ports == {}


class TestNode:
    def test_not_there_yet(self, tmp_path):
        assert facts.node_fact(None, tmp_path / "n") == facts.NodeFact(False, tmp_path / "n")

    def test_somebody_elses_directory(self, tmp_path):
        (tmp_path / "precious").touch()
        problem = facts.node_fact(None, tmp_path).problem
        assert problem is not None
        assert "not made by llx" in problem.message

    def test_unfinished_is_not_installed(self, tmp_path):
        (tmp_path / "install.lock").touch()
        assert facts.node_fact(None, tmp_path) == facts.NodeFact(False, tmp_path)

    def test_a_python_without_vllm(self, tmp_path):
        found = facts.node_fact(Path(sys.executable), tmp_path)
        assert found.problem is not None
        assert "no vllm" in found.problem.message

    def test_no_python(self, tmp_path):
        found = facts.node_fact(tmp_path / "python", tmp_path)
        assert found.problem is not None
        assert "no working Python" in found.problem.message
