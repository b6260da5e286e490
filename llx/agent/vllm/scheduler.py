"""vLLM's schedulers, whose requests can leave and arrive. Core thread only.

Here: which one an engine gets, and vLLM's own methods where the two halves have a say in them. What
a migration does to vLLM's bookkeeping is in `departures` and `arrivals`; who asks for it and why is
the llumlet's, and the bytes are the transport's.
"""

from typing import Any, Final

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request

from llx.agent.vllm.arrivals import Arrivals
from llx.agent.vllm.departures import Departures
from llx.agent.vllm.movable import pinned_by_config
from llx.core.migration import Progress
from llx.core.model import RequestId

WORKER_EXTENSION: Final = "llx.agent.vllm.worker.LlxWorker"


def enable_migration(config: Any) -> str:
    """Choose the scheduler and the worker extension in a `VllmConfig` that is complete otherwise.

    vLLM has decided by then whether it schedules asynchronously, and that stays as it is. What is
    returned says why requests of such an instance cannot move; then nothing is changed.
    """
    if reason := pinned_by_config(config):
        return reason
    scheduler = config.scheduler_config
    scheduler.scheduler_cls = (
        MigratingAsyncScheduler if scheduler.async_scheduling else MigratingScheduler
    )
    config.parallel_config.worker_extension_cls = WORKER_EXTENSION
    return ""


class _Migrating(Departures, Arrivals):
    """Both halves, and their say in vLLM's methods."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._llx_max_active: int = self.max_num_active_reqs
        self.llx_num_preemptions = 0
        # A step in flight may still write into blocks whose request has ended. vLLM's next owner
        # of them writes behind it on the same stream; what a migration writes comes from outside.
        self.defer_block_free = self.vllm_config.max_concurrent_batches > 1

    def llx_begin(self, request_id: RequestId) -> Progress | str:
        """Its own worker does not know yet what a request brought that is not in the batch yet."""
        if request_id in self._llx_arrivals:
            return "it has only just arrived"
        return super().llx_begin(request_id)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Keep the slots of requests that were cut, and tell the workers who has arrived."""
        self.max_num_active_reqs = self._llx_max_active - self._llx_num_cut()
        output = super().schedule(throttle_prefills)
        self._llx_announce(output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Count down what is in flight of requests that ended."""
        self._llx_count_down(scheduler_output.num_scheduled_tokens)
        return super().update_from_output(scheduler_output, model_runner_output)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Refuse what would fail half-way: blocks of requests that move are in nobody's reach."""
        if reset_running_requests and (self._llx_leaving or self._llx_shadows):
            return False
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.llx_num_preemptions += 1
        self._llx_lost(request, "preempted")

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._llx_frees(request)
        self._llx_ends(request)
        return super()._free_request(request, *args, **kwargs)


class MigratingScheduler(_Migrating):
    """For an engine that schedules a step when the last one is done."""


class MigratingAsyncScheduler(_Migrating, AsyncScheduler):
    """For an engine that schedules a step ahead."""
