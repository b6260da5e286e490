"""The node agent over real shims with trivial children."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llx.agent import shim
from llx.agent.devices import Allocation, Device, DeviceKind, DeviceLedger, Inventory
from llx.agent.node import Commands, NodeAgent, status_path
from llx.agent.processes import list_processes
from llx.errors import ConflictError, RemoteError
from llx.specs import (
    EngineKind,
    GatewaySpec,
    InstanceSpec,
    Phase,
    ProcessStatus,
    load_spec,
    save_spec,
)

CPU = DeviceKind.CPU
CORES = Inventory(CPU, tuple(Device(f"cpu:{i}", f"core {i}") for i in range(2)))
SHOW = ("sh", "-c", "env; exec sleep 60", "sh")
SLEEP = ("sh", "-c", "exec sleep 60", "sh")


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.005)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "procs").mkdir()
    yield tmp_path
    for process in list_processes(tmp_path / "procs"):
        process.stop(0)
        shim.kill_marked(process.status().mark)


def agent_in(
    root: Path, command: tuple[str, ...] = SLEEP, inventory: Inventory = CORES
) -> NodeAgent:
    ledger = DeviceLedger(root / "devices.json", inventory)
    environment = {"PATH": os.environ["PATH"], "HF_TOKEN": "hf"}
    return NodeAgent(root / "procs", ledger, Commands(command, command), environment, 2)


def instance(root: Path, name: str = "m-0") -> InstanceSpec:
    return InstanceSpec(
        name=name,
        pool="m",
        engine=EngineKind.SIM,
        model="/m",
        engine_args={"max_model_len": 9},
        tensor_parallel=1,
        bind_host="127.0.0.1",
        keys_path=str(root / "keys.json"),
        status_path=str(status_path(root / "procs", name)),
    )


def gateway(root: Path) -> GatewaySpec:
    return GatewaySpec(
        name="gateway-0",
        host="127.0.0.1",
        port=0,
        pools=[],
        classes=[],
        api_keys=[],
        max_requests=1,
        scheduler_address="tcp://127.0.0.1:1",
        keys_path=str(root / "keys.json"),
        status_path=str(status_path(root / "procs", "gateway-0")),
    )


def test_an_instance_runs_with_its_devices_and_environment(root: Path) -> None:
    agent = agent_in(root, SHOW)
    process = agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))
    assert agent.ledger.held() == {"m-0": Allocation(CPU, ["cpu:0"])}
    eventually(lambda: "HF_TOKEN=hf" in process.log_path.read_text(), "it shows its environment")
    shown = process.log_path.read_text().splitlines()
    assert {"OMP_NUM_THREADS=1", "VLLM_CPU_KVCACHE_SPACE=2", "DO_NOT_TRACK=1"} <= set(shown)
    spec_file = process.directory / "spec.json"
    assert load_spec(spec_file, InstanceSpec) == instance(root)
    assert stat.S_IMODE(spec_file.stat().st_mode) == 0o600
    command = Path(f"/proc/{process.status().child_pid}/cmdline").read_text()
    assert "hf" not in command


def test_a_gateway_sees_no_gpu(root: Path) -> None:
    agent = agent_in(root, SHOW, Inventory(DeviceKind.GPU, (Device("GPU-a", "a"),)))
    process = agent.start_gateway(gateway(root))
    eventually(lambda: "HF_TOKEN=hf" in process.log_path.read_text(), "it shows its environment")
    assert "CUDA_VISIBLE_DEVICES=\n" in process.log_path.read_text()
    assert agent.ledger.held() == {}


def test_observe_tells_specs_records_and_what_they_say(root: Path) -> None:
    agent = agent_in(root)
    agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))
    agent.start_gateway(gateway(root))
    seen = agent.observe()
    assert set(seen) == {"m-0", "gateway-0"}
    assert seen["m-0"].spec == instance(root)
    assert seen["gateway-0"].spec == gateway(root)
    assert seen["m-0"].said is None
    assert seen["m-0"].is_running
    status = ProcessStatus(Phase.READY, addresses=["tcp://a", "tcp://b"])
    save_spec(status_path(agent.procs_dir, "m-0"), status)
    assert agent.observe()["m-0"].said == status
    agent.stop("m-0", 5)
    assert not agent.observe()["m-0"].is_running


def test_the_status_of_the_run_before_is_not_believed(root: Path) -> None:
    agent = agent_in(root)
    allocation = Allocation(CPU, ["cpu:0"])
    agent.start_instance(instance(root), allocation)
    save_spec(status_path(agent.procs_dir, "m-0"), ProcessStatus(Phase.READY))
    agent.stop("m-0", 5)
    agent.start_instance(instance(root), allocation)
    assert agent.observe()["m-0"].said is None


def test_a_new_agent_finds_what_runs_and_rebuilds_the_ledger(root: Path) -> None:
    first = agent_in(root)
    first.start_instance(instance(root, "m-0"), Allocation(CPU, ["cpu:0"]))
    first.start_instance(instance(root, "m-1"), Allocation(CPU, ["cpu:1"]))
    first.stop("m-1", 5)
    second = agent_in(root)
    assert [name for name, each in second.observe().items() if each.is_running] == ["m-0"]
    assert list(second.ledger.held()) == ["m-0"]


def test_conflicts_are_refused_and_change_nothing(root: Path) -> None:
    agent = agent_in(root)
    running = agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))
    with pytest.raises(ConflictError, match="cpu:0 is held by m-0"):
        agent.start_instance(instance(root, "m-1"), Allocation(CPU, ["cpu:0"]))
    save_spec(status_path(agent.procs_dir, "m-0"), ProcessStatus(Phase.READY))
    with pytest.raises(ConflictError, match=r"m-0: cannot be started: .*already running"):
        agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))
    assert running.is_alive()
    said = agent.observe()["m-0"].said
    assert said is not None
    assert said.phase is Phase.READY


def test_a_command_that_cannot_run_says_why(root: Path) -> None:
    agent = agent_in(root, ("no-such-python",))
    with pytest.raises(RemoteError, match="m-0: cannot be started: no-such-python"):
        agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))


def test_forget_leaves_only_the_logs_and_never_a_running_process(root: Path) -> None:
    agent = agent_in(root)
    process = agent.start_instance(instance(root), Allocation(CPU, ["cpu:0"]))
    agent.forget("m-0")
    assert "m-0" in agent.observe()
    agent.stop("m-0", 5)
    agent.forget("m-0")
    agent.forget("never-was")
    assert agent.observe() == {}
    assert process.log_path.exists()


def test_stopping_what_is_not_there(root: Path) -> None:
    assert agent_in(root).stop("m-0", 1) is None
