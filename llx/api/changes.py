"""What is asked of a cluster as a whole, or of a model, and what became of it."""

from typing import Literal

from pydantic import JsonValue

from llx.api.resource import Resource
from llx.api.status import ModelStatus


class StopRequest(Resource):
    """Body of ``POST /v1/stop``: streams may finish until the deadline."""

    deadline_s: float = 60.0
    user: str = ""


class StopReport(Resource):
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


class SettingsDocument(Resource):
    """The cluster's settings as YAML: a whole cluster.yaml."""

    api_version: Literal["v1"] = "v1"
    yaml: str


class SettingsUpdate(Resource):
    """Body of ``PUT /v1/settings``: what the cluster should be from now on.

    With `is_dry_run` nothing is changed; the answer says what would be.
    """

    yaml: str
    user: str = ""
    is_dry_run: bool = False


class ChangeReport(Resource):
    """What new settings change, in words; empty: nothing. It has begun, not ended."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]


class ScaleRequest(Resource):
    """Body of ``PUT /v1/models/{name}/instances``: how many instances a model has.

    The same `min` and `max` fix the number; None leaves the one that is. With `is_dry_run` nothing
    changes.
    """

    min: int | None = None
    max: int | None = None
    is_dry_run: bool = False
    user: str = ""


class ScaleReport(Resource):
    """What that changes, in words, and the model as it is then."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]
    model: ModelStatus


class RolloutRequest(Resource):
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


class RolloutStatus(Resource):
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


class RolloutReport(Resource):
    """What a rollout changes and how, in words, and how far it is; no words: nothing changes."""

    api_version: Literal["v1"] = "v1"
    changes: list[str]
    rollout: RolloutStatus


class RolloutList(Resource):
    """Of every model."""

    api_version: Literal["v1"] = "v1"
    rollouts: list[RolloutStatus]
