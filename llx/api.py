"""The control API's resources, version ``v1``: what `llx -o json` prints and scripts may rely on.

Fields are only ever added within a version. Times are Unix seconds, durations seconds.
"""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

API_VERSION = "v1"


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstanceState(StrEnum):
    """An instance's life: starting → loading → ready → stopping → stopped; failed from anywhere."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
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
    load: LoadStatus | None = None
    log: str = ""


class GatewayStatus(_Resource):
    """One gateway. Counters run since its start."""

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
    log: str = ""


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
    """What a stop did."""

    api_version: Literal["v1"] = "v1"
    finished: int
    cut: int


class ErrorBody(_Resource):
    """Body of every error of the control API."""

    error: str
    message: str
    remedy: str = ""
    detail: str = ""
