"""The control API's resources, version ``v1``: what `llx -o json` prints and scripts may rely on.

Fields are only ever added within a version. Times are Unix seconds, durations seconds.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel

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
    """One instance.

    `is_cordoned`: by name; it may be by its host as well. `preemptions`: since its engine's start;
    None: not known. `moving_out`: requests on their way to another one. `moved_by`: how KV last
    left or came, and why so; empty: none has lately. `cannot_migrate`: why none can move; empty:
    they can, or nobody knows yet. `compatibility`: what must be equal of two instances for requests
    to move between them, the identity of the weights included; empty: not known yet. `revision`:
    see `RolloutStatus`.
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


class InstanceSteps(_Resource):
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
    priority_classes: list[str] = []
    """The most urgent first."""


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
    """What a stop or a drain did to streams and requests.

    `not_stopped`: what could not be reached and may still run. `moved`: to other instances.
    `not_moved`: which could not, ``request: reason``; they finished, were cut, or are `remaining`.
    """

    api_version: Literal["v1"] = "v1"
    finished: int
    cut: int
    not_stopped: list[str] = []
    moved: int = 0
    not_moved: list[str] = []
    remaining: int = 0


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


class ScaleRequest(_Resource):
    """Body of ``PUT /v1/models/{name}/instances``: how many instances a model has.

    The same `min` and `max` fix the number; None leaves the one that is. With `is_dry_run` nothing
    changes.
    """

    min: int | None = None
    max: int | None = None
    is_dry_run: bool = False
    user: str = ""


class ScaleReport(_Resource):
    """What that changes, in words, and the model as it is then."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]
    model: ModelStatus


class RolloutRequest(_Resource):
    """Body of ``PUT /v1/models/{name}/rollout``: what a model's instances are to be.

    `values`: of a whole model as in cluster.yaml; empty: as it is. `changes`: dotted key → YAML, on
    top. `deadline_s`: so long an instance that is replaced may have requests. `steady_s`: so long a
    new one must have been ready before the next step. `is_again`: replace them though nothing
    differs. `is_apart`: as a generation of its own, to which nothing moves.
    """

    values: dict[str, JsonValue] = {}
    changes: dict[str, str] = {}
    deadline_s: float = 600.0
    steady_s: float = 3.0
    is_again: bool = False
    is_apart: bool = False
    is_dry_run: bool = False
    user: str = ""


class RolloutStatus(_Resource):
    """As what a model was rolled out last.

    `revision` counts what its instances were started with, `generation` is the first revision of
    those between which requests can move. `state`: running, paused, failed (`reason` says why) or
    done; empty: it never was. `is_back`: it goes back on another one. `is_apart`: the new instances
    are another generation; `is_switched`: that gets new requests. Of the requests of replaced
    instances so many `moved`, `finished`, or were `cut` at the deadline.
    """

    model: str
    revision: int
    generation: int
    state: str = ""
    reason: str = ""
    is_back: bool = False
    is_apart: bool = False
    is_switched: bool = False
    instances_wanted: int = 0
    instances_new: int = 0
    instances_former: int = 0
    instances_leaving: int = 0
    deadline_s: float = 0.0
    user: str = ""
    begun_at: float | None = None
    moved: int = 0
    finished: int = 0
    cut: int = 0


class RolloutReport(_Resource):
    """What a rollout changes and how, in words, and how far it is; no words: nothing changes."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]
    rollout: RolloutStatus


class RolloutList(_Resource):
    """Of every model."""

    api_version: Literal["v1"] = "v1"
    rollouts: list[RolloutStatus]


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


class RequestStatus(_Resource):
    """A request that an instance has, or that waits for one: one generation.

    `id` is the engine's, `name` ``x-llx-request-id``, which several generations may share. `state`:
    waiting, running, preempted, leaving (for another instance), or queued: it waits in the central
    queue of its class, at `position` (1 is the head), the head for the instance `nominated`; its
    `num_tokens` are those to be computed before its next one. `pinned`: why it cannot move.
    """

    id: str
    name: str
    instance: str
    model: str
    priority: int
    priority_class: str = ""
    state: str
    num_prompt: int
    num_tokens: int
    num_blocks: int
    size_bytes: int
    arrived_at: float
    pinned: str = ""
    migration: str = ""
    position: int | None = None
    nominated: str = ""


