"""Migrations."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from llx.api.requests import RequestList, RequestStatus
from llx.api.resource import Resource
from llx.api.status import ClusterStatus


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


class MigrationStatus(Resource):
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


class MigrationList(Resource):
    """Migrations, the oldest first. The head keeps the last 1000 that are over."""

    api_version: Literal["v1"] = "v1"
    migrations: list[MigrationStatus]


class MigrateRequest(Resource):
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


class LeftOut(Resource):
    """A request that was meant and does not move, and why."""

    request: str
    name: str
    instance: str
    reason: str


class PlannedMove(Resource):
    """What a move would be. `copy_s` and `downtime_ms`: as lately; None: none was seen yet."""

    request: RequestStatus
    target: str
    copy_s: float | None = None
    downtime_ms: float | None = None


class MigrateReport(Resource):
    """What was begun, or with `is_dry_run` planned; `num_seen`: moves that estimates rest on."""

    api_version: Literal["v1"] = "v1"
    migrations: list[MigrationStatus] = []
    planned: list[PlannedMove] = []
    left_out: list[LeftOut] = []
    num_seen: int = 0


class Snapshot(Resource):
    """The cluster at one moment, in one answer: what `llx top` shows.

    `migrations`: those under way and the last that are over, the oldest first.
    """

    api_version: Literal["v1"] = "v1"
    at: float
    status: ClusterStatus
    requests: RequestList
    migrations: list[MigrationStatus]
