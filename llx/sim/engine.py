"""An engine in virtual time: steps follow each other for as long as there is something to run.

    act ─► [ step ][ step ][ step ] … idle            each end: tokens out, moves told
    leap   [ 1    2    3 …        n ]                 a row of like steps, as one event

A leap is cut short where somebody acts: the step under way becomes its last. Who looks does not
disturb it. So it shows in nothing but the number of events.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from llx.core.engine_leap import LikeSteps
from llx.core.engine_model import EngineModel, Step, TokenOutput
from llx.core.engine_state import EngineConfig, EngineRequest
from llx.core.model import Blocks, Epoch, InstanceId, InstanceLoad, Nanos, RequestId
from llx.sim.kernel import Kernel, Timer

T = TypeVar("T")

_EVER: Final = 1 << 62
"""Later than anything: as long as nobody acts."""


class Listener(Protocol):
    """Who hears what an engine does."""

    def planned(self, engine: "SimEngine", preempted: Sequence[RequestId]) -> None:
        """A step begins, for which some were preempted."""

    def said(self, engine: "SimEngine", outputs: Sequence[TokenOutput]) -> None:
        """A step has ended with these tokens, now.

        Not heard of are steps in which everybody makes a token that is neither the first here, nor
        the first after a preemption, nor the last; nor the last before the batch changes.
        """


class _Counting:
    """Tokens do not matter here, only their number."""

    def compute(self, tokens: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> None:
        """Nothing."""

    def sample(
        self,
        request: EngineRequest,
        num_tokens: int,
        blocks: Sequence[int],
        banned: frozenset[int],
    ) -> int:
        """Any token."""
        return 0


class SimEngine:
    """One instance's engine.

    Args:
        kernel: The clock.
        key: Orders the ends of steps that coincide; no other engine's.
        name: The instance.
        config: Its size.
        listener: Who hears.
        leaps: Whether a row of like steps is one event; else each is one.
    """

    def __init__(
        self,
        kernel: Kernel,
        key: int,
        name: InstanceId,
        config: EngineConfig,
        listener: Listener,
        *,
        leaps: bool,
    ) -> None:
        self.name: Final = name
        self.key: Final = key
        self.epochs: dict[RequestId, Epoch] = {}
        """Under which epoch each request is held here."""
        self._kernel = kernel
        self._listener = listener
        self._leaps = leaps
        self._model = EngineModel(config, _Counting())
        self._step: Step | None = None
        self._row: LikeSteps | None = None
        """That the open step has begun, and that is ahead of the model."""
        self._seen: tuple[InstanceLoad, Blocks | None] | None = None
        """Load and queue's head as of the last look, if nothing has happened since."""
        self.same_until: int = 0
        """Before that `load_and_head` returns what it returned last; past: nobody knows."""
        self._silent: set[RequestId] = set()
        """Taken into the batch, and no token has come of it since."""
        self._timer: Timer | None = None

    def act(self, action: Callable[[EngineModel], T]) -> T:
        """Do something to the engine, between two steps of it or while one is under way."""
        row = self._row
        if row is not None:
            self._settle(row)
            self._row = None
            if self._leaps:
                assert self._timer is not None, "a step has an end"
                self._timer.cancel()
                self._end_at(Nanos(row.ends_at))
        self._seen, self.same_until = None, 0
        done = action(self._model)
        self._model.moves.tell()
        if self._step is None:
            self._begin()
        return done

    def look(self, view: Callable[[EngineModel], T]) -> T:
        """See the engine as it is now; `view` changes nothing."""
        if self._row is not None:
            self._settle(self._row)
        return view(self._model)

    def load_and_head(self) -> tuple[InstanceLoad, Blocks | None]:
        """Its load now, and the demand of the first that waits; the same object if unchanged."""
        row, seen = self._row, self._seen
        if row is None:
            if seen is None:
                seen = self._seen = (self._model.load(), self._model.queue_head())
            self.same_until = _EVER
            return seen
        if row.free_until <= self._kernel.now:
            row.advance(self._kernel.now)
        self.same_until = row.free_until
        if seen is None:
            seen = self._seen = (self._model.load_in(row), self._model.queue_head())
        elif seen[0].free != row.num_free:
            seen = self._seen = (seen[0].with_free(row.num_free), seen[1])
        return seen

    # ------------------------------------------------------------------ steps

    def _begin(self) -> None:
        self._step = step = self._model.schedule(self._kernel.now)
        self._seen, self.same_until = None, 0
        if step is None:
            return
        if step.preempted:
            self._listener.planned(self, step.preempted)
        self._row = row = None if self._expects(step) else self._model.like_steps(step)
        if row is None:
            self._end_at(Nanos(step.started_at + step.duration_ns))
        else:
            self._end_at(row.last_ends_at() if self._leaps else Nanos(row.ends_at))

    def _expects(self, step: Step) -> bool:
        """Whether somebody's first token here, or first after a preemption, is still to come."""
        if step.admitted:
            self._silent.update(step.admitted)
        elif not self._silent:
            return False
        self._silent.intersection_update(self._model.running())
        return bool(self._silent)

    def _end_at(self, time: Nanos) -> None:
        self._timer = self._kernel.step_ends(time, self.key, self._end)

    def _end(self) -> None:
        row, step = self._row, self._step
        assert step is not None, "a step that ends has begun"
        if row is not None:
            now = self._kernel.now
            row.advance(now)
            if row.ends_at > now:
                assert self._timer is not None, "it is what has come here"
                self._kernel.step_ends_again(Nanos(row.ends_at), self.key, self._timer)
                return
            self._settle(row)
            self._row = None
        outputs = self._model.complete(step)
        self._step = None
        if self._silent:
            self._silent.difference_update([each.request for each in outputs])
        self._listener.said(self, outputs)
        self._model.moves.tell()
        self._begin()

    def _settle(self, row: LikeSteps) -> None:
        row.advance(self._kernel.now)
        self._model.settle(row)
