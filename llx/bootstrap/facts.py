"""What is true of this machine now: gathered by reading, nothing is changed.

Preflight (pure) compares these facts with what a cluster.yaml asks for.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from llx.agent.devices import Device, find_gpus
from llx.bootstrap.node_probe import inspect_python, verify
from llx.errors import HostError, InstallError
from llx.settings import ClusterSettings

_TINY_MODEL_BYTES = 6 << 20
_INSTALLED_MARKS = ("llx-node.json", "install.lock")


@dataclass(frozen=True, slots=True)
class PortFact:
    """What stands against listening on a port; an empty `problem`: nothing."""

    problem: str = ""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class ModelFact:
    """What lies at a model's path."""

    is_directory: bool
    has_config: bool
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeFact:
    """The node environment. `problem`: why the one that must be used cannot be."""

    is_installed: bool
    place: Path
    problem: InstallError | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """This machine, as far as `llx up` cares."""

    hostname: str
    gpus: tuple[Device, ...]
    cpu_count: int
    memory_available_bytes: int
    disk_free_bytes: int
    node: NodeFact
    ports: Mapping[tuple[str, int], PortFact] = field(default_factory=dict)
    models: Mapping[str, ModelFact] = field(default_factory=dict)
    hub_lookalikes: frozenset[str] = frozenset()
    """Models given as Hugging Face ids that are also directories here."""


@dataclass(frozen=True, slots=True)
class VllmArguments:
    """Names of vLLM's own arguments, from the pinned version."""

    engine: frozenset[str]
    serve: frozenset[str]


def load_vllm_arguments() -> VllmArguments:
    """The lists shipped with llx (``vllm_args.json``, made from the pinned vLLM).

    Raises:
        InstallError: The installation of llx is damaged.
    """
    try:
        data = json.loads((files("llx") / "vllm_args.json").read_text(encoding="utf-8"))
        return VllmArguments(frozenset(data["engine"]), frozenset(data["serve"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InstallError(
            f"llx's list of vLLM arguments (vllm_args.json) cannot be used: {error}",
            remedy="install llx again",
        ) from None


def gather(
    settings: ClusterSettings,
    *,
    node: NodeFact,
    gpus: tuple[Device, ...],
    ignored_ports: frozenset[int] = frozenset(),
) -> Facts:
    """Look at this machine with the eyes of `settings`.

    Args:
        settings: What is going to be started.
        node: From `node_fact`.
        gpus: From `list_gpus`.
        ignored_ports: Ports that this cluster itself holds.
    """
    wanted = {(settings.gateway.host, settings.gateway.port), ("127.0.0.1", settings.control.port)}
    paths = {str(path): path for each in settings.models if (path := each.model_path) is not None}
    return Facts(
        hostname=socket.gethostname(),
        gpus=gpus,
        cpu_count=len(os.sched_getaffinity(0)),
        memory_available_bytes=_memory_available(),
        disk_free_bytes=shutil.disk_usage(_existing(node.place)).free,
        node=node,
        ports={(h, p): probe_port(h, p) for h, p in wanted if p and p not in ignored_ports},
        models={name: _model_fact(path) for name, path in paths.items()},
        hub_lookalikes=hub_lookalikes(settings),
    )


def hub_lookalikes(settings: ClusterSettings) -> frozenset[str]:
    """Models that read as Hugging Face ids and are directories here."""
    return frozenset(
        each.model
        for each in settings.models
        if each.model_path is None and Path(each.model).is_dir()
    )


def with_tiny_model(found: Facts, place: Path) -> Facts:
    """`found`, counting on the tiny model to be made before it is needed."""
    fact = ModelFact(is_directory=True, has_config=True, weights_bytes=_TINY_MODEL_BYTES)
    return replace(found, models={**found.models, str(place): fact})


def node_fact(python: Path | None, prefix: Path) -> NodeFact:
    """Look at the Python that must be used as it is, or at the place of llx's own environment."""
    if python is not None:
        try:
            verify(inspect_python(python))
        except InstallError as error:
            return NodeFact(is_installed=False, place=python, problem=error)
        return NodeFact(is_installed=True, place=python)
    has_marker, has_lock = ((prefix / mark).exists() for mark in _INSTALLED_MARKS)
    if has_marker or has_lock or not prefix.exists():
        return NodeFact(is_installed=has_marker, place=prefix)
    try:
        is_foreign = not prefix.is_dir() or any(prefix.iterdir())
    except OSError as error:
        is_foreign = True
        problem = InstallError(f"{prefix}: {error.strerror}", remedy="set runtime.prefix")
    else:
        problem = InstallError(
            f"{prefix} is not empty and was not made by llx",
            remedy="set runtime.prefix to a new or an empty directory",
        )
    return NodeFact(is_installed=False, place=prefix, problem=problem if is_foreign else None)


def list_gpus() -> tuple[Device, ...]:
    """The GPUs that the NVIDIA driver shows; none when it cannot be asked."""
    try:
        return find_gpus().devices
    except HostError:
        return ()


def probe_port(host: str, port: int) -> PortFact:
    """Whether `host`:`port` can be listened on, and who holds it if not."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return PortFact(f"address {host} cannot be resolved ({error.strerror or error})")
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return PortFact(f"port {port} is taken", port_holder(port))
            return PortFact(f"cannot listen on {host}:{port}: {error.strerror}")
    return PortFact()


def port_holder(port: int) -> str:
    """``name (pid N)`` of the process that listens on a TCP port; "" when it cannot be told."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not wanted:
        return ""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if any(_target(link) in wanted for link in (directory / "fd").iterdir()):
                name = (directory / "comm").read_text().strip()
                return f"{name} (pid {directory.name})"
    return ""


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed meanwhile


def _listening_inodes(port: int) -> list[str]:
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found


def _memory_available() -> int:
    """What can be had: the machine's, or the control group's if that is less."""
    available = 1 << 62
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.strip().isdigit() and used.strip().isdigit():
        cache = next(
            (
                int(line.split()[1])
                for line in _read("/sys/fs/cgroup/memory.stat").splitlines()
                if line.startswith("inactive_file ")
            ),
            0,
        )
        available = min(available, int(limit) - int(used) + cache)
    return available


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _model_fact(path: Path) -> ModelFact:
    if not path.is_dir():
        return ModelFact(is_directory=False, has_config=False)
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    size = sum(each.stat().st_size for each in weights if each.exists())
    return ModelFact(True, (path / "config.json").is_file(), size)


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists."""
    while not path.exists():
        path = path.parent
    return path
