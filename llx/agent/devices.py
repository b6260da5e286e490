"""The devices of a host and who holds them: GPUs by UUID, or CPU cores.

`Inventory` says what is there, `plan` (pure) who should get what, `DeviceLedger` who holds what and
refuses conflicts. The ledger is a small file; it is rebuilt from the processes that are there. A
GPU that somebody else uses is shown, not taken.
"""

import contextlib
import csv
import dataclasses
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from llx.agent.shim import KEEPS_MARK
from llx.choices import Platform
from llx.errors import ConfigError, ConflictError, HostError
from llx.log import get_log
from llx.specs import save_spec

log = get_log(__name__)

_QUERY = ("index", "uuid", "name", "memory.total", "memory.used", "utilization.gpu")
_QUERY_TIMEOUT_S = 20.0
_KILLED_S = 1.0
_LOOK_EVERY_S = 10.0
"""From one nvidia-smi to the next."""
_BUSY_MIB = 1024
"""A GPU with more memory in use than this, before llx uses it, is somebody else's."""


class DeviceKind(StrEnum):
    """What an engine computes on."""

    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or core. `id` is the GPU's UUID, or ``cpu:<core>``.

    `use_percent`: the share of the last second or so in which a kernel ran; None: nobody says.
    """

    id: str
    label: str
    memory_mib: int = 0
    used_mib: int = 0
    use_percent: int | None = None

    @property
    def is_busy(self) -> bool:
        """Whether somebody holds much of its memory."""
        return self.used_mib > _BUSY_MIB


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of this host that engines may use."""

    kind: DeviceKind
    devices: tuple[Device, ...]


class Allocation(msgspec.Struct, frozen=True):
    """Devices of one instance. Cores may be shared: then others may hold them, too."""

    kind: DeviceKind
    devices: list[str]
    is_shared: bool = False


class _LedgerFile(msgspec.Struct, frozen=True):
    allocations: dict[str, Allocation] = {}


@dataclass(frozen=True, slots=True)
class Need:
    """What an instance asks for. `num_gpus` is 0 for an engine that computes on none."""

    name: str
    num_gpus: int


Query = Callable[[Sequence[str]], str]


def run_query(
    command: Sequence[str],
    timeout_s: float = _QUERY_TIMEOUT_S,
    start: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen,
) -> str:
    """The command's output.

    A driver that hangs lets nobody kill who waits for it. Such a query is left behind, and while it
    is there no further one is begun.

    Raises:
        HostError: It is missing, fails, or takes too long.
    """
    _hanging[:] = [each for each in _hanging if each.poll() is None]
    if _hanging:
        pids = ", ".join(str(each.pid) for each in _hanging)
        raise _failed(command, f"hangs and cannot be killed (pid {pids})")
    try:
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise _failed(command, str(error)) from None
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        raise _failed(command, f"no answer in {timeout_s:g} s") from None
    if process.returncode != 0:
        raise _failed(command, f"exit code {process.returncode}", stderr)
    return stdout


_hanging: "list[subprocess.Popen[str]]" = []
"""Queries of this process that could not be killed."""


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_KILLED_S)
    except subprocess.TimeoutExpired:
        _hanging.append(process)


def _failed(command: Sequence[str], why: str, stderr: str = "") -> HostError:
    return HostError(
        f"{command[0]}: {why}", host="localhost", step="list GPUs", stderr_tail=stderr[-2000:]
    )


