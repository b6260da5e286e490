"""The node agent: starts, finds again, watches and stops the processes of one host.

It knows processes, their files and their devices. What should run is the head's business; that a
process outlives the agent is the shim's. Blocking throughout; call it from threads.
"""

import contextlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from llx.agent.devices import Allocation, DeviceKind, DeviceLedger, child_environment
from llx.agent.processes import Process, ProcessState, ShimRecord, attach, list_processes, spawn
from llx.errors import ConfigError, NotFoundError
from llx.log import get_log
from llx.specs import GatewaySpec, InstanceSpec, ProcessStatus, load_spec, save_spec

log = get_log(__name__)

HEAD = "head"


@dataclass(frozen=True, slots=True)
class Commands:
    """Argument vectors that start a process; the path of its spec is appended."""

    instance: tuple[str, ...]
    gateway: tuple[str, ...]

    @classmethod
    def of_python(cls, python: str) -> "Commands":
        """llx's own processes, run by a node environment's interpreter."""
        return cls((python, "-m", "llx.agent.instance"), (python, "-m", "llx.gateway.main"))


@dataclass(frozen=True, slots=True)
class Observed:
    """One process as its files and ``/proc`` show it at this moment.

    `said` is its own status, None before its first word.
    """

    name: str
    spec: InstanceSpec | GatewaySpec
    record: ShimRecord
    said: ProcessStatus | None

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.record.state is ProcessState.RUNNING


@dataclass(frozen=True, slots=True)
class NodeAgent:
    """The processes of one cluster on this host; each in a directory of `procs_dir`.

    Args:
        procs_dir: Where their files lie.
        ledger: Who holds which device.
        commands: How to start them.
        environment: What every child inherits.
        kv_cache_gib: Size of an instance's KV cache where it lies in main memory.
        shim_python: Interpreter of the shims.
    """

    procs_dir: Path
    ledger: DeviceLedger
    commands: Commands
    environment: Mapping[str, str]
    kv_cache_gib: int = 1
    shim_python: str = sys.executable
    claiming: threading.Lock = field(default_factory=threading.Lock)
    """Held from looking at the ledger to claiming, by whoever plans devices."""

    def __post_init__(self) -> None:
        running = [name for name, each in self.observe().items() if each.is_running]
        self.ledger.retain(running)
        if running:
            log.info("node.adopted", processes=",".join(running))

    def observe(self) -> dict[str, Observed]:
        """Every process that was started and not forgotten, by name; the head is left out."""
        found: dict[str, Observed] = {}
        for process in list_processes(self.procs_dir):
            spec = _read_process_spec(process.directory)
            if process.name == HEAD or spec is None:
                continue
            try:
                record = process.status()
            except NotFoundError:
                continue  # forgotten in between
            said = _read_status(process.directory)
            found[process.name] = Observed(process.name, spec, record, said)
        return found

    def start_instance(self, spec: InstanceSpec, allocation: Allocation) -> Process:
        """Claim the devices and start the instance.

        Raises:
            ConflictError: It runs already, or a device is held by another.
            RemoteError: It cannot be started; says why.
        """
        self.ledger.claim(spec.name, allocation)
        environment = child_environment(self.environment, allocation, self.kv_cache_gib)
        return self._start(self.commands.instance, spec, environment)

    def start_gateway(self, spec: GatewaySpec) -> Process:
        """Start a gateway; it computes on no device, whatever the instances use.

        Raises:
            ConflictError: It runs already.
            RemoteError: It cannot be started; says why.
        """
        environment = child_environment(self.environment, Allocation(DeviceKind.CPU, []))
        environment["CUDA_VISIBLE_DEVICES"] = ""
        return self._start(self.commands.gateway, spec, environment)

    def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        """Stop a process: TERM, KILL after `grace_s`. None if there is none; ended is no error."""
        process = attach(self.procs_dir / name)
        return None if process is None else process.stop(grace_s)

    def release(self, name: str) -> None:
        """Give the devices of an instance back."""
        self.ledger.release(name)

    def forget(self, name: str) -> None:
        """Forget a process that has ended, but for its logs."""
        process = attach(self.procs_dir / name)
        if process is None or process.is_alive():
            return
        for file in ("shim.json", "status.json"):
            (process.directory / file).unlink(missing_ok=True)

    def _start(
        self,
        command: tuple[str, ...],
        spec: InstanceSpec | GatewaySpec,
        environment: dict[str, str],
    ) -> Process:
        directory = self.procs_dir / spec.name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        process = attach(directory)
        if process is None or not process.is_alive():
            (directory / "status.json").unlink(missing_ok=True)  # of the run before
            save_spec(directory / "spec.json", spec)
        argv = [*command, str(directory / "spec.json")]
        started = spawn(directory, argv, environment, python=self.shim_python)
        log.info("process.started", process=spec.name, pid=started.status().child_pid)
        return started


def status_path(procs_dir: Path, name: str) -> Path:
    """Where the process of that name writes its status."""
    return procs_dir / name / "status.json"


def _read_process_spec(directory: Path) -> InstanceSpec | GatewaySpec | None:
    try:
        data = (directory / "spec.json").read_bytes()
    except OSError:
        return None
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(data, type=InstanceSpec)
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(data, type=GatewaySpec)
    return None


def _read_status(directory: Path) -> ProcessStatus | None:
    try:
        return load_spec(directory / "status.json", ProcessStatus)
    except ConfigError:
        return None
