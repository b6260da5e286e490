"""An engine in virtual time: steps follow each other for as long as there is something to run.

    act ─► [ step ][ step ][ step ] … idle            each end: tokens out, moves told
    leap   [ 1    2    3 …        n ]                 like steps, as one event

A leap is cut short where somebody looks (its steps up to then are carried out, the rest goes on)
or acts (the step under way becomes the last of the leap). So it shows in nothing but the number of
events.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from llx.core.engine_model import EngineModel, Step, TokenOutput
from llx.core.engine_state import EngineConfig, EngineRequest
from llx.core.model import Epoch, InstanceId, InstanceLoad, Nanos, RequestId
from llx.sim.kernel import Kernel, Timer

T = TypeVar("T")


class Listener(Protocol):
    """Who hears what an engine does."""

    def planned(self, engine: "SimEngine", preempted: Sequence[RequestId]) -> None:
        """A step begins, for which some were preempted."""

    def leapt(self, engine: "SimEngine", at: Nanos) -> None:
        """Everything that runs has made tokens, the last of them at `at`."""

    def said(self, engine: "SimEngine", outputs: Sequence[TokenOutput]) -> None:
        """A step has ended with these tokens, now."""


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
        leaps: Whether like steps are taken at once.
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
        self._config = config
        self._listener = listener
        self._leaps = leaps
        self._model = EngineModel(config, _Counting())
        self._step: Step | None = None
        self._num_alike = 1
        self._silent: set[RequestId] = set()
        """Taken into the batch, and no token has come of it since."""
        self._timer: Timer | None = None

    def act(self, action: Callable[[EngineModel], T]) -> T:
        """Do something to the engine, between two steps of it or while one is under way."""
        self._settle()
        if self._step is not None and self._num_alike > 1:
            self._num_alike = 1
            assert self._timer is not None, "a step has an end"
            self._timer.cancel()
            self._end_at(Nanos(self._step.started_at + self._step.duration_ns))
        done = action(self._model)
        self._model.moves.tell()
        if self._step is None:
            self._begin()
        return done

    def look(self, view: Callable[[EngineModel], T]) -> T:
        """See the engine as it is now; `view` changes nothing."""
        self._settle()
        return view(self._model)

    def load(self) -> InstanceLoad:
        """Its load now."""
        return self.look(lambda model: model.load())

    def running(self) -> list[RequestId]:
        """Who makes tokens, as of the last step that was carried out."""
        return self._model.running()

    # ------------------------------------------------------------------ steps

    def _begin(self) -> None:
        step = self._model.schedule(self._kernel.now)
        self._step = step
        if step is None:
            return
        if step.preempted:
            self._listener.planned(self, step.preempted)
        self._num_alike = self._model.leap_limit(step) if self._may_leap(step) else 1
        if self._num_alike == 1:
            self._end_at(Nanos(step.started_at + step.duration_ns))
        else:
            self._end_at(self._after(step, self._num_alike))

    def _may_leap(self, step: Step) -> bool:
        """Not while somebody's first token here, or first after a preemption, is still to come."""
        if not self._leaps:
            return False
        self._silent.update(step.admitted)
        if self._silent:
            self._silent.intersection_update(self._model.running())
        return not self._silent

    def _end_at(self, time: Nanos) -> None:
        self._timer = self._kernel.step_ends(time, self.key, self._end)

    def _after(self, step: Step, count: int) -> Nanos:
        """When `count` steps like this one, itself the first, are over."""
        context = sum(chunk.end for chunk in step.chunks)
        lasts = self._config.step_time.of_decodes(len(step.chunks), context, count)
        return Nanos(step.started_at + lasts)

    def _end(self) -> None:
        if self._num_alike > 1:
            self._carry_out(self._num_alike - 1)
        assert self._step is not None, "a step that ends has begun"
        outputs = self._model.complete(self._step)
        self._step = None
        self._silent.difference_update(each.request for each in outputs)
        self._listener.said(self, outputs)
        self._model.moves.tell()
        self._begin()

    def _settle(self) -> None:
        """Carry out the steps of a leap that are over by now."""
        step = self._step
        if step is None or self._num_alike == 1 or self._kernel.now == step.started_at:
            return
        low, high = 0, self._num_alike - 1
        while low < high:
            middle = (low + high + 1) // 2
            is_over = self._after(step, middle) <= self._kernel.now
            low, high = (middle, high) if is_over else (low, middle - 1)
        if low:
            self._carry_out(low)

    def _carry_out(self, count: int) -> None:
        assert self._step is not None, "a leap has an open step"
        now = self._after(self._step, count)
        self._model.leap(self._step, count)
        self._listener.leapt(self, now)
        self._step = self._model.schedule(now)
        self._num_alike -= count
        assert self._step is not None, "what ran runs on"