def find_gpus(query: Query = run_query) -> Inventory:
    """The GPUs that nvidia-smi lists.

    Raises:
        HostError: nvidia-smi cannot be run or says something else.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    devices = []
    text = query(command)
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            index, uuid, name, total, used, use = row
            label = f"{index}: {name}"
            devices.append(Device(uuid, label, _mib(total), _mib(used), _percent(use)))
        except ValueError:
            raise HostError(
                "nvidia-smi answers in an unknown form",
                host="localhost",
                step="list GPUs",
                stderr_tail=text[-2000:],
            ) from None
    return Inventory(DeviceKind.GPU, tuple(devices))


def find_cores() -> Inventory:
    """The cores that this process may run on."""
    cores = sorted(os.sched_getaffinity(0))
    return Inventory(DeviceKind.CPU, tuple(Device(f"cpu:{core}", f"core {core}") for core in cores))


def find_devices(platform: Platform) -> Inventory:
    """What engines of that platform compute on here.

    Raises:
        HostError: nvidia-smi cannot be run or says something else.
        ConfigError: The platform was not resolved.
    """
    match platform:
        case Platform.CUDA:
            return find_gpus()
        case Platform.CPU:
            return find_cores()
        case Platform.AUTO:
            raise ConfigError("a platform is needed: cpu or cuda")


def plan(
    inventory: Inventory,
    held: Mapping[str, Allocation],
    needs: Sequence[Need],
    cores_each: int | None = None,
) -> dict[str, Allocation]:
    """Devices for every instance of `needs` that holds none yet; what is held stays.

    On GPUs each gets `num_gpus` free ones, in order of their listing; whoever they do not suffice
    for is left out (`shortage` says why). On cores each gets an equal part of all (or
    `cores_each`); when there are not enough they share, round robin.
    """
    match inventory.kind:
        case DeviceKind.GPU:
            return _plan_gpus(inventory, held, needs)
        case DeviceKind.CPU:
            return _plan_cores(inventory, held, needs, cores_each)


def shortage(inventory: Inventory, held: Mapping[str, Allocation], need: Need) -> ConflictError:
    """Why `plan` left this instance out."""
    busy = [device.label for device in inventory.devices if device.is_busy]
    used = f"; busy: {', '.join(busy)}" if busy else ""
    return ConflictError(
        f"{need.name} needs {need.num_gpus} GPU(s), {len(_free_gpus(inventory, held))} of"
        f" {len(inventory.devices)} are free{used}",
        remedy="fewer instances, a smaller tensor_parallel, or more GPUs",
    )


_NEVER_PASSED = frozenset({"VLLM_ALLOW_INSECURE_SERIALIZATION"})
"""With it vLLM would unpickle what arrives on a socket."""


def child_environment(
    base: Mapping[str, str], allocation: Allocation, kv_cache_gib: int = 1
) -> dict[str, str]:
    """The environment of a process on these devices: `base` and what must be as it is here.

    `HF_*`, proxies, library paths and the like come through from `base`.
    """
    kept = {key: value for key, value in base.items() if key not in _NEVER_PASSED}
    environment = {
        **kept,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONUNBUFFERED": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
        # PyTorch's Gloo listens, a port for each group, and asks nobody who he is. All ranks of an
        # instance are on one host.
        "GLOO_SOCKET_IFNAME": "lo",
        **KEEPS_MARK,
    }
    match allocation.kind:
        case DeviceKind.GPU:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(allocation.devices)
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        case DeviceKind.CPU:
            threads = max(1, len(allocation.devices))
            environment |= {
                "VLLM_TARGET_DEVICE": "cpu",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
                "VLLM_CPU_CI_ENV": "1",
                "OMP_NUM_THREADS": str(threads),
            }
    return environment


class DeviceLedger:
    """Who holds which device, on disk; safe to use from several processes.

    Args:
        path: The file; made when something is first claimed.
        inventory: The devices there are.
        find: Looks at them again; None: they do not change.
    """

    def __init__(
        self, path: Path, inventory: Inventory, find: Callable[[], Inventory] | None = None
    ) -> None:
        self._path = path
        self._find = find
        self._looked_at = time.monotonic()
        self._looking: threading.Thread | None = None
        self.inventory = inventory

    def look_again(self) -> None:
        """Bring `inventory` up to date: whose GPUs somebody uses changes with time."""
        if self._find is None:
            return
        try:
            self.inventory = self._find()
        except HostError as error:
            log.warning("devices.not_listed", error=error)
            kept = (dataclasses.replace(each, use_percent=None) for each in self.inventory.devices)
            self.inventory = dataclasses.replace(self.inventory, devices=tuple(kept))
        self._looked_at = time.monotonic()

    def look_again_soon(self) -> None:
        """`look_again` in the background, unless that was done lately."""
        if self._find is None or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(target=self.look_again, daemon=True)
            self._looking.start()

    def held(self) -> dict[str, Allocation]:
        """Allocation by instance name."""
        with self._locked():
            return self._read()

    def claim(self, name: str, allocation: Allocation) -> None:
        """Give devices to an instance; claiming again what it holds changes nothing.

        Raises:
            ConflictError: Another instance holds one of them, or somebody outside llx uses it.
            ConfigError: A device is not here.
        """
        with self._locked():
            held = self._read()
            if held.get(name) == allocation:
                return
            self._check(name, allocation, held)
            held[name] = allocation
            self._write(held)

    def enter(self, name: str, allocation: Allocation) -> None:
        """Write down what a running instance has, whatever the file says; no device is refused."""
        with self._locked():
            held = self._read()
            if name not in held:
                self._write({**held, name: allocation})

    def release(self, name: str) -> None:
        """Take back what an instance holds, if anything."""
        with self._locked():
            held = self._read()
            if held.pop(name, None) is not None:
                self._write(held)

    def retain(self, names: Collection[str]) -> None:
        """Take back whatever is held by an instance that is not in `names`."""
        with self._locked():
            held = self._read()
            kept = {name: each for name, each in held.items() if name in names}
            if kept != held:
                self._write(kept)

    def _check(self, name: str, wanted: Allocation, held: Mapping[str, Allocation]) -> None:
        known = {device.id: device for device in self.inventory.devices}
        for each in wanted.devices:
            device = known.get(each)
            if device is None:
                raise ConfigError(f"{name}: there is no device {each} on this host")
            if wanted.kind is DeviceKind.GPU and device.is_busy:
                raise ConflictError(
                    f"{name}: GPU {device.label} is in use by somebody else"
                    f" ({device.used_mib} of {device.memory_mib} MiB)",
                    remedy="see `nvidia-smi`; stop that process, or use fewer instances",
                )
        for other, theirs in held.items():
            overlap = sorted(set(theirs.devices) & set(wanted.devices))
            if other != name and overlap and not wanted.is_shared:
                raise ConflictError(f"{name}: {', '.join(overlap)} is held by {other}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[str, Allocation]:
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_LedgerFile)
        except (FileNotFoundError, msgspec.DecodeError):
            return {}  # it is rebuilt from the processes that are there
        return dict(file.allocations)

    def _write(self, held: dict[str, Allocation]) -> None:
        save_spec(self._path, _LedgerFile(held))


def _free_gpus(inventory: Inventory, held: Mapping[str, Allocation]) -> list[Device]:
    taken = {each for allocation in held.values() for each in allocation.devices}
    return [each for each in inventory.devices if each.id not in taken and not each.is_busy]


def _plan_gpus(
    inventory: Inventory, held: Mapping[str, Allocation], needs: Sequence[Need]
) -> dict[str, Allocation]:
    free = _free_gpus(inventory, held)
    found: dict[str, Allocation] = {}
    for need in needs:
        if need.name in held or need.num_gpus > len(free):
            continue
        mine, free = free[: need.num_gpus], free[need.num_gpus :]
        found[need.name] = Allocation(DeviceKind.GPU, [each.id for each in mine])
    return found


def _plan_cores(
    inventory: Inventory,
    held: Mapping[str, Allocation],
    needs: Sequence[Need],
    cores_each: int | None,
) -> dict[str, Allocation]:
    cores = [each.id for each in inventory.devices]
    names = [need.name for need in needs if need.name not in held]
    count = min(cores_each or max(1, len(cores) // max(1, len(needs))), len(cores))
    taken = {each for allocation in held.values() for each in allocation.devices}
    free = [each for each in cores if each not in taken]
    is_shared = count * len(names) > len(free)
    source = _least_held_first(cores, held) if is_shared else free
    return {
        name: Allocation(
            DeviceKind.CPU,
            [source[(index * count + k) % len(source)] for k in range(count)],
            is_shared=is_shared,
        )
        for index, name in enumerate(names)
    }


def _least_held_first(cores: Sequence[str], held: Mapping[str, Allocation]) -> list[str]:
    """Free ones, then those that are shared already, then those that somebody counts on alone."""

    def burden(core: str) -> tuple[bool, int]:
        holders = [each for each in held.values() if core in each.devices]
        return any(not each.is_shared for each in holders), len(holders)

    return sorted(cores, key=burden)


def _mib(text: str) -> int:
    """A figure of nvidia-smi; ``[N/A]`` on machines that share memory with the CPU."""
    return 0 if text.startswith("[") else int(text)


def _percent(text: str) -> int | None:
    """Likewise; ``[N/A]`` of a GPU that is cut into parts."""
    return None if text.startswith("[") else int(text)
