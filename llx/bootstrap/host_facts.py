"""What is true of a host now, learnt by one run of a shell script there: nothing is changed.

The host needs no Python for it. `gather` runs ``host_facts.sh``, `llx.bootstrap.host_facts_text`
reads what it says; `llx.bootstrap.host_preflight` (pure) compares it with what cluster.yaml asks.
What could not be learnt is None or empty, never an error: hosts differ.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import PurePosixPath

from llx.agent.devices import Device
from llx.bootstrap.facts import ModelFact
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Completed, Shell
from llx.errors import HostError, LlxError
from llx.host_ports import HostPorts
from llx.settings import ClusterSettings, HostSettings

STEP = "look at the host"
_TIMEOUT_S = 60.0
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class PythonFact:
    """A Python found there. `versions`: of llx, ray and vllm in it, where that was asked."""

    path: str
    version: tuple[int, int, int]
    prefix: str
    has_venv: bool
    versions: Mapping[str, str]

    @property
    def version_text(self) -> str:
        """``3.11.7``."""
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class DiskFact:
    """A file system: its size, what is free of it, and what it is made on."""

    size_bytes: int
    free_bytes: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that somebody listens on. `pid` is None where it cannot be seen."""

    port: int
    address: str
    user: str
    pid: int | None = None
    name: str = ""
    mark: str = ""

    @property
    def holder(self) -> str:
        """``python3 (pid 12, user ann)``, as far as it is known."""
        if self.pid is not None:
            return f"{self.name} (pid {self.pid}, user {self.user})"
        return f"a process of user {self.user}"

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from the host itself only."""
        return self.address.startswith("127.") or self.address == "::1"


@dataclass(frozen=True, slots=True)
class GpuUser:
    """A process that computes on a GPU."""

    gpu: str
    pid: int
    user: str
    name: str
    used_mib: int
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Which cluster a host says it belongs to (``~/.llx/host.json``)."""

    cluster: str
    cluster_id: str = ""


@dataclass(frozen=True, slots=True)
class ShimFact:
    """A process of this cluster that runs there under a shim: ``ray``, an instance, a gateway."""

    name: str
    pid: int
    mark: str
    phase: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LlxProcess:
    """A process of llx, whoever runs it. `cluster` is "" where it cannot be told."""

    pid: int
    user: str
    cluster: str
    command: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host, as far as `llx up` and `llx doctor` care.

    Attributes:
        host: Its name in cluster.yaml.
        hostname: Its own name.
        user: Who we are there.
        uid: That user's number.
        home: That user's home directory.
        is_home_writable: Whether it can be written.
        has_sudo: ``sudo`` needs no password; True for root.
        noise: What a shell prints there before any command; should be empty.
        machine: ``x86_64``.
        kernel: Its release.
        system: ``Linux``.
        glibc: Its version; None on another C library.
        cpu_count: Processors that may be used.
        memory_available_bytes: The machine's, or its control group's if that is less.
        memory_bytes: In all.
        home_disk: Where ``~/.llx`` lies or would lie.
        models_disk: Where ``~/.llx/models`` lies, if that is another one.
        tmp_disk: Of ``/tmp``.
        shm_disk: Of ``/dev/shm``.
        home_identity: Tells whether two hosts have one home directory; "" if unknown.
        is_home_remote: The home directory lies on a network file system.
        clock_offset_s: How far its clock is ahead of ours.
        clock_error_s: By how much that may be wrong.
        server_address: Its address that SSH arrived at; "" if unknown.
        cluster_address: As the other hosts reach it: set in cluster.yaml, else `server_address`.
        addresses: All its addresses.
        machine_id: ``/etc/machine-id``.
        boot_id: Different at each boot.
        pythons: Those it has, newest command name first; without a `python` of cluster.yaml.
        wanted_python: The path cluster.yaml gives; None if it gives none.
        override: What is at that path; None if nothing that works.
        has_nvidia_driver: The kernel has it.
        driver_version: Of the NVIDIA driver.
        gpus: As nvidia-smi lists them.
        gpu_users: Who computes on them.
        held_gpus: UUIDs of those that instances of this cluster run on, by our own records.
        listeners: On the cluster's ports, the gateway's and the control API's.
        claim: Which cluster it belongs to.
        has_state: The cluster's state directory exists.
        release: Of llx, that brought the cluster here; empty: nobody says so.
        node_environments: Finished ones, ``<version>-<platform>``, and the version of Python in
            each, such as ``3.12.1``; "" if unknown.
        models: Complete ones below ``~/.llx/models``.
        unfinished: Models and node environments that are not complete, and the wheelhouse: how many
            bytes are there already, by their path below ``~/.llx``.
        model_sources: Where each of them came from, such as ``hub:org/name@commit``.
        model_paths: What lies there at the paths that models of cluster.yaml have.
        processes: Of this cluster, running.
        llx_processes: Of anybody, running.
        missing_tools: Of ``timeout flock sha256sum tar nft bash``.
        ephemeral_ports: First and last port that outgoing connections take.
        open_files: How many files a process may have open at most; None: no limit.
        is_logout_deadly: The system ends a user's processes when the user logs out.
    """

    host: str
    hostname: str
    user: str
    uid: int
    home: PurePosixPath
    is_home_writable: bool = True
    has_sudo: bool = False
    noise: str = ""
    system: str = "Linux"
    machine: str = ""
    kernel: str = ""
    glibc: tuple[int, int] | None = None
    cpu_count: int = 1
    memory_available_bytes: int | None = None
    memory_bytes: int | None = None
    home_disk: DiskFact | None = None
    models_disk: DiskFact | None = None
    tmp_disk: DiskFact | None = None
    shm_disk: DiskFact | None = None
    home_identity: str = ""
    is_home_remote: bool = False
    clock_offset_s: float | None = None
    clock_error_s: float = 0.0
    server_address: str = ""
    cluster_address: str = ""
    addresses: tuple[str, ...] = ()
    machine_id: str = ""
    boot_id: str = ""
    pythons: tuple[PythonFact, ...] = ()
    wanted_python: str | None = None
    override: PythonFact | None = None
    has_nvidia_driver: bool = False
    driver_version: str = ""
    gpus: tuple[Device, ...] = ()
    gpu_users: tuple[GpuUser, ...] = ()
    held_gpus: frozenset[str] = frozenset()
    listeners: tuple[Listener, ...] = ()
    claim: Claim | None = None
    has_state: bool = False
    release: str = ""
    node_environments: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    unfinished: Mapping[str, int] = field(default_factory=dict)
    model_sources: Mapping[str, str] = field(default_factory=dict)
    model_paths: Mapping[str, ModelFact] = field(default_factory=dict)
    processes: tuple[ShimFact, ...] = ()
    llx_processes: tuple[LlxProcess, ...] = ()
    missing_tools: frozenset[str] = frozenset()
    ephemeral_ports: tuple[int, int] | None = None
    open_files: int | None = None
    is_logout_deadly: bool = False

    @property
    def is_root(self) -> bool:
        """Whether we are root there."""
        return self.uid == 0

    @property
    def is_cluster_running(self) -> bool:
        """Whether anything of this cluster runs there."""
        return bool(self.processes)

    @property
    def marks(self) -> frozenset[str]:
        """Marks of what runs there of this cluster: its ports and GPUs are its own."""
        return frozenset(each.mark for each in self.processes if each.mark)

    def has_node_environment(self, platform: str) -> bool:
        """Whether llx's own environment of this release is there, complete."""
        return self.layout("").node(platform).name in self.node_environments

    def installed_python(self, platform: str) -> str | None:
        """The release of Python in that environment, such as ``3.12``; None if there is none."""
        version = self.node_environments.get(self.layout("").node(platform).name, "")
        return ".".join(version.split(".")[:2]) or None

    def layout(self, cluster: str) -> HostLayout:
        """Where things of `cluster` lie there."""
        return HostLayout(self.home, self.uid, cluster)


