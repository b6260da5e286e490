"""How many instances a model has, changed from one variant's turn to the next, and put back.

    before its turn: fixed at the least it may have → settled → its range

So whatever the variant before it has left, each turn of a range begins with as many.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from llx.api import InstanceState, ModelStatus, ScaleRequest
from llx.bench.scenario import InstanceRange, Variant
from llx.client import ControlClient
from llx.errors import ConfigError, DeadlineError, NotFoundError

_SETTLED_S: Final = 900.0
"""An instance may have to be started, and a large model takes minutes to load."""
_POLL_S: Final = 0.5


class InstanceTurns:
    """Has a model as many instances as each variant says while it is that one's turn.

    Nothing is asked of the cluster where no variant says anything.

    Args:
        control: Of the cluster; None: there is none.
        model: Whose instances.
        variants: All of them.
        user: Who is at work, for the audit trail.

    Raises:
        ConfigError: There are numbers, and no cluster that they could be of.
    """

    def __init__(
        self, control: ControlClient | None, model: str, variants: Sequence[Variant], user: str
    ) -> None:
        is_asked = any(each.instances is not None for each in variants)
        if control is None and is_asked:
            raise ConfigError("instances need a cluster of llx: give --context instead of a URL")
        self._control = control if is_asked else None
        self._model = model
        self._variants = variants
        self._user = user
        self._before = self._in_force = InstanceRange(min=0, max=1)

    def __enter__(self) -> Self:
        """Remember the range that is in force, and have all variants' checked.

        Raises:
            NotFoundError: The cluster has no such model.
            ConflictError: It has no room for so many.
        """
        if self._control is None:
            return self
        self._before = self._in_force = _range_of(self._status())
        for each in self._variants:
            if each.instances is not None:
                self._scale(each.instances, is_dry_run=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back the range that was in force; nobody waits until there are so many again."""
        if self._in_force != self._before:
            self._scale(self._before)

    def begin(self, variant: Variant) -> None:
        """It is this variant's turn: returns when it has the instances that it begins with.

        Raises:
            DeadlineError: They do not come, or others do not go.
        """
        if self._control is None:
            return
        wanted = variant.instances or self._before
        fixed = InstanceRange(min=wanted.min, max=wanted.min)
        if self._in_force != fixed:
            self._scale(fixed)
        self._settle(wanted.min)
        if wanted != fixed:
            self._scale(wanted)

    def _settle(self, count: int) -> None:
        assert self._control is not None, "instances have a cluster"
        deadline = time.monotonic() + _SETTLED_S
        while True:
            states = [
                each.state
                for each in self._control.status().instances
                if each.model == self._model and each.state is not InstanceState.STOPPED
            ]
            if states == [InstanceState.READY] * count:
                return
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{self._model} has not come to {count} instances: {', '.join(states)}",
                    remedy="llx inst ls",
                )
            time.sleep(_POLL_S)

    def _status(self) -> ModelStatus:
        assert self._control is not None, "instances have a cluster"
        models = {each.name: each for each in self._control.status().models}
        if self._model not in models:
            raise NotFoundError(f"the cluster has no model {self._model}: {', '.join(models)}")
        return models[self._model]

    def _scale(self, wanted: InstanceRange, *, is_dry_run: bool = False) -> None:
        assert self._control is not None, "instances have a cluster"
        request = ScaleRequest(
            min=wanted.min, max=wanted.max, is_dry_run=is_dry_run, user=self._user
        )
        self._control.scale(self._model, request)
        if not is_dry_run:
            self._in_force = wanted


def _range_of(status: ModelStatus) -> InstanceRange:
    return InstanceRange(min=status.instances_min, max=status.instances_max)
