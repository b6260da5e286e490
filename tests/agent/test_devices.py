"""Devices: what nvidia-smi says, who gets what, the ledger and its refusals."""

import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from llx.agent.devices import (
    Allocation,
    Device,
    DeviceKind,
    DeviceLedger,
    Inventory,
    Need,
    child_environment,
    find_cores,
    find_gpus,
    plan,
    run_query,
    shortage,
)
from llx.errors import ConfigError, ConflictError, HostError

SMI = """\
0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 4, 37
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 60000, 0
2, GPU-cccc, "NVIDIA GB10, integrated", [N/A], [N/A], [N/A]
"""
GPU, CPU = DeviceKind.GPU, DeviceKind.CPU


def gpus(*used_mib: int) -> Inventory:
    devices = (Device(f"GPU-{i}", f"{i}: H100", 80000, used) for i, used in enumerate(used_mib))
    return Inventory(GPU, tuple(devices))


def cores(count: int) -> Inventory:
    return Inventory(CPU, tuple(Device(f"cpu:{i}", f"core {i}") for i in range(count)))


def needs(count: int, num_gpus: int = 1) -> list[Need]:
    return [Need(f"m-{i}", num_gpus) for i in range(count)]


def test_gpus_are_read_from_nvidia_smi() -> None:
    asked = []
    found = find_gpus(lambda command: asked.append(command) or SMI)
    assert asked[0][0] == "nvidia-smi"
    assert [(each.id, each.is_busy) for each in found.devices] == [
        ("GPU-aaaa", False),
        ("GPU-bbbb", True),
        ("GPU-cccc", False),
    ]
    assert [each.use_percent for each in found.devices] == [37, 0, None]
    assert found.devices[1].label == "1: NVIDIA H100 80GB HBM3"


def test_strange_words_of_nvidia_smi_are_shown() -> None:
    with pytest.raises(HostError, match="unknown form") as caught:
        find_gpus(lambda _: "No devices were found\n")
    assert "No devices" in caught.value.detail


@pytest.mark.parametrize("command", [["no-such-smi"], ["false"]])
def test_a_query_that_fails_names_the_command(command: list[str]) -> None:
    with pytest.raises(HostError, match=command[0]):
        run_query(command)


class Unkillable(subprocess.Popen[str]):
    """As a process whose driver hangs."""

    def kill(self) -> None: ...


def test_a_query_that_cannot_be_killed_is_left_and_none_is_begun_beside_it() -> None:
    begun = time.monotonic()
    with pytest.raises(HostError, match=r"sleep: no answer in 0\.05 s"):
        run_query(["sleep", "60"], 0.05, Unkillable)
    try:
        with pytest.raises(
            HostError, match=r"true: hangs and cannot be killed \(pid \d+\)"
        ) as hung:
            run_query(["true"])
        assert time.monotonic() - begun < 20
    finally:
        os.kill(int(str(hung.value).partition("pid ")[2].partition(")")[0]), signal.SIGKILL)
    for _ in range(100):
        with contextlib.suppress(HostError):
            assert run_query(["echo", "fine"]) == "fine\n"
            return
        time.sleep(0.05)
    pytest.fail("no query once the hanging one is gone")


def test_a_query_that_takes_too_long_is_killed() -> None:
    with pytest.raises(HostError, match="no answer"):
        run_query(["sleep", "60"], 0.05)
    assert run_query(["echo", "fine"]) == "fine\n"


def test_cores_are_those_this_process_may_use() -> None:
    assert len(find_cores().devices) == len(os.sched_getaffinity(0))


def test_gpus_are_given_in_order_and_busy_or_held_ones_left_out() -> None:
    held = {"old": Allocation(GPU, ["GPU-0"])}
    found = plan(gpus(0, 0, 50000, 0), held, [Need("old", 1), *needs(2)])
    assert {name: each.devices for name, each in found.items()} == {
        "m-0": ["GPU-1"],
        "m-1": ["GPU-3"],
    }


def test_whom_the_gpus_do_not_suffice_for_is_left_out_with_a_reason() -> None:
    inventory = gpus(0, 50000)
    found = plan(inventory, {}, needs(2))
    assert list(found) == ["m-0"]
    error = shortage(inventory, found, needs(2)[1])
    assert "m-1 needs 1 GPU(s), 0 of 2 are free; busy: 1: H100" in str(error)


def test_an_engine_without_a_gpu_gets_none() -> None:
    assert plan(gpus(), {}, needs(1, num_gpus=0))["m-0"].devices == []


def test_tensor_parallel_gets_several() -> None:
    assert plan(gpus(0, 0, 0), {}, needs(1, num_gpus=2))["m-0"].devices == ["GPU-0", "GPU-1"]


@pytest.mark.parametrize(
    ("num_cores", "count", "each", "expected", "is_shared"),
    [
        (2, 2, None, [["cpu:0"], ["cpu:1"]], False),
        (5, 2, None, [["cpu:0", "cpu:1"], ["cpu:2", "cpu:3"]], False),
        (2, 3, None, [["cpu:0"], ["cpu:1"], ["cpu:0"]], True),
        (4, 2, 1, [["cpu:0"], ["cpu:1"]], False),
        (2, 2, 2, [["cpu:0", "cpu:1"], ["cpu:0", "cpu:1"]], True),
        (2, 1, 64, [["cpu:0", "cpu:1"]], False),
    ],
)
def test_cores_are_divided_or_shared(
    num_cores: int, count: int, each: int | None, expected: list[list[str]], is_shared: bool
) -> None:
    found = plan(cores(num_cores), {}, needs(count), each)
    assert [allocation.devices for allocation in found.values()] == expected
    assert {allocation.is_shared for allocation in found.values()} == {is_shared}