class RequestList(_Resource):
    """Requests, the oldest first: all, or a page of those that a filter lets through.

    `num_found`: how many it lets through. `not_asked`: instances of which they are not known,
    ``instance: reason``.
    """

    api_version: Literal["v1"] = "v1"
    requests: list[RequestStatus]
    num_found: int = 0
    not_asked: list[str] = []


class EventStatus(_Resource):
    """Something that happened, or was done: its kind, such as ``instance.failed``, and by whom.

    `at` in seconds of the epoch; `fields`: what else is told of it, by its kind.
    """

    at: float
    kind: str
    user: str = ""
    fields: dict[str, str | float | bool | None] = {}


class EventList(_Resource):
    """Events, the oldest first: the last of the `num_found` that a filter lets through.

    `cursor`: to be given as `after` for what comes next.
    """

    api_version: Literal["v1"] = "v1"
    events: list[EventStatus]
    num_found: int = 0
    cursor: str = ""


class RequestVerb(StrEnum):
    """What can be done to requests."""

    CANCEL = "cancel"
    """End them; their clients are told."""
    SET_PRIORITY = "set-priority"
    """Serve them as of another class, wherever they are and come to be."""
    PIN = "pin"
    """Keep them where they are: no rule, order or drain moves them."""
    UNPIN = "unpin"


class RequestChange(_Resource):
    """Do something to requests; each by any of its ids, with all its generations.

    `priority_class`: of `RequestVerb.SET_PRIORITY`. `is_dry_run`: only say to which it would be
    done.
    """

    ids: list[Annotated[str, Field(max_length=512)]] = Field(min_length=1, max_length=1000)
    priority_class: str = Field(default="", max_length=256)
    is_dry_run: bool = False
    user: str = ""


class NotChanged(_Resource):
    """A request that was meant and to which it was not done; `error`: see `ErrorBody`."""

    given: str
    error: Literal["not_found", "conflict", "unreachable"]
    reason: str
    remedy: str = ""


class RequestChangeReport(_Resource):
    """To which requests it was done, as they are since; or as they were, if they have ended."""

    api_version: Literal["v1"] = "v1"
    changed: list[RequestStatus] = []
    not_changed: list[NotChanged] = []


class MoveOutcome(StrEnum):
    """How a migration ended.

    `kept`: the request goes on at its source. `gone`: the request had ended. `none`: the source was
    to choose one, and had none that may go. `unknown`: nobody said, as when the source fell.
    """

    MOVED = "moved"
    KEPT = "kept"
    GONE = "gone"
    NONE = "none"
    UNKNOWN = "unknown"


class MigrationStatus(_Resource):
    """One migration: a move of one request.

    `state` is the source's, ``ordered`` before its first word; `outcome` None while it is open;
    `rate` in bytes per second of copying. `downtime_ms`: from the last token of the source to the
    first of the target as the gateway saw it; `itl_ms`: the median gap before, `stall_ms` their
    difference; None while the gateway has not said. `transport`: how its KV went (``cuda-ipc``,
    ``nccl``, ``shm``, ``tcp``), `transport_why`: why in no better way; empty before it has.
    """

    api_version: Literal["v1"] = "v1"
    id: str
    request: str
    name: str
    source: str
    target: str
    user: str = ""
    why: str = ""
    state: str
    outcome: MoveOutcome | None = None
    reason: str = ""
    begun_at: float
    ended_at: float | None = None
    stage: int = 0
    num_stages: int = 0
    blocks_copied: int = 0
    blocks_reused: int = 0
    num_tokens: int = 0
    size_bytes: int = 0
    rate: float = 0.0
    elapsed_ms: float = 0.0
    transport: str = ""
    transport_why: str = ""
    downtime_ms: float | None = None
    itl_ms: float | None = None
    stall_ms: float | None = None


class MigrationList(_Resource):
    """Migrations, the oldest first. The head keeps the last 1000 that are over."""

    api_version: Literal["v1"] = "v1"
    migrations: list[MigrationStatus]


