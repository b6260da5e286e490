"""What a model's instances tell of their steps and moves, gathered while they serve."""

import time
from collections import defaultdict
from typing import Final

from llx.api import InstanceState, InstanceSteps, MigrationStatus, MoveOutcome
from llx.client import Cluster
from llx.errors import ConflictError, DeadlineError, NotFoundError, UnreachableError
from llx.sim.calibration import StepSample
from llx.sim.link_fit import MoveSample

_TRIES: Final = 6
_TRY_EVERY_S: Final = 2.0


class StepWatch:
    """Looks at the ready instances of a model, as often as it is told to.

    Raises:
        NotFoundError: There is no such model.
        ConflictError: No instance of it is ready.
    """

    def __init__(self, control: Cluster, model: str) -> None:
        status = control.status()
        if model not in {each.name for each in status.models}:
            known = ", ".join(each.name for each in status.models)
            raise NotFoundError(f'no model "{model}"', remedy=f"there are: {known}")
        ready = [
            each
            for each in status.instances
            if each.model == model and each.state is InstanceState.READY
        ]
        if not ready:
            raise ConflictError(f"no instance of {model} is ready", remedy="llx status")
        self._siblings = {each.name for each in status.instances if each.model == model}
        self.instances: Final = [each.name for each in ready]
        self.movable: Final = [each.name for each in ready if not each.cannot_migrate]
        self.steps: Final[defaultdict[str, list[StepSample]]] = defaultdict(list)
        self.lone: Final[list[tuple[int, float]]] = []
        """Prompt tokens and seconds to the first token of requests that an idle instance had."""
        self.size: InstanceSteps
        """As the first instance has it."""
        self._control = control
        self._next: dict[str, int] = {}
        self.skip()

    def skip(self) -> None:
        """What is over by now does not count."""
        for name in self.instances:
            answer = self._control.steps(name, 2**62)
            self._next[name] = answer.end
            if name == self.instances[0]:
                self.size = answer

    def recall(self) -> None:
        """What instances remember from before the watch began does count."""
        self._next.clear()

    def look(self) -> None:
        """Gather what is new; an instance that does not answer now may do so the next time."""
        for name in self.instances:
            try:
                while self._look_at(name):
                    pass
            except (UnreachableError, DeadlineError):
                continue

    def _look_at(self, name: str) -> bool:
        """Whether there was more than one answer holds."""
        answer = self._control.steps(name, self._next.get(name, 0))
        if answer.end < self._next.get(name, 0):  # it has begun anew
            self._next[name] = 0
            return True
        self.steps[name] += [StepSample(*row) for row in answer.steps if row[-1] > 0]
        self._next[name] = answer.first + len(answer.steps)
        return self._next[name] < answer.end

    def samples(self) -> list[StepSample]:
        """Of all instances, each one's in their order."""
        return [each for name in self.instances for each in self.steps[name]]

    def moves(self) -> tuple[list[MoveSample], int | None]:
        """Moves of the model that the head remembers, and the bytes of one KV block.

        Raises:
            UnreachableError: It does not answer, again and again.
        """
        found, block_bytes = [], None
        for each in self._migrations():
            is_ours = {each.source, each.target} <= self._siblings
            if is_ours and each.outcome is MoveOutcome.MOVED and each.rate > 0:
                spent_s = each.size_bytes / each.rate
                found.append(MoveSample(each.transport, each.num_stages, each.size_bytes, spent_s))
                if each.blocks_copied:
                    block_bytes = round(each.size_bytes / each.blocks_copied)
        return found, block_bytes

    def _migrations(self) -> list[MigrationStatus]:
        """Asked for when all is measured, which a head that is away for seconds should not cost."""
        for _ in range(_TRIES - 1):
            try:
                return self._control.migrations()
            except (UnreachableError, DeadlineError):
                time.sleep(_TRY_EVERY_S)
        return self._control.migrations()
