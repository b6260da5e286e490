"""What operators want changed of requests that this gateway has: carried out, and answered.

The gateway is asked because it holds the stream: it knows the request wherever that is by now, and
has it sent anew when an instance is lost. So a change is made here first, then where it is.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from llx.agent.link import InstanceLink, encode_arguments
from llx.core.model import RequestId
from llx.errors import RemoteError, UnreachableError
from llx.ports import SET_PRIORITY
from llx.wire import CancelRequests, Change, Changed, ReclassRequests

if TYPE_CHECKING:
    from llx.gateway.engine_client import PoolClient

log = logging.getLogger(__name__)

TAKES_S: Final = 2.0
"""So long a request may be between two instances, so that neither takes its new priority."""
_AGAIN_S: Final = 0.05
_CALL_S: Final = 0.5


class Changes:
    """Carries changes out.

    Args:
        clients: Gives the clients of all pools.
        answer: Sends to the scheduler; what is lost is not sent again.
    """

    def __init__(
        self, clients: "Callable[[], list[PoolClient]]", answer: Callable[[Changed], object]
    ) -> None:
        self._clients = clients
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, change: Change) -> None:
        """Begin with a change."""
        task = asyncio.get_running_loop().create_task(self._carry_out(change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()

    async def _carry_out(self, change: Change) -> None:
        match change:
            case CancelRequests():
                self._answer(Changed(change.change, self._cancel(change.requests), []))
            case ReclassRequests():
                whys = await asyncio.gather(
                    *(self._reclass(each, change) for each in change.requests)
                )
                found = list(zip(change.requests, whys, strict=True))
                done = [request for request, why in found if why == ""]
                not_done = [(request, why) for request, why in found if why]
                self._answer(Changed(change.change, done, not_done))

    def _cancel(self, requests: Sequence[RequestId]) -> list[RequestId]:
        """End those that are here, and say which were: one may end its siblings with it."""
        clients = self._clients()
        here = [(each, client) for each in requests for client in clients if client.has(each)]
        for request, client in here:
            client.cancel(request)
        return [request for request, _ in here]

    async def _reclass(self, request: RequestId, change: ReclassRequests) -> str | None:
        """Why it has not come about, empty if it has; None: this gateway does not have it."""
        for client in self._clients():
            if client.reclass(request, change.priority_class, change.priority):
                return await _reclass_at_holder(client, request, change.priority)
        return None


async def _reclass_at_holder(client: "PoolClient", request: RequestId, priority: int) -> str:
    """Have the instance that has a request know its priority; empty once one does, or none has it.

    Where it was cut, to go elsewhere, it takes none, and where it goes none either before it is
    there: so both are asked until one does.
    """
    end = time.monotonic() + TAKES_S
    while holders := client.holders(request):
        for link in holders:
            if await _takes(link, request, priority):
                return ""
        if time.monotonic() > end:
            names = " or ".join(link.member.instance for link in holders)
            return f"not taken within {TAKES_S:g} s by {names}"
        await asyncio.sleep(_AGAIN_S)
    return ""


async def _takes(link: InstanceLink, request: RequestId, priority: int) -> bool:
    try:
        frames = await link.call(SET_PRIORITY, encode_arguments(request, priority), _CALL_S)
        return msgspec.msgpack.decode(b"".join(frames), type=bool)
    except (UnreachableError, RemoteError, TimeoutError, msgspec.DecodeError) as error:
        log.info(
            "changes.not_taken request=%s instance=%s error=%s",
            request,
            link.member.instance,
            error,
        )
        return False
