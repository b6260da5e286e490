"""Queues, policies, and why a request is where it is."""

from typing import Literal

from pydantic import JsonValue

from llx.api.resource import Resource


class QueueStatus(Resource):
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


class QueueList(Resource):
    """All central queues, by model, the most urgent class first."""

    api_version: Literal["v1"] = "v1"
    queues: list[QueueStatus]


class PolicyStatus(Resource):
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


class PolicyList(Resource):
    """How each model is scheduled."""

    api_version: Literal["v1"] = "v1"
    policies: list[PolicyStatus]


class PolicyUpdate(Resource):
    """Body of ``PUT /v1/policies``: other rules for `model`, or for all if that is empty.

    `changes`: dotted key → value in YAML. `is_revert`: first forget all earlier changes.
    """

    model: str = ""
    changes: dict[str, str] = {}
    is_revert: bool = False
    is_dry_run: bool = False
    user: str = ""


class DecisionStatus(Resource):
    """Something that the scheduler has decided about a request.

    `what`: ``placed``, ``held``, ``refused`` or ``move``. `why`: its reasons, in words.
    """

    at: float
    what: str
    instance: str
    why: str


class ExplainedRequest(Resource):
    """What was decided about one generation, the oldest first."""

    request: str
    name: str
    model: str
    priority_class: str
    decisions: list[DecisionStatus]


class Explanation(Resource):
    """The generations of a request; what is not in memory is looked up in recordings."""

    api_version: Literal["v1"] = "v1"
    requests: list[ExplainedRequest]
