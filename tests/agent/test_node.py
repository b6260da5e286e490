"""The node agent over real shims with trivial children."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from llx.agent import shim
from llx.agent.devices import Allocation, Device, DeviceKind, DeviceLedger, Inventory, Need
from llx.agent.host_view import HostView, decode, encode
from llx.agent.names import status_path
from llx.agent.node import Commands, NodeAgent
from llx.agent.place import Place
from llx.agent.processes import Process, attach, list_processes
from llx.errors import ConflictError, NotFoundError, RemoteError, WireError
from llx.gateway.scheduler_address import SchedulerAddress
from llx.specs import (
    EngineKind,
    GatewaySpec,
    InstanceSpec,
    Phase,
    PoolSpec,
    ProcessStatus,
    load_spec,
    save_spec,
)

CPU = DeviceKind.CPU
CORES = Inventory(CPU, tuple(Device(f"cpu:{i}", f"core {i}") for i in range(2)))
SHOW = ("sh", "-c", "env; exec sleep 60", "sh")
SLEEP = ("sh", "-c", "exec sleep 60", "sh")


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
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
    place = Place("h1", "10.0.0.1", "cpu", "/models", (21100, 21999), "/home/u")
    commands = Commands(command, command)
    return NodeAgent(root / "procs", ledger, commands, environment, 2, place=place)


def start(agent: NodeAgent, name: str = "m-0", cores_each: int | None = 1) -> Process:
    needs = [Need("m-0", 1), Need("m-1", 1)]
    agent.start_instance(instance(name), needs, cores_each)
    process = attach(agent.procs_dir / name)
    assert process is not None
    return process


def instance(name: str = "m-0") -> InstanceSpec:
    return InstanceSpec(
        name=name,
        pool="m",
        engine=EngineKind.SIM,
        model="/m",
        engine_args={"max_model_len": 9},
        tensor_parallel=1,
        bind_host="",
        keys_path="",
        status_path="",
    )


def gateway(host: str = "0.0.0.0", model: str = "/m") -> GatewaySpec:
    return GatewaySpec(
        name="gateway-0",
        host=host,
        port=0,
        pools=[PoolSpec("m", model, EngineKind.SIM, {}, {"chat_template": "@models/t"}, 1, 1)],
        classes=[],
        api_keys=[],
        max_requests=1,
        scheduler_address="tcp://127.0.0.1:1",
        keys_path="",
        status_path="",
    )


def test_an_instance_runs_with_its_devices_and_environment(root: Path) -> None:
    agent = agent_in(root, SHOW)
    process = start(agent)
    assert agent.ledger.held() == {"m-0": Allocation(CPU, ["cpu:0"])}
    eventually(lambda: "HF_TOKEN=hf" in process.log_path.read_text(), "it shows its environment")
    shown = process.log_path.read_text().splitlines()
    assert {"OMP_NUM_THREADS=1", "VLLM_CPU_KVCACHE_SPACE=2", "DO_NOT_TRACK=1"} <= set(shown)
    spec_file = process.directory / "spec.json"
    assert stat.S_IMODE(spec_file.stat().st_mode) == 0o600
    command = Path(f"/proc/{process.status().child_pid}/cmdline").read_text()
    assert "hf" not in command


def test_a_gateway_sees_no_gpu(root: Path) -> None:
    agent = agent_in(root, SHOW, Inventory(DeviceKind.GPU, (Device("GPU-a", "a"),)))
    agent.start_gateway(gateway())
    process = attach(agent.procs_dir / "gateway-0")
    assert process is not None
    eventually(lambda: "HF_TOKEN=hf" in process.log_path.read_text(), "it shows its environment")
    assert "CUDA_VISIBLE_DEVICES=\n" in process.log_path.read_text()
    assert agent.ledger.held() == {}


def test_observe_tells_specs_records_and_what_they_say(root: Path) -> None:
    agent = agent_in(root)
    start(agent)
    agent.start_gateway(gateway())
    seen = agent.observe()
    assert set(seen) == {"m-0", "gateway-0"}
    assert seen["m-0"].spec == instance()
    assert seen["gateway-0"].spec == gateway()
    assert seen["m-0"].said is None
    assert seen["m-0"].is_running
    status = ProcessStatus(Phase.READY, addresses=["tcp://a", "tcp://b"])
    save_spec(status_path(agent.procs_dir, "m-0"), status)
    assert agent.observe()["m-0"].said == status
    agent.stop("m-0", 5)
    assert not agent.observe()["m-0"].is_running


def test_the_status_of_the_run_before_is_not_believed(root: Path) -> None:
    agent = agent_in(root)
    start(agent)
    save_spec(status_path(agent.procs_dir, "m-0"), ProcessStatus(Phase.READY))
    agent.stop("m-0", 5)
    start(agent)
    assert agent.observe()["m-0"].said is None


def test_a_new_agent_finds_what_runs_and_rebuilds_the_ledger(root: Path) -> None:
    first = agent_in(root)
    start(first, "m-0")
    start(first, "m-1")
    first.stop("m-1", 5)
    second = agent_in(root)
    assert [name for name, each in second.observe().items() if each.is_running] == ["m-0"]
    assert list(second.ledger.held()) == ["m-0"]


def test_conflicts_are_refused_and_change_nothing(root: Path) -> None:
    agent = agent_in(root)
    running = start(agent)
    save_spec(status_path(agent.procs_dir, "m-0"), ProcessStatus(Phase.READY))
    other = msgspec.structs.replace(instance(), model="/other")
    with pytest.raises(ConflictError, match=r"m-0: cannot be started: .*already running"):
        agent.start_instance(other, [Need("m-0", 1)], 1)
    assert running.is_alive()
    said = agent.observe()["m-0"].said
    assert said is not None
    assert said.phase is Phase.READY


def test_a_start_asked_for_twice_is_one(root: Path) -> None:
    """Who asks again has not heard that it was started."""
    agent = agent_in(root)
    first = start(agent).status()
    assert start(agent).status().child_pid == first.child_pid


def test_a_running_gateway_is_told_where_the_scheduler_is_now(root: Path) -> None:
    agent = agent_in(root)
    agent.start_gateway(gateway())
    process = attach(agent.procs_dir / "gateway-0")
    assert process is not None
    pid = process.status().child_pid
    watched = SchedulerAddress(process.directory / "spec.json", "")
    assert watched.now() == "tcp://127.0.0.1:1"
    moved = msgspec.structs.replace(gateway(), scheduler_address="tcp://127.0.0.2:1")
    agent.start_gateway(moved)
    assert watched.now() == "tcp://127.0.0.2:1"
    seen = agent.observe()["gateway-0"]
    assert (seen.record.child_pid, seen.spec) == (pid, moved)
    with pytest.raises(ConflictError, match="already running"):
        agent.start_gateway(msgspec.structs.replace(moved, port=9))
    (process.directory / "spec.json").write_text("{")
    assert watched.now() == "tcp://127.0.0.2:1", "what cannot be read says nothing"


def test_what_runs_has_its_devices_though_the_ledgers_file_is_lost(root: Path) -> None:
    first = agent_in(root)
    start(first)
    held = first.ledger.held()
    (first.procs_dir.parent / "devices.json").unlink()
    assert agent_in(root).ledger.held() == held != {}


def test_what_runs_keeps_its_devices_though_its_files_cannot_be_read(root: Path) -> None:
    first = agent_in(root)
    process = start(first)
    held = first.ledger.held()
    (process.directory / "wanted.json").write_text("{ of another version")
    assert agent_in(root).ledger.held() == held != {}
    record = process.directory / "shim.json"
    told = record.read_bytes()
    record.unlink()  # the shim was just coming up
    assert agent_in(root).ledger.held() == held
    record.write_bytes(told)


def test_what_a_killed_shim_left_behind_keeps_its_devices(root: Path) -> None:
    code = "setsid sh -c 'echo up; exec sleep 60' & wait"
    first = agent_in(root, ("sh", "-c", code, "sh"))
    process = start(first)
    eventually(lambda: "up" in process.log_path.read_text(), "the grandchild is there")
    held = first.ledger.held()
    os.kill(process.status().shim_pid, signal.SIGKILL)
    eventually(lambda: not process.is_alive(), "the shim is gone")
    second = agent_in(root)
    assert second.ledger.held() == held
    with pytest.raises(ConflictError, match="m-0: its devices are not given back"):
        second.release("m-0")
    second.forget("m-0")
    assert "m-0" in second.observe(), "else nobody could find what is left of it"
    second.stop("m-0", 5)
    second.release("m-0")
    assert second.ledger.held() == {}


def test_devices_are_not_given_back_while_their_process_lives(root: Path) -> None:
    agent = agent_in(root)
    start(agent)
    with pytest.raises(ConflictError, match="m-0: its devices are not given back"):
        agent.release("m-0")
    assert list(agent.ledger.held()) == ["m-0"]
    agent.stop("m-0", 5)
    agent.release("m-0")
    agent.release("never-was")
    assert agent.ledger.held() == {}


def test_a_command_that_cannot_run_says_why(root: Path) -> None:
    agent = agent_in(root, ("no-such-python",))
    with pytest.raises(RemoteError, match="m-0: cannot be started: no-such-python"):
        start(agent)


def test_forget_leaves_only_the_logs_and_never_a_running_process(root: Path) -> None:
    agent = agent_in(root)
    process = start(agent)
    agent.forget("m-0")
    assert "m-0" in agent.observe()
    agent.stop("m-0", 5)
    agent.forget("m-0")
    agent.forget("never-was")
    assert agent.observe() == {}
    assert process.log_path.exists()


def test_stopping_what_is_not_there(root: Path) -> None:
    assert agent_in(root).stop("m-0", 1) is None


def test_what_only_the_host_knows_is_filled_in_and_told_back_as_asked(root: Path) -> None:
    agent = agent_in(root)
    asked = msgspec.structs.replace(
        instance(),
        model="@models/big",
        engine_args={"tokenizer": "@models/t", "hf_config_path": "~/c", "n": 9},
    )
    agent.start_instance(asked, [Need("m-0", 1)])
    got = load_spec(root / "procs/m-0/spec.json", InstanceSpec)
    assert (got.bind_host, got.port_range) == ("10.0.0.1", (21100, 21999))
    assert got.model == "/models/big"
    assert got.engine_args == {"tokenizer": "/models/t", "hf_config_path": "/home/u/c", "n": 9}
    assert got.keys_path == str(root / "keys.json")
    assert got.status_path == str(root / "procs/m-0/status.json")
    assert agent.observe()["m-0"].spec == asked

    agent.start_gateway(gateway(model="~/big"))
    got = load_spec(root / "procs/gateway-0/spec.json", GatewaySpec)
    assert (got.host, got.url_host, got.pools[0].model) == ("0.0.0.0", "10.0.0.1", "/home/u/big")
    assert got.on_host == "h1"
    assert got.pools[0].serve_args == {"chat_template": "/models/t"}
    assert agent.observe()["gateway-0"].spec == gateway(model="~/big")


@pytest.mark.parametrize(
    ("host", "url_host"),
    [("0.0.0.0", "10.0.0.1"), ("::", "10.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("gw", "gw")],
)
def test_a_gateway_is_reached_where_it_listens(root: Path, host: str, url_host: str) -> None:
    agent_in(root).start_gateway(gateway(host))
    assert load_spec(root / "procs/gateway-0/spec.json", GatewaySpec).url_host == url_host


def test_a_view_travels(root: Path) -> None:
    agent = agent_in(root)
    start(agent)
    agent.start_gateway(gateway())
    view = agent.view()
    assert decode(encode(view), HostView) == view
    assert (view.host, view.address, view.platform) == ("h1", "10.0.0.1", "cpu")
    assert view.held == {"m-0": Allocation(CPU, ["cpu:0"])}
    assert set(view.processes) == {"m-0", "gateway-0"}
    assert 0 < view.memory_free_bytes < view.memory_total_bytes
    assert view.disk_free_bytes > 0
    with pytest.raises(WireError):
        decode(b"{}", HostView)


def test_gpus_are_given_once_and_looked_at_again_before(root: Path) -> None:
    busy = [False]

    def find() -> Inventory:
        used = 60000 if busy[0] else 0
        return Inventory(DeviceKind.GPU, (Device("a", "0: X", 80000, used), Device("b", "1: X")))

    agent = NodeAgent(
        root / "procs", DeviceLedger(root / "devices.json", find(), find),
        Commands(SLEEP, SLEEP), {"PATH": os.environ["PATH"]},
    )  # fmt: skip
    needs = [Need("m-0", 1), Need("m-1", 1)]
    busy[0] = True
    assert agent.start_instance(instance("m-0"), needs) == ["b"]
    assert agent.view().foreign_gpus == ["a"]
    with pytest.raises(ConflictError, match=r"m-1 needs 1 GPU\(s\), 0 of 2 are free; busy: 0: X"):
        agent.start_instance(instance("m-1"), needs)
    busy[0] = False
    assert agent.start_instance(instance("m-1"), needs) == ["a"]
    agent.stop("m-0", 5)
    agent.release("m-0")
    assert agent.start_instance(instance("m-0"), needs) == ["b"]


def test_a_look_at_the_gpus_that_hangs_holds_up_nobody_else(root: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    gpus = Inventory(DeviceKind.GPU, (Device("a", "0: X"),))

    def find() -> Inventory:
        begun.set()
        goes_on.wait(20)
        return gpus

    agent = NodeAgent(
        root / "procs", DeviceLedger(root / "devices.json", gpus, find), Commands(SLEEP, SLEEP),
        {"PATH": os.environ["PATH"]},
    )  # fmt: skip
    starting = threading.Thread(target=agent.start_instance, args=(instance(), [Need("m-0", 1)]))
    starting.start()
    try:
        assert begun.wait(10)
        assert agent.claiming.acquire(timeout=1)
        agent.claiming.release()
    finally:
        goes_on.set()
        starting.join(20)
    assert list(agent.ledger.held()) == ["m-0"]


def test_logs_are_read_by_name_and_nothing_else_is(root: Path) -> None:
    agent = agent_in(root, ("sh", "-c", "echo one; echo two; exec sleep 60", "sh"))
    start(agent)
    eventually(lambda: agent.read_log("m-0", None, 4096, 1).text == "two\n", "it is written")
    (root / "log").write_text("secret")
    for name in ("..", "../procs/m-0", "", ".", "nobody"):
        with pytest.raises(NotFoundError):
            agent.read_log(name, None, 4096, 1)
