"""Requests, and what an operator does to them."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from llx.api.resource import Resource


class RequestStatus(Resource):
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


class RequestList(Resource):
    """Requests, the oldest first: all, or a page of those that a filter lets through.

    `num_found`: how many it lets through. `not_asked`: instances of which they are not known,
    ``instance: reason``.
    """

    api_version: Literal["v1"] = "v1"
    requests: list[RequestStatus]
    num_found: int = 0
    not_asked: list[str] = []


class RequestVerb(StrEnum):
    """What can be done to requests."""

    CANCEL = "cancel"
    """End them; their clients are told."""
    SET_PRIORITY = "set-priority"
    """Serve them as of another class, wherever they are and come to be."""
    PIN = "pin"
    """Keep them where they are: no rule, order or drain moves them."""
    UNPIN = "unpin"


class RequestChange(Resource):
    """Do something to requests; each by any of its ids, with all its generations.

    `priority_class`: of `RequestVerb.SET_PRIORITY`. `is_dry_run`: only say to which it would be
    done.
    """

    ids: list[Annotated[str, Field(max_length=512)]] = Field(min_length=1, max_length=1000)
    priority_class: str = Field(default="", max_length=256)
    is_dry_run: bool = False
    user: str = ""


class NotChanged(Resource):
    """A request that was meant and to which it was not done; `error`: see `ErrorBody`."""

    given: str
    error: Literal["not_found", "conflict", "unreachable"]
    reason: str
    remedy: str = ""


class RequestChangeReport(Resource):
    """To which requests it was done, as they are since; or as they were, if they have ended."""

    api_version: Literal["v1"] = "v1"
    changed: list[RequestStatus] = []
    not_changed: list[NotChanged] = []
