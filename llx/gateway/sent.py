"""What a pool's client knows of a request that it has sent, or will send, to an instance."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llx.core.model import ClassName, RequestId
from llx.gateway.context import RequestContext
from llx.gateway.pace import Pace
from llx.ports import Frame


@dataclass(slots=True)
class Sent:
    """What it takes to send a request again, and how its tokens come."""

    request: RequestId
    payload: Sequence[Frame]
    prompt_tokens: int
    http: RequestContext | None
    priority_class: ClassName
    since: float
    outputs: list[int] = field(default_factory=list)
    """Its tokens so far: an instance that takes it over goes on after them."""
    num_losses: int = 0
    """Instances that it was lost with in a row, before a token came."""
    num_placements: int = 0
    """How often it was placed anew."""
    max_tokens: int | None = None
    """It ends with so many; None: at the model's length."""
    sent_at: float | None = None
    """When it went to its first instance, monotonic seconds; None: not yet."""
    why_again: str = ""
    """Why it has to be placed again; empty at first."""
    pause: asyncio.TimerHandle | None = None
    """Ends the pause before it is."""
    deadline: asyncio.TimerHandle | None = None
    """Ends it, when its client waits no longer."""
    pace: Pace = field(default_factory=Pace)

    @property
    def name(self) -> str:
        """What operators know it by."""
        return self.http.request_id if self.http is not None else ""

    @property
    def num_tokens(self) -> int:
        """What an instance has to compute before its next token."""
        return self.prompt_tokens + len(self.outputs)

    def reclass(self, name: ClassName, priority: int) -> None:
        """Send it as of another class from now on."""
        request: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(self.payload)
        request.priority = priority
        self.payload = MsgpackEncoder().encode(request)
        self.priority_class = name
