"""The source's half of a scheduler whose requests can leave. Core thread only.

    begin ── progress* ── cut ── (nothing of it in flight any more) ── release
                           └──────────────────────────────────────── resume

A request that was cut is out of `running` (or of its waiting queue) and stays in `requests` with
its blocks, so that an abort by its client takes vLLM's own way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from llx.agent.vllm.movable import movable_reason
from llx.core.migration import Cut, Progress
from llx.core.model import RequestId

Done = Callable[[Cut | None], None]
Listener = Callable[[RequestId, str], None]


@dataclass(slots=True)
class _Leaving:
    """A request that was cut. `done` is None once it has been called."""

    request: Request
    was_running: bool
    done: Done | None


class Departures(Scheduler):
    """A mixin; its names begin with ``llx_``, for it shares an object with vLLM."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llx_listener: Listener | None = None
        self._llx_watched: set[str] = set()
        self._llx_leaving: dict[str, _Leaving] = {}
        self._llx_notices: list[Callable[[], None]] = []

    def llx_begin(self, request_id: RequestId) -> Progress | str:
        """Watch a request from here on; a string says why it cannot leave."""
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return "no such request here"
        if request_id in self._llx_watched or request_id in self._llx_leaving:
            return "it is leaving already"
        if reason := movable_reason(request):
            return f"pinned: {reason}"
        self._llx_watched.add(request_id)
        return self._llx_progress(request)

    def llx_progress(self, request_id: RequestId) -> Progress | None:
        """How far a watched request is; None: it is watched no more."""
        request = self.requests.get(request_id)
        if request is None or request_id not in self._llx_watched:
            return None
        return self._llx_progress(request)

    def _llx_progress(self, request: Request) -> Progress:
        settled = request.num_computed_tokens - request.num_in_flight_tokens
        is_running = request.status == RequestStatus.RUNNING
        return Progress(
            num_tokens=request.num_tokens,
            num_prompt=request.num_prompt_tokens,
            num_settled=max(0, min(settled, request.num_tokens)),
            blocks=self.llx_blocks(request.request_id),
            is_waiting=not is_running and request.num_computed_tokens == 0,
        )

    def llx_blocks(self, request_id: str) -> tuple[int, ...]:
        """The block table of a request."""
        (blocks,) = self.kv_cache_manager.get_block_ids(request_id)
        return tuple(blocks)

    def llx_cut(self, request_id: RequestId, done: Done) -> None:
        """Take a watched request out of the batch or its queue; see `llx_settle`."""
        request = self.requests.get(request_id)
        if request is None or request_id not in self._llx_watched:
            done(None)
            return
        assert request_id not in self._llx_leaving, f"{request_id} was cut already"
        was_running = request.status == RequestStatus.RUNNING
        if was_running:
            self.running.remove(request)
        else:
            self.waiting.remove_requests({request})
            self.kv_holding_waiting.remove_requests({request})
            self.deferred_waiting.discard(request)
        self._llx_leaving[request_id] = _Leaving(request, was_running, done)
        self.llx_settle()

    def llx_settle(self) -> None:
        """Say what is due: between two steps, after the last one's outputs have been sent off.

        Not from within vLLM's own loops, where those who hear it could not act on it; and not
        before the outputs, or a target could emit the next token before this one left here.
        """
        for leaving in list(self._llx_leaving.values()):
            if leaving.done is not None and leaving.request.num_in_flight_tokens == 0:
                done, leaving.done = leaving.done, None
                done(self._llx_cut_of(leaving.request))
        while self._llx_notices:
            self._llx_notices.pop(0)()

    def _llx_cut_of(self, request: Request) -> Cut:
        request.spec_token_ids = []
        request.num_output_placeholders = 0
        return Cut(
            outputs=tuple(request.output_token_ids),
            num_computed=min(request.num_computed_tokens, request.num_tokens - 1),
            blocks=self.llx_blocks(request.request_id),
            priority=request.priority,
        )

    def llx_resume(self, request_id: RequestId) -> None:
        """Put a request that was cut back where it was."""
        self._llx_watched.discard(request_id)
        leaving = self._llx_leaving.pop(request_id, None)
        if leaving is None:
            return
        request = leaving.request
        if leaving.was_running:
            self.running.append(request)
            return
        if self._is_blocked_waiting_status(request.status):
            self.deferred_waiting.add(request)
        holds = self._holds_kv_blocks(request)
        (self.kv_holding_waiting if holds else self.waiting).prepend_request(request)

    def llx_release(self, request_id: RequestId) -> None:
        """Free a request that was cut; the listener is told nothing."""
        self._llx_watched.discard(request_id)
        if self._llx_leaving.pop(request_id, None) is not None:
            self.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def llx_unwatch(self, request_id: RequestId) -> None:
        """It stays, and was not cut."""
        self._llx_watched.discard(request_id)

    def llx_is_watched(self, request_id: str) -> bool:
        """Whether it is being moved away."""
        return request_id in self._llx_watched or request_id in self._llx_leaving

    def llx_is_leaving(self, request_id: str) -> bool:
        """Whether it was cut: it counts as running, whatever vLLM's status of it."""
        return request_id in self._llx_leaving

    def _llx_num_cut(self) -> int:
        """Slots of the batch that requests which were cut may come back to."""
        return sum(leaving.was_running for leaving in self._llx_leaving.values())

    def _llx_ends(self, request: Request) -> None:
        """It is being freed by vLLM: what is said of that is said by `llx_settle`."""
        leaving = self._llx_leaving.pop(request.request_id, None)
        if leaving is not None and leaving.done is not None:
            done = leaving.done
            self._llx_notices.append(lambda: done(None))
        is_aborted = request.status == RequestStatus.FINISHED_ABORTED
        self._llx_lost(request, "aborted" if is_aborted else "finished")

    def _llx_lost(self, request: Request, why: str) -> None:
        request_id, listener = RequestId(request.request_id), self.llx_listener
        if request_id not in self._llx_watched:
            return
        self._llx_watched.discard(request_id)
        if listener is not None:
            self._llx_notices.append(lambda: listener(request_id, why))
