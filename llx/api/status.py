"""What the cluster is: hosts, models, instances, gateways."""

from enum import StrEnum
from typing import Literal

from pydantic import RootModel

from llx.api.resource import Resource


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


class LoadStatus(Resource):
    """An instance's last load report."""

    blocks_total: int
    blocks_used: int
    running: int
    waiting: int
    waiting_demand_blocks: int
    preempted: int
    freeness: float
    age_s: float


class PaceStatus(Resource):
    """How an instance has served lately, as the gateways saw it.

    `tokens_per_s`: of the last seconds. The others are of the last half minute to a minute, within
    5%; None: none. Time to first token counts from when a request came to its gateway; the gap in
    which a request moved is none between tokens.
    """

    tokens_per_s: float
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None


class InstanceStatus(Resource):
    """One instance.

    `is_cordoned`: by name; it may be by its host as well. `preemptions`: since its engine's start;
    None: not known. `moving_out`: requests on their way to another one. `moved_by`: how KV last
    left or came, and why so; empty: none has lately. `cannot_migrate`: why none can move; empty:
    they can, or nobody knows yet. `compatibility`: what must be equal of two instances for requests
    to move between them, the identity of the weights included; empty: not known yet. `revision`:
    see `RolloutStatus`. `pace`: None: no tokens of it have come lately. `cores_used`: CPU cores, of
    the last seconds, and `gpu_percent`: how busy its GPUs are, on average; None: not known.
    `llx_version`: what it was started with; empty: not known yet.
    """

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
    is_cordoned: bool = False
    preemptions: int | None = None
    moving_out: int = 0
    moved_by: str = ""
    cannot_migrate: str = ""
    revision: int = 0
    compatibility: str = ""
    pace: PaceStatus | None = None
    cores_used: float | None = None
    gpu_percent: float | None = None
    llx_version: str = ""


class InstanceSteps(Resource):
    """What the last steps of an instance cost, its size, and how many tokens a block has.

    `steps` begin with number `first`; before step `end` there are perhaps more than one answer
    holds. Each is what `llx.wire.StepRow` names, in that order: prompt tokens, requests decoding,
    tokens of context, their squares, the decodes' context, nanoseconds.
    """

    api_version: Literal["v1"] = "v1"
    instance: str
    model: str
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    first: int
    end: int
    steps: list[tuple[int, int, int, int, int, int]]


class GatewayStatus(Resource):
    """One gateway. Counters run since its start, `restarts` since that of the head.

    `certificate`: what it shows clients, PEM; empty: it does not speak TLS, or is not heard of yet.
    `certificate_ends_at`: seconds since 1970. `cores_used`: CPU cores; None: not known.
    `llx_version`: what it was started with; empty: it is not heard of yet.
    """

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
    certificate: str = ""
    certificate_ends_at: float | None = None
    cores_used: float | None = None
    llx_version: str = ""


class UnitStatus(RootModel[InstanceStatus | GatewayStatus]):
    """One instance or gateway."""


class GpuStatus(Resource):
    """One GPU. `holder`: the instance that has it; `is_busy`: somebody outside llx uses it.

    `use_percent`: how much of the time it computes; None: not known.
    """

    label: str
    holder: str = ""
    is_busy: bool = False
    use_percent: int | None = None


class HostStatus(Resource):
    """One host. What its agent said last: empty or zero before its first word.

    `last_heard_s`: how long nothing of it has been heard; None: never heard of. `cores_used`: of
    `cpus`, by whomever, in the last seconds; None: not known.
    """

    name: str
    address: str = ""
    state: HostState
    detail: str = ""
    is_cordoned: bool = False
    platform: str = ""
    cpus: int = 0
    cores_used: float | None = None
    gpus: list[GpuStatus] = []
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    disk_free_bytes: int = 0
    instances: list[str] = []
    gateways: list[str] = []
    llx_version: str = ""
    vllm_version: str = ""
    last_heard_s: float | None = None


class ModelStatus(Resource):
    """One model (pool).

    Attributes:
        instances_min: Never fewer, …
        instances_max: … and never more; if they differ, its load decides.
        instances_ready: So many serve now.
        instances_wanted: So many should.
        shortage: Why it has not as many as its load asks for; empty: it has.
    """

    name: str
    source: str
    engine: str
    instances_min: int
    instances_max: int
    instances_ready: int
    instances_wanted: int
    shortage: str = ""


class ClusterStatus(Resource):
    """The whole cluster: `llx status`.

    `llx_version`: of its head. `wire_version`: what its processes speak; those of another release
    that speaks the same work beside them.
    """

    api_version: Literal["v1"] = "v1"
    cluster: str
    state: ClusterState
    url: str
    term: int
    started_at: float
    llx_version: str
    vllm_version: str
    wire_version: int = 0
    platform: str
    models: list[ModelStatus]
    instances: list[InstanceStatus]
    gateways: list[GatewayStatus]
    hosts: list[HostStatus] = []
    priority_classes: list[str] = []
    """The most urgent first."""

    @property
    def first_gateway(self) -> GatewayStatus | None:
        """The one that `url` leads to."""
        return next((each for each in self.gateways if each.url == self.url), None)


class LogSlice(Resource):
    """Part of a log. Ask again from `next_offset` to follow."""

    api_version: Literal["v1"] = "v1"
    name: str
    text: str
    next_offset: int


class ErrorBody(Resource):
    """Body of every error of the control API."""

    error: str
    message: str
    remedy: str = ""
    detail: str = ""
