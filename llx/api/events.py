"""The trail of what happened and who did what."""

from typing import Literal

from pydantic import Field

from llx.api.resource import MAX_NOTE_CHARS, MAX_VERB_CHARS, Resource


class EventStatus(Resource):
    """Something that happened, or was done: its kind, such as ``instance.failed``, and by whom.

    `at` in seconds of the epoch; `fields`: what else is told of it, by its kind.
    """

    at: float
    kind: str
    user: str = ""
    fields: dict[str, str | float | bool | None] = {}


class EventList(Resource):
    """Events, the oldest first: the last of the `num_found` that a filter lets through.

    `cursor`: to be given as `after` for what comes next.
    """

    api_version: Literal["v1"] = "v1"
    events: list[EventStatus]
    num_found: int = 0
    cursor: str = ""


class NoteRequest(Resource):
    """Body of ``POST /v1/events``: what an operator has done to the cluster past its head.

    `verb`: of ``llx``, such as ``model add``; `text`: to what, in words.
    """

    verb: str = Field(min_length=1, max_length=MAX_VERB_CHARS)
    text: str = Field(max_length=MAX_NOTE_CHARS)
    user: str = ""


class NoteReport(Resource):
    """The event is in the audit trail."""

    api_version: Literal["v1"] = "v1"