class Snapshot(_Resource):
    """The cluster at one moment, in one answer: what `llx top` shows.

    `migrations`: those under way and the last that are over, the oldest first.
    """

    api_version: Literal["v1"] = "v1"
    at: float
    status: ClusterStatus
    requests: RequestList
    migrations: list[MigrationStatus]


class MigrateRequest(_Resource):
    """Body of ``POST /v1/migrations``: move `request`, or some requests of `source`, to `target`.

    `request`: any of its ids (`llx req ls`), or the client's own ``x-request-id``. `count`: at most
    so many; None: all. `by`: which of them (`llx.core.request_choice`). `is_dry_run`: only say what
    would move. `is_checked`: compare the copied KV at both ends before the target goes on.
    `is_blocking`: stop the request before the first copy, the baseline for live migration.
    `reuse_prefix`: the target may use blocks of its prefix cache instead of copying them, if the
    cluster's settings allow it.
    """

    request: str = ""
    source: str = ""
    count: int | None = Field(default=None, ge=1)
    by: str = "shortest"
    target: str
    is_dry_run: bool = False
    is_checked: bool = False
    is_blocking: bool = False
    reuse_prefix: bool = True
    user: str = ""


class LeftOut(_Resource):
    """A request that was meant and does not move, and why."""

    request: str
    name: str
    instance: str
    reason: str


class PlannedMove(_Resource):
    """What a move would be. `copy_s` and `downtime_ms`: as lately; None: none was seen yet."""

    request: RequestStatus
    target: str
    copy_s: float | None = None
    downtime_ms: float | None = None


class MigrateReport(_Resource):
    """What was begun, or with `is_dry_run` planned; `num_seen`: moves that estimates rest on."""

    api_version: Literal["v1"] = "v1"
    migrations: list[MigrationStatus] = []
    planned: list[PlannedMove] = []
    left_out: list[LeftOut] = []
    num_seen: int = 0


class QueueStatus(_Resource):
    """The central queue of a model and priority class.

    Attributes:
        waiting: Requests that wait for an instance to have room.
        oldest_s: How long the oldest of them has waited; None: none waits.
        nominated: The instance that the first of them waits for; empty: none.
        limit: More of them than this are refused.
        max_wait_s: Who has waited so long in this class is refused.
    """

    model: str
    priority_class: str
    priority: int
    waiting: int
    oldest_s: float | None
    nominated: str
    limit: int
    max_wait_s: float


class QueueList(_Resource):
    """All central queues, by model, the most urgent class first."""

    api_version: Literal["v1"] = "v1"
    queues: list[QueueStatus]


class PolicyStatus(_Resource):
    """How a model is scheduled.

    Attributes:
        scheduling: In force, as the ``scheduling`` of cluster.yaml.
        changed: What `llx policy set` has changed of it: dotted key → value.
        is_paused: Nothing is moved or scaled by rule.
    """

    model: str
    is_paused: bool
    scheduling: dict[str, JsonValue]
    changed: dict[str, JsonValue] = {}


class PolicyList(_Resource):
    """How each model is scheduled."""

    api_version: Literal["v1"] = "v1"
    policies: list[PolicyStatus]


class PolicyUpdate(_Resource):
    """Body of ``PUT /v1/policies``: other rules for `model`, or for all if that is empty.

    `changes`: dotted key → value in YAML. `is_revert`: first forget all earlier changes.
    """

    model: str = ""
    changes: dict[str, str] = {}
    is_revert: bool = False
    is_dry_run: bool = False
    user: str = ""


class DecisionStatus(_Resource):
    """Something that the scheduler has decided about a request.

    `what`: ``placed``, ``held``, ``refused`` or ``move``. `why`: its reasons, in words.
    """

    at: float
    what: str
    instance: str
    why: str


class ExplainedRequest(_Resource):
    """What was decided about one generation, the oldest first."""

    request: str
    name: str
    model: str
    priority_class: str
    decisions: list[DecisionStatus]


class Explanation(_Resource):
    """The generations of a request. The head keeps the decisions about the last 4096 only."""

    api_version: Literal["v1"] = "v1"
    requests: list[ExplainedRequest]


class ErrorBody(_Resource):
    """Body of every error of the control API."""

    error: str
    message: str
    remedy: str = ""
    detail: str = ""
