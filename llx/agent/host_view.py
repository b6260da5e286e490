"""What a node agent tells of its host, in a form that travels.

Between the head and an agent in another process all values go as JSON bytes: `encode` and `decode`,
for `HostView`, specs, needs, shim records and parts of logs alike.
"""

import time
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from llx.agent.cpu_use import CpuUse
from llx.agent.devices import Allocation, Device, DeviceKind, Inventory
from llx.agent.processes import ProcessState, ShimRecord
from llx.errors import WireError
from llx.specs import GatewaySpec, InstanceSpec, ProcessStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observed:
    """One process as its files and ``/proc`` show it at this moment.

    `spec` is as the head asked for it, not as the process got it (`llx.agent.place`). `said` is its
    own status, None before its first word.
    """

    name: str
    spec: InstanceSpec | GatewaySpec
    record: ShimRecord
    said: ProcessStatus | None

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.record.state is ProcessState.RUNNING


class HostView(msgspec.Struct, frozen=True):
    """One host at one moment.

    Attributes:
        host: Its name in the cluster.
        address: Its IP address, as the other hosts reach it.
        platform: ``cpu`` or ``cuda``.
        inventory: What engines may compute on there.
        held: Who holds which device.
        processes: Instances and gateways that were started and not forgotten, by name.
        cpu_count: Cores that llx may use.
        memory_total_bytes: Main memory.
        memory_free_bytes: What of it is available.
        disk_free_bytes: On the file system of the cluster's directory.
        llx_version: Of the node environment.
        vllm_version: Likewise; empty if there is none.
        cpu_use: How much of the CPU is in use.
        at: Unix seconds, by that host's clock.
    """

    host: str
    address: str
    platform: str
    inventory: Inventory
    held: dict[str, Allocation]
    processes: dict[str, Observed]
    cpu_count: int
    memory_total_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    llx_version: str
    vllm_version: str
    cpu_use: CpuUse = CpuUse()
    at: float = msgspec.field(default_factory=time.time)

    @property
    def gpus(self) -> list[Device]:
        """All GPUs."""
        return list(self.inventory.devices) if self.inventory.kind is DeviceKind.GPU else []

    @property
    def foreign_gpus(self) -> list[str]:
        """GPUs that somebody outside llx uses, by id."""
        ours = {each for allocation in self.held.values() for each in allocation.devices}
        return [each.id for each in self.gpus if each.is_busy and each.id not in ours]


def encode(value: object) -> bytes:
    """`value` as JSON."""
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """The value of that type in `data`; `kind` may be any type that msgspec knows.

    Raises:
        WireError: It is none.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise WireError(
            f"not a {kind}: {error}", remedy="run the same llx version on every host"
        ) from None
