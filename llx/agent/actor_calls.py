"""What the head says to a node agent in another process, and how that answers. Pure.

One message each way, as JSON. Two fences keep a call from being carried out by mistake:

- `Request.term`: an agent that has heard a newer head obeys no older one.
- `Request.ticket`: a call that changes something must show a ticket that the agent gave out moments
  ago. A call may lie in a queue for minutes, because the host was off or cut off; by then the head
  has long reported that it failed, and perhaps decided otherwise.
"""

from typing import NoReturn

import msgspec

from llx import errors
from llx.agent.devices import Need
from llx.core.model import Term
from llx.errors import LlxError, RemoteError
from llx.head_copy import HeadCopy
from llx.specs import GatewaySpec, InstanceSpec


class Observe(msgspec.Struct, frozen=True, tag=True):
    """Answered by a `HostView`; needs no ticket."""


class StartInstance(msgspec.Struct, frozen=True, tag=True):
    """Answered by the devices it got."""

    spec: InstanceSpec
    needs: list[Need]
    cores_each: int | None


class StartGateway(msgspec.Struct, frozen=True, tag=True):
    """Answered by nothing."""

    spec: GatewaySpec


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Answered by the last `ShimRecord`, or None."""

    name: str
    grace_s: float


class Release(msgspec.Struct, frozen=True, tag=True):
    """Answered by nothing."""

    name: str


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Answered by nothing."""

    name: str


class ReadLog(msgspec.Struct, frozen=True, tag=True):
    """Answered by a `LogPart`; needs no ticket."""

    name: str
    offset: int | None
    limit: int
    tail: int


class KeepCopy(msgspec.Struct, frozen=True, tag=True):
    """Answered by nothing."""

    copy: HeadCopy


AgentCall = KeepCopy | Observe | StartInstance | StartGateway | Stop | Release | Forget | ReadLog


class Request(msgspec.Struct, frozen=True):
    """A call, by the head of that term."""

    term: Term
    call: AgentCall
    ticket: str = ""


class Failure(msgspec.Struct, frozen=True):
    """An `LlxError` that travels."""

    kind: str
    message: str
    remedy: str = ""
    detail: str = ""

    @classmethod
    def of(cls, error: LlxError) -> "Failure":
        """`error`, to be raised again at the other end."""
        return cls(type(error).__name__, error.message, error.remedy, error.detail)

    def throw(self) -> NoReturn:
        """Raise it.

        Raises:
            LlxError: Of the same class, where that can be made from a message alone.
        """
        kind = getattr(errors, self.kind, RemoteError)
        if not (isinstance(kind, type) and issubclass(kind, LlxError)) or kind is errors.HostError:
            kind = RemoteError
        raise kind(self.message, remedy=self.remedy, detail=self.detail)


class Answer(msgspec.Struct, frozen=True):
    """A value or a failure, and a ticket for the next call."""

    ticket: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None
