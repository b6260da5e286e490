"""vLLM's engine core, keeping what its steps cost. Core thread only."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from vllm.v1.engine.core import EngineCoreProc

from llx.agent.step_log import StepLog
from llx.agent.vllm.step_work import work_of


class RecordingEngineCore(EngineCoreProc):
    """Both of vLLM's loops: a step when the last one is done, or a step ahead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._llx_step_log = StepLog()
        super().__init__(*args, **kwargs)

    def _process_engine_step(self) -> bool:
        self._llx_step_log.begin(time.perf_counter_ns())
        model_executed: bool = super()._process_engine_step()
        if not self.has_work():
            self._llx_step_log.pause()
        return model_executed

    @contextmanager
    def capture_iteration_details(self, scheduler_output: Any) -> Generator[Any, None, None]:
        """Around vLLM's waiting for a step's outputs: where it ends, they are known."""
        with super().capture_iteration_details(scheduler_output) as details:
            yield details
        if scheduler_output is None or not scheduler_output.total_num_scheduled_tokens:
            self._llx_step_log.pause()  # an empty step is none
        else:
            self._llx_step_log.note(work_of(scheduler_output), time.perf_counter_ns())

    def llx_steps(self) -> dict[str, Any]:
        """The utility that shows what the last steps cost (`llx.wire.StepRows`)."""
        return self._llx_step_log.answer()
