"""What instances and hosts use, as their status has it: of what the agent has measured."""

import pytest

from llx.agent.cpu_use import CpuUse
from llx.agent.devices import Allocation, Device, DeviceKind, Inventory
from llx.agent.host_view import HostView, decode, encode
from llx.api import HostState
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.status import host_status, unit_use

USE = CpuUse(1.5, {"m-0": 0.75, "m-1": 0.0, "gateway-0": 0.25})


def host(*percents: int | None, state: HostState = HostState.READY, use: CpuUse = USE) -> HostUnit:
    gpus = tuple(
        Device(f"g{number}", f"{number}: X", 80000, 60000, each)
        for number, each in enumerate(percents)
    )
    view = HostView(
        host="h", address="a", platform="cuda", inventory=Inventory(DeviceKind.GPU, gpus),
        held={
            "m-0": Allocation(DeviceKind.GPU, ["g0", "g1"]),
            "m-1": Allocation(DeviceKind.GPU, ["g2"]),
        },
        processes={}, cpu_count=4, memory_total_bytes=1, memory_free_bytes=1, disk_free_bytes=1,
        llx_version="1", vllm_version="", cpu_use=use,
    )  # fmt: skip
    found = HostUnit("h", None, 100.0, state=state)  # type: ignore[arg-type]
    found.view = decode(encode(view), HostView)
    return found


@pytest.mark.parametrize(
    ("of", "name", "expected"),
    [
        (host(80, 61, None), "m-0", {"cores_used": 0.75, "gpu_percent": 70.5}),
        (host(80, None, None), "m-0", {"cores_used": 0.75, "gpu_percent": 80.0}),
        (host(0, 0, None), "m-0", {"cores_used": 0.75, "gpu_percent": 0.0}),
        (host(80, 61, None), "m-1", {"cores_used": 0.0}),
        (host(80, 61, None), "gateway-0", {"cores_used": 0.25}),
        (host(80, 61, 5), "m-2", {"cores_used": None}),
        (host(80, 61, 5, use=CpuUse()), "m-0", {"cores_used": None}),
        (host(80, state=HostState.AGENT_AWAY), "m-0", {"cores_used": None}),
        (HostUnit("h", None, 100.0), "m-0", {"cores_used": None}),  # type: ignore[arg-type]
        (None, "m-0", {"cores_used": None}),
    ],
)
def test_use_of_a_unit(of: HostUnit | None, name: str, expected: dict[str, float]) -> None:
    assert unit_use(of, name) == expected


def test_use_of_a_host() -> None:
    found = host_status(host(80, None), [], 100.0)
    assert (found.cores_used, [each.use_percent for each in found.gpus]) == (1.5, [80, None])
    away = host_status(host(80, None, state=HostState.LOST), [], 100.0)
    assert (away.cores_used, [each.use_percent for each in away.gpus]) == (None, [None, None])