def gather(
    shell: Shell,
    host: HostSettings,
    settings: ClusterSettings,
    *,
    clock: Callable[[], float] = time.time,
) -> HostFacts:
    """Look at a host with the eyes of `settings`.

    Raises:
        UnreachableError: It does not answer.
        DeadlineError: It answers too slowly.
        HostError: It runs no commands for us; says what it did instead.
    """
    from llx.bootstrap.host_facts_text import parse

    ports = HostPorts(settings.network.first_port)
    python = host.python or settings.runtime.python
    numbers = (ports.first, ports.last, settings.gateway.port, settings.control.port)
    models = dict.fromkeys(m.model for m in settings.models if m.model_path is not None)
    listener = _Listener(clock)
    done = shell.run(
        ["sh", "-s", "--", *map(str, numbers), settings.cluster, str(python or ""), *models],
        stdin=script(),
        timeout_s=_TIMEOUT_S,
        on_line=listener.observe,
    )
    text = "\n".join(listener.lines) or done.stdout
    try:
        found = parse(text, began=listener.began, heard=listener.heard or clock())
    except ValueError:
        raise _no_shell(host, done) from None
    return replace(
        found,
        host=host.name,
        cluster_address=host.cluster_address or found.server_address,
        wanted_python=None if python is None else str(python),
    )


def script() -> bytes:
    """The script that hosts run, from stdin."""
    return (files("llx.bootstrap") / "host_facts.sh").read_bytes()


class _Listener:
    """Keeps all output, and when the host's clock was read: between `began` and `heard`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.began = clock()
        self.heard: float | None = None
        self.lines: list[str] = []

    def observe(self, line: str) -> None:
        self.lines.append(line)
        if self.heard is None and line.startswith("clock\t"):
            self.heard = self._clock()


def _no_shell(host: HostSettings, done: Completed) -> LlxError:
    if done.exit_code == _NOT_FOUND and "timeout" in done.stderr:
        return HostError(
            "there is no `timeout`",
            host=host.name,
            step=STEP,
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
            remedy="install coreutils there",
        )
    said = "\n".join([*done.stdout.strip().splitlines()[-5:], done.stderr_tail]).strip()
    return HostError(
        f"commands do not run there (exit code {done.exit_code})",
        host=host.name,
        step=STEP,
        process_exit_code=done.exit_code,
        stderr_tail=said,
        remedy="give the user a login shell that runs commands (see /etc/passwd, ForceCommand in "
        "sshd_config, command= in authorized_keys), and a POSIX `sh` on PATH",
    )
