"""Files that one llx process hands to another on the same host: what to run, and how it fares.

A *spec* is written by the parent before it starts a child, 0600 (it names key files, never holds
a secret itself). A *status* is written by the child, atomically, each time its phase changes.
"""

import os
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llx.errors import ConfigError

T = TypeVar("T")

GATEWAY_CERTIFICATE = "gateway.pem"
"""In a cluster's directory: what its gateways show, and the key of it."""

MODELS = "@models/"
"""Begins the name of a model that lies in the host's own models directory."""


class EngineKind(StrEnum):
    """What runs the model."""

    VLLM = "vllm"
    SIM = "sim"


def generation_key(model: str, generation: int) -> str:
    """The pool of one generation of a model: between two of them nothing moves.

    No model's name has a ``~``.
    """
    return f"{model}~{generation}" if generation else model


def model_of_pool(key: str) -> str:
    """The model of which that pool is a generation."""
    return key.partition("~")[0]


class SimSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The simulated engine's step-time model and size.

    A step takes ``step_base_ms + step_ms_per_prefill_token * p + step_ms_per_decode * d +
    step_ms_per_context_ktoken * c`` milliseconds for p prefill tokens, d decoding requests and
    c thousand tokens of context in the batch.
    """

    step_base_ms: float = 8.0
    step_ms_per_prefill_token: float = 0.02
    step_ms_per_decode: float = 0.05
    step_ms_per_context_ktoken: float = 0.01
    num_blocks: int = 2048
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_bytes_per_token: int = 256


class MigrationSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an instance moves requests (cluster.yaml's ``migration``).

    Attributes:
        reuse_prefix: A target uses blocks that its prefix cache has instead of copying them.
        max_out: Moves away from an instance at a time; more wait for their turn.
        max_in: Moves to an instance at a time; more are refused.
        max_stages: Copy rounds before the last one.
        on_divergence: What to do when a request grows faster than it is copied: ``finish`` (stop it
            and copy the rest) or ``abort``.
        bandwidth_bytes_s: Of an instance's copying, all moves together; 0: no limit.
        checksum: Every chunk that goes through a socket or shared memory carries a checksum.
        chunk_bytes: Staging memory of one connection whose bytes go through the CPU.
        transport: How KV leaves an instance: ``auto`` (the best that source and target can),
            ``cuda-ipc``, ``nccl``, ``shm`` or ``tcp``. If one is named, moves that cannot go that
            way are refused.
    """

    reuse_prefix: bool = True
    max_out: int = 8
    max_in: int = 8
    max_stages: int = 8
    on_divergence: str = "finish"
    bandwidth_bytes_s: int = 0
    checksum: bool = False
    chunk_bytes: int = 4 << 20
    transport: str = "auto"


class HangSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a process counts as hung, and is killed (cluster.yaml's ``runtime``); 0: never.

    Attributes:
        silent_s: So long without a sign of life.
        step_s: So long in one engine step; None: as the device suggests.
    """

    silent_s: float = 8.0
    step_s: float | None = None


class InstanceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="instance"):
    """One instance, for ``python -m llx.agent.instance SPEC``.

    The head leaves `bind_host`, `keys_path`, `status_path` and `port_range` empty, and `model` may
    begin with `MODELS`; the node agent fills in what is so on its host (`llx.agent.place`).
    """

    name: str
    pool: str
    engine: EngineKind
    model: str
    engine_args: dict[str, Any]
    tensor_parallel: int
    bind_host: str
    keys_path: str
    status_path: str
    sim: SimSpec | None = None
    port_range: tuple[int, int] | None = None
    """First and last port to listen on; None: as the system chooses."""
    migration: MigrationSpec = MigrationSpec()
    hang: HangSpec = HangSpec()
    revision: int = 0
    """Counts what a model was rolled out as."""
    generation: int = 0
    """The first revision between whose instances and this one requests can move."""

    @property
    def pool_key(self) -> str:
        """The pool that it belongs to, see `generation_key`."""
        return generation_key(self.pool, self.generation)


class PriorityClassSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A priority class: its name and the integer that vLLM sees (lower = more urgent)."""

    name: str
    priority: int
    is_default: bool = False


ANONYMOUS = "anonymous"
"""The tenant of every request, where there are no API keys."""


class ApiKeySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key by its SHA-256 (hex); the key itself is nowhere stored."""

    tenant: str
    sha256: str
    priority_class: str | None = None


class TenantSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant may take of one gateway; None: no limit."""

    name: str
    max_requests: int | None = None
    """At a time."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompts and outputs."""


class PoolSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model pool, as a gateway needs it; `name` is the model's, as clients say it."""

    name: str
    model: str
    engine: EngineKind
    engine_args: dict[str, Any]
    serve_args: dict[str, Any]
    tensor_parallel: int
    max_instances: int
    generation: int = 0

    @property
    def key(self) -> str:
        """Names the pool among all of the cluster."""
        return generation_key(self.name, self.generation)


class GatewaySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="gateway"):
    """One gateway, for ``python -m llx.gateway.main SPEC``.

    The head leaves `keys_path`, `status_path`, `url_host`, `on_host` and `certificate_path` empty
    for the node agent to fill in. `host` is what it listens on, `url_host` what clients put into a
    URL to reach that, `on_host` the name of the host that it runs on. `certificate_path`: with
    `is_tls`, certificates and key in one file, which may be replaced at any time.
    """

    name: str
    host: str
    port: int
    pools: list[PoolSpec]
    classes: list[PriorityClassSpec]
    api_keys: list[ApiKeySpec]
    max_requests: int
    scheduler_address: str
    keys_path: str
    status_path: str
    tenants: list[TenantSpec] = []
    hang: HangSpec = HangSpec()
    url_host: str = ""
    on_host: str = ""
    is_tls: bool = False
    certificate_path: str = ""


class HostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host of a cluster, for its Ray node, its node agent and, on the head, the scheduler.

    Attributes:
        cluster: The cluster's name.
        cluster_id: Random; tells apart two clusters of one name.
        host: This host's name.
        address: Its IP address, as the other hosts reach it.
        head: The head's name; equal to `host` on the head itself.
        head_address: Its IP address.
        state_dir: The cluster's directory here (`llx.cluster.state_dir.StateDir`).
        models_dir: Where models that llx keeps lie here.
        cache_dir: Where engines keep what they compiled.
        python: The node environment's interpreter here.
        platform: ``cpu`` or ``cuda``.
        first_port: The cluster's ports (`llx.host_ports.HostPorts`).
        is_tls: Whether Ray's traffic is encrypted, with the files of `tls_dir`.
        ray_tmp: Ray's temporary directory.
        kv_cache_gib: On the CPU: KV cache of one instance.
        home: The home directory that ``~/…`` means in the paths of models.
        llx_version: Of the release that brought the host here; where no head answers, nothing else
            tells what runs.
    """

    cluster: str
    cluster_id: str
    host: str
    address: str
    head: str
    head_address: str
    state_dir: str
    models_dir: str
    cache_dir: str
    python: str
    platform: str
    first_port: int
    is_tls: bool
    ray_tmp: str
    kv_cache_gib: int = 1
    home: str = ""
    llx_version: str = ""

    @property
    def is_head(self) -> bool:
        """Whether this is the head's host."""
        return self.host == self.head

    @property
    def ray_token_path(self) -> str:
        """Ray's authentication token, 0600."""
        return f"{self.state_dir}/ray.token"

    @property
    def tls_dir(self) -> str:
        """``ca.pem``, ``host.pem``, ``host.key``, and on the head ``ca.key``."""
        return f"{self.state_dir}/tls"

    @property
    def hub_home(self) -> str:
        """What engines themselves fetch from the hub; beside the models, since it is weights."""
        return f"{self.models_dir}/.hub"

    @property
    def hub_token_path(self) -> str:
        """The Hugging Face token, 0600; absent if none was given."""
        return f"{self.state_dir}/hf.token"


class Phase(StrEnum):
    """How far a child process is."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class ProcessStatus(msgspec.Struct, frozen=True):
    """What a child says of itself. `addresses`: what it listens on, once ready."""

    phase: Phase
    detail: str = ""
    addresses: list[str] = []
    pid: int = 0
    at: float = 0.0


def save_spec(path: Path, spec: msgspec.Struct) -> None:
    """Write a spec or status atomically, readable by the owner alone."""
    data = msgspec.json.format(msgspec.json.encode(spec), indent=2)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_spec(path: Path, kind: type[T]) -> T:
    """Read a spec or status.

    Raises:
        ConfigError: The file cannot be read as `kind`.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: not a usable {kind.__name__}: {error}") from None


class StatusFile:
    """A child's own status, rewritten at each change of phase."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, phase: Phase, detail: str = "", addresses: list[str] | None = None) -> None:
        """Replace the status."""
        status = ProcessStatus(phase, detail, addresses or [], os.getpid(), time.time())
        save_spec(self._path, status)