def test_a_core_that_is_held_is_not_given_again_while_others_are_free() -> None:
    held = {"m-1": Allocation(CPU, ["cpu:0"])}
    assert plan(cores(2), held, needs(2)) == {"m-0": Allocation(CPU, ["cpu:1"])}


def test_cores_are_shared_free_ones_first_those_held_alone_last() -> None:
    held = {
        "alone": Allocation(CPU, ["cpu:0"]),
        "x": Allocation(CPU, ["cpu:1", "cpu:2"], is_shared=True),
        "y": Allocation(CPU, ["cpu:1"], is_shared=True),
    }
    found = plan(cores(4), held, needs(4), 1)
    assert [each.devices for each in found.values()] == [["cpu:3"], ["cpu:2"], ["cpu:1"], ["cpu:0"]]
    assert all(each.is_shared for each in found.values())


def test_who_is_started_one_after_the_other_spreads_over_the_cores() -> None:
    held: dict[str, Allocation] = {}
    for need in needs(3):
        held[need.name] = plan(cores(4), held, needs(3), 2)[need.name]
    assert [each.devices for each in held.values()] == [
        ["cpu:0", "cpu:1"],
        ["cpu:2", "cpu:3"],
        ["cpu:0", "cpu:1"],
    ]


def test_the_ledger_remembers_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    ledger = DeviceLedger(path, gpus(0, 0))
    ledger.claim("a", Allocation(GPU, ["GPU-0"]))
    ledger.claim("a", Allocation(GPU, ["GPU-0"]))
    with pytest.raises(ConflictError, match="b: GPU-0 is held by a"):
        ledger.claim("b", Allocation(GPU, ["GPU-0", "GPU-1"]))
    again = DeviceLedger(path, gpus(70000, 0))
    assert again.held() == {"a": Allocation(GPU, ["GPU-0"])}
    again.claim("a", Allocation(GPU, ["GPU-0"]))  # it is a's own memory that is in use
    again.release("a")
    with pytest.raises(ConflictError, match=r"in use by somebody else \(70000 of 80000 MiB\)"):
        again.claim("b", Allocation(GPU, ["GPU-0"]))
    with pytest.raises(ConfigError, match="no device GPU-9"):
        again.claim("b", Allocation(GPU, ["GPU-9"]))
    assert again.held() == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_shared_cores_may_be_held_by_several_exclusive_ones_not(tmp_path: Path) -> None:
    ledger = DeviceLedger(tmp_path / "devices.json", cores(1))
    ledger.claim("a", Allocation(CPU, ["cpu:0"], is_shared=True))
    ledger.claim("b", Allocation(CPU, ["cpu:0"], is_shared=True))
    with pytest.raises(ConflictError):
        ledger.claim("c", Allocation(CPU, ["cpu:0"]))


def test_retain_takes_back_what_nobody_runs_on(tmp_path: Path) -> None:
    ledger = DeviceLedger(tmp_path / "devices.json", cores(2))
    ledger.claim("a", Allocation(CPU, ["cpu:0"]))
    ledger.claim("b", Allocation(CPU, ["cpu:1"]))
    ledger.retain(["b", "c"])
    assert list(ledger.held()) == ["b"]


def test_a_damaged_ledger_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text("{ not json")
    ledger = DeviceLedger(path, cores(1))
    assert ledger.held() == {}
    ledger.claim("a", Allocation(CPU, ["cpu:0"]))
    assert list(ledger.held()) == ["a"]


def test_of_many_claims_at_once_one_wins(tmp_path: Path) -> None:
    won = []

    def claim(name: str) -> None:
        try:
            DeviceLedger(tmp_path / "d.json", gpus(0)).claim(name, Allocation(GPU, ["GPU-0"]))
            won.append(name)
        except ConflictError:
            pass

    threads = [threading.Thread(target=claim, args=(f"m-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_the_environment_of_a_gpu_instance_names_its_gpus_by_uuid() -> None:
    base = {"HF_HOME": "/hf", "CUDA_VISIBLE_DEVICES": "7"}
    made = child_environment(base, Allocation(GPU, ["GPU-a", "GPU-b"]))
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert made["HF_HOME"] == "/hf"
    assert made["VLLM_NO_USAGE_STATS"] == made["DO_NOT_TRACK"] == "1"
    assert made["TOKENIZERS_PARALLELISM"] == "false"
    assert made["GLOO_SOCKET_IFNAME"] == "lo"
    assert made["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert made["SPT_NOENV"] == "1", "else workers that set their titles hide the shim's mark"
    assert "OMP_NUM_THREADS" not in made
    assert base["CUDA_VISIBLE_DEVICES"] == "7"


def test_the_environment_of_a_cpu_instance_bounds_threads_and_cache() -> None:
    made = child_environment({}, Allocation(CPU, ["cpu:0", "cpu:1"]), kv_cache_gib=3)
    assert made["OMP_NUM_THREADS"] == "2"
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert made["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert made["VLLM_TARGET_DEVICE"] == "cpu"
    assert child_environment({}, Allocation(CPU, []))["OMP_NUM_THREADS"] == "1"


def test_what_would_unpickle_from_a_socket_is_never_passed_on():
    base = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "HF_HOME": "/models"}
    environment = child_environment(base, Allocation(CPU, ["cpu:0"]))
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in environment
    assert environment["HF_HOME"] == "/models"
