"""What operators ask of an engine core by utilities: what it holds, other classes, pins.

Works on vLLM's own schedulers, too: an instance whose requests cannot move has operators as well.
All on the core thread, between two steps.
"""

from typing import TYPE_CHECKING, Any, cast

import msgspec
from vllm.v1.core.sched.request_queue import PriorityRequestQueue

from llx.agent.ownership import Ownership
from llx.agent.vllm.migrating import request_views
from llx.core.model import RequestId
from llx.ports import IS_LEAVING, NOT_HERE
from llx.wire import oldest_of

if TYPE_CHECKING:
    from llx.agent.vllm.engine import LlxEngineCore


class OperatorCalls:
    """The utilities, as methods of an engine core; vLLM looks them up by name."""

    llx_ownership: Ownership
    scheduler: Any

    def llx_requests(self) -> list[dict[str, Any]]:
        """All that is held here (`RequestView`)."""
        return [msgspec.to_builtins(view) for view in request_views(cast("LlxEngineCore", self))]

    def llx_oldest_requests(self, count: int) -> dict[str, Any]:
        """`OldestRequests`."""
        views = request_views(cast("LlxEngineCore", self))
        found: dict[str, Any] = msgspec.to_builtins(oldest_of(views, count))
        return found

    def llx_set_priority(self, request: str, priority: int) -> bool:
        """`llx.ports.SET_PRIORITY`."""
        return set_priority(self.scheduler, request, priority)

    def llx_pin(self, request: str, words: str) -> str:
        """`llx.ports.PIN`."""
        is_leaving = getattr(self.scheduler, "llx_is_watched", None)
        if words and is_leaving is not None and is_leaving(request):
            return IS_LEAVING
        return "" if self.llx_ownership.pin(RequestId(request), words) else NOT_HERE


def set_priority(scheduler: Any, request_id: str, priority: int) -> bool:
    """See `llx.ports.MigratingEngine.set_priority`. A request that waits gets the place for it.

    In the batch vLLM looks at priorities when it has to preempt, at no other time.
    """
    request = scheduler.requests.get(request_id)
    is_cut = getattr(scheduler, "llx_is_leaving", None)
    if request is None or request.is_finished() or (is_cut is not None and is_cut(request_id)):
        return False
    queues = [
        each
        for each in (scheduler.waiting, scheduler.kv_holding_waiting)
        if isinstance(each, PriorityRequestQueue) and request in each
    ]
    for queue in queues:  # one, or none; a heap must not change under itself
        queue.remove_request(request)
    request.priority = priority
    for queue in queues:
        queue.add_request(request)
    return True
