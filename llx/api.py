"""The control API's resources, version ``v1``: what `llx -o json` prints and scripts may rely on.

Fields are only ever added within a version. Times are Unix seconds, durations seconds.
"""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

API_VERSION = "v1"
MAX_VERB_CHARS = 100
MAX_NOTE_CHARS = 2000


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstanceState(StrEnum):
    """An instance's life: starting → loading → ready → stopping → stopped; failed from anywhere.

    `draining`: it takes nothing new, and ends when what it has is done. `lost`: nothing has been
    heard of its host; it may still run there.
    """

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class HostState(StrEnum):
    """`agent_away`: its agent does not answer, but something there is heard: what runs goes on.

    `lost`: nothing is heard of it. `failed`: its agent answers and cannot be used.
    """

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    AGENT_AWAY = "agent_away"
    LOST = "lost"
    FAILED = "failed"


class ClusterState(StrEnum):
    """`degraded`: it serves, but something it should have is missing."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    FAILED = "failed"


class LoadStatus(_Resource):
    """An instance's last load report."""

    blocks_total: int
    blocks_used: int
    running: int
    waiting: int
    waiting_demand_blocks: int
    preempted: int
    freeness: float
    age_s: float


class InstanceStatus(_Resource):
    """One instance."""

    name: str
    model: str
    host: str
    engine: str
    state: InstanceState
    detail: str = ""
    pid: int | None = None
    devices: list[str] = []
    addresses: list[str] = []
    started_at: float | None = None
    ready_after_s: float | None = None
    restarts: int = 0
    last_failure: str = ""
    load: LoadStatus | None = None
    log: str = ""


class GatewayStatus(_Resource):
    """One gateway. Counters run since its start, `restarts` since that of the head."""

    name: str
    host: str
    url: str
    state: InstanceState
    detail: str = ""
    pid: int | None = None
    started_at: float | None = None
    ready_after_s: float | None = None
    in_flight: int = 0
    requests: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    output_tokens: int = 0
    connected: list[str] = []
    restarts: int = 0
    last_failure: str = ""
    log: str = ""


class UnitStatus(RootModel[InstanceStatus | GatewayStatus]):
    """One instance or gateway."""


class GpuStatus(_Resource):
    """One GPU. `holder`: the instance that has it; `is_busy`: somebody outside llx uses it."""

    label: str
    holder: str = ""
    is_busy: bool = False


class HostStatus(_Resource):
    """One host. What its agent said last: empty or zero before its first word.

    `last_heard_s`: how long nothing of it has been heard; None: never heard of.
    """

    name: str
    address: str = ""
    state: HostState
    detail: str = ""
    is_cordoned: bool = False
    platform: str = ""
    cpus: int = 0
    gpus: list[GpuStatus] = []
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    disk_free_bytes: int = 0
    instances: list[str] = []
    gateways: list[str] = []
    llx_version: str = ""
    vllm_version: str = ""
    last_heard_s: float | None = None


class ModelStatus(_Resource):
    """One model (pool)."""

    name: str
    source: str
    engine: str
    instances_min: int
    instances_max: int
    instances_ready: int


class ClusterStatus(_Resource):
    """The whole cluster: `llx status`."""

    api_version: Literal["v1"] = "v1"
    cluster: str
    state: ClusterState
    url: str
    term: int
    started_at: float
    llx_version: str
    vllm_version: str
    platform: str
    models: list[ModelStatus]
    instances: list[InstanceStatus]
    gateways: list[GatewayStatus]
    hosts: list[HostStatus] = []


class LogSlice(_Resource):
    """Part of a log. Ask again from `next_offset` to follow."""

    api_version: Literal["v1"] = "v1"
    name: str
    text: str
    next_offset: int


class StopRequest(_Resource):
    """Body of ``POST /v1/stop``: streams may finish until the deadline."""

    deadline_s: float = 60.0
    user: str = ""


class StopReport(_Resource):
    """What a stop did to streams. `not_stopped`: what could not be reached and may still run."""

    api_version: Literal["v1"] = "v1"
    finished: int
    cut: int
    not_stopped: list[str] = []


class SettingsDocument(_Resource):
    """The cluster's settings as YAML: a whole cluster.yaml."""

    api_version: Literal["v1"] = "v1"
    yaml: str


class SettingsUpdate(_Resource):
    """Body of ``PUT /v1/settings``: what the cluster should be from now on.

    With `is_dry_run` nothing is changed; the answer says what would be.
    """

    yaml: str
    user: str = ""
    is_dry_run: bool = False


class ChangeReport(_Resource):
    """What new settings change, in words; empty: nothing. It has begun, not ended."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]


class NoteRequest(_Resource):
    """Body of ``POST /v1/events``: what an operator has done to the cluster past its head.

    `verb`: of ``llx``, such as ``model add``; `text`: to what, in words.
    """

    verb: str = Field(min_length=1, max_length=MAX_VERB_CHARS)
    text: str = Field(max_length=MAX_NOTE_CHARS)
    user: str = ""


class NoteReport(_Resource):
    """The event is in the audit trail."""

    api_version: Literal["v1"] = "v1"


class ErrorBody(_Resource):
    """Body of every error of the control API."""

    error: str
    message: str
    remedy: str = ""
    detail: str = ""
