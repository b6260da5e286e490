"""What the gateway knows of one HTTP request while vLLM's front end works on it.

The outer application sets `current`; the engine-core client, called deep inside vLLM in the same
context, reads it. Nothing else in between needs to know.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from llx.gateway.refusals import Refusal


@dataclass(slots=True)
class RequestContext:
    """One HTTP request: who sent it, its ids and class, and where its generations went."""

    request_id: str
    """`x-llx-request-id`: unique in the cluster."""
    client_id: str
    """`x-request-id`: the client's own id, or the same as `request_id`."""
    tenant: str
    class_name: str
    priority: int
    arrived: float = field(default_factory=time.monotonic)
    """When its first bytes were read, monotonic seconds: what waits here waits, too."""
    instances: list[str] = field(default_factory=list)
    """Instance of each generation (one per choice), in order of dispatch."""
    deadline: float | None = None
    """When nobody waits for it any longer, on the clock of the event loop."""
    limit_s: float = 0.0
    """How long that was from its arrival, as its client said."""
    charge: Callable[[int], None] = lambda _: None
    """Told of its tokens, prompts and outputs, as they are computed."""
    is_read: bool = False
    """Whether vLLM has made a request to an engine of it."""
    refusal: Refusal | None = None
    """Why a generation of it was not taken; the answer, if nothing was answered yet."""


current: ContextVar[RequestContext | None] = ContextVar("llx_request", default=None)
