"""Answers that end a request at the gateway, in OpenAI's error shape."""

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from llx.core.scheduler.commands import Refusal as Reason
from llx.wire import NotPlaced

RETRY_AFTER_S: Final = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client hears instead of an answer. `retry_after_s`: 0: not to be tried again."""

    status: int
    kind: str
    message: str
    retry_after_s: int = 0

    def body(self) -> bytes:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.status}
        return msgspec.json.encode({"error": error})


NO_INSTANCE: Final = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailable", "no instance is ready", RETRY_AFTER_S
)

LOST: Final = "LostError"
"""The kind of an answer to a request that was taken, and could not be finished."""


def lost(reason: str) -> Refusal:
    """It was taken and has failed: for a client to which nothing was said yet."""
    message = f"the request was lost: {reason}"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, LOST, message, RETRY_AFTER_S)


CANCELLED: Final = Refusal(
    499, "CancelledError", "the request was cancelled by an operator", retry_after_s=0
)
"""499, as where gRPC's CANCELLED has to be an HTTP status: clients do not repeat by themselves what
ends with it, as they do with 5xx."""

_TIMED_OUT: Final = "TimeoutError"


def timed_out(limit_s: float) -> Refusal:
    """It did not end in the time that its client gave it."""
    message = f"the request did not end within the {limit_s:g} s that it was given"
    return Refusal(HTTPStatus.GATEWAY_TIMEOUT, _TIMED_OUT, message)


OF_TAKEN: Final = frozenset({LOST, CANCELLED.kind, _TIMED_OUT})
"""The kinds of answers to requests that were taken first."""

_OF_REASON: Final = {
    Reason.QUEUE_FULL: (429, "TooManyRequests", "the queue of {pool} is full"),
    Reason.TOO_BUSY: (429, "TooManyRequests", "so many wait for {pool} that it would be too late"),
    Reason.WAITED_TOO_LONG: (503, "ServiceUnavailable", "no instance of {pool} had room in time"),
    Reason.OUT_OF_TIME: (
        504,
        _TIMED_OUT,
        "the request waited for {pool} until it could not end any more in the time it was given",
    ),
    Reason.TOO_LARGE: (400, "BadRequestError", "the request is larger than an instance of {pool}"),
    Reason.NO_SUCH_POOL: (404, "NotFoundError", "The model `{pool}` does not exist."),
}


def of_answer(answer: NotPlaced, pool: str) -> Refusal:
    """The scheduler's no, for a client."""
    known = {each.value: each for each in Reason}
    if answer.reason not in known:  # of a scheduler of another version
        return NO_INSTANCE
    status, kind, message = _OF_REASON[known[answer.reason]]
    retry_after_s = math.ceil(answer.retry_after_s)
    return Refusal(status, kind, message.format(pool=pool), retry_after_s)
