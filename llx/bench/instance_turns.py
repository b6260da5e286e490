"""How many instances a model has, changed from one variant's turn to the next, and put back.

    begin: fixed at the least it may have → settled → (warm-up) → open: its range

So whatever the variant before it has left, each turn of a range begins with as many.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from llx.api import InstanceState, InstanceStatus, ScaleRequest
from llx.bench.scenario import Variant
from llx.client import Cluster
from llx.cluster_file import InstanceRange
from llx.errors import ConfigError, ConflictError, DeadlineError, LlxError, NotFoundError

_SETTLED_S: Final = 900.0
"""An instance may have to be started, and a large model takes minutes to load."""
_FAILED_S: Final = 60.0
"""One that has failed for so long is not waited for; before, it may be started again."""
_LEAVING_S: Final = 90.0
"""So long an instance that ends may keep its name from another one."""
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
        self, control: Cluster | None, model: str, variants: Sequence[Variant], user: str
    ) -> None:
        is_asked = any(each.instances is not None for each in variants)
        if control is None and is_asked:
            raise ConfigError("instances need a cluster of llx: give --context instead of a URL")
        self._control = control if is_asked else None
        self._model = model
        self._variants = variants
        self._user = user
        self._before = InstanceRange()
        self._in_force: InstanceRange | None = None
        """None: not known."""

    def __enter__(self) -> Self:
        """Remember the range that is in force, and have all variants' checked.

        Whether there is room for the most of a range shows only when so many are wanted.

        Raises:
            NotFoundError: The cluster has no such model.
            ConfigError: A variant is scaled by its load, and the model's rules are paused.
            ConflictError: There is no room for the least of one.
        """
        if self._control is None:
            return self
        models = {each.name: each for each in self._control.status().models}
        if self._model not in models:
            raise NotFoundError(f"the cluster has no model {self._model}: {', '.join(models)}")
        found = models[self._model]
        self._before = InstanceRange(min=found.instances_min, max=found.instances_max)
        self._in_force = self._before
        wanted = [each.instances for each in self._variants if each.instances is not None]
        if any(each.min < each.max for each in wanted):
            self._check_not_paused(self._control)
        for each in wanted:
            self._control.scale(self._model, self._request(each, is_dry_run=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back the range that was in force, and wait for it, unless something has failed.

        If it cannot be put back after a failure, a note on that says what is left to do.
        """
        if self._control is None or self._in_force == self._before:
            return
        try:
            self._scale(self._before)
        except LlxError as failure:
            if error is None:
                raise
            wanted = f"--min {self._before.min} --max {self._before.max}"
            error.add_note(
                f"{self._model} does not have the instances that it had ({failure.message}): "
                f"llx scale {self._model} {wanted}"
            )
        else:
            if error is None:
                self._settle(self._before)

    def begin(self, variant: Variant) -> None:
        """It is this variant's turn: returns when it has the instances that it begins with.

        Raises:
            ConflictError: There is no room for them.
            DeadlineError: They do not come, or others do not go.
        """
        if self._control is None:
            return
        least = (variant.instances or self._before).min
        fixed = InstanceRange(min=least, max=least)
        if self._in_force != fixed:
            self._scale(fixed)
        self._settle(fixed)

    def open(self, variant: Variant) -> None:
        """From now on its instances may be as many as its load asks for."""
        wanted = variant.instances or self._before
        if self._control is not None and self._in_force != wanted:
            self._scale(wanted)

    def _check_not_paused(self, control: Cluster) -> None:
        policies = {each.model: each for each in control.policies().policies}
        if self._model in policies and policies[self._model].is_paused:
            raise ConfigError(
                f"{self._model} would have as few instances as it may: its rules are paused",
                remedy="llx policy resume",
            )

    def _settle(self, wanted: InstanceRange) -> None:
        began = time.monotonic()
        failed_since: dict[str, float] = {}
        while True:
            instances, trouble = self._look()
            is_ready = all(each.state is InstanceState.READY for each in instances)
            if not trouble and is_ready and wanted.min <= len(instances) <= wanted.max:
                return
            now = time.monotonic()
            failed = [each for each in instances if each.state is InstanceState.FAILED]
            failed_since = {each.name: failed_since.get(each.name, now) for each in failed}
            has_failed = any(now - since > _FAILED_S for since in failed_since.values())
            if has_failed or now - began > _SETTLED_S:
                told = [f"{each.name} {each.state} {each.detail}".strip() for each in instances]
                count = " to ".join(map(str, dict.fromkeys((wanted.min, wanted.max))))
                raise DeadlineError(
                    f"{self._model} has not come to {count} instances: "
                    f"{trouble or '; '.join(told) or 'it has none'}",
                    remedy="llx inst ls",
                )
            time.sleep(_POLL_S)

    def _look(self) -> tuple[list[InstanceStatus], str]:
        """The model's instances, and why that is not known: a head may be away for a moment."""
        assert self._control is not None, "instances have a cluster"
        try:
            status = self._control.status()
        except LlxError as error:
            return [], error.message
        gone = InstanceState.STOPPED
        return [e for e in status.instances if e.model == self._model and e.state is not gone], ""

    def _scale(self, wanted: InstanceRange) -> None:
        assert self._control is not None, "instances have a cluster"
        self._in_force = None
        deadline = time.monotonic() + _LEAVING_S
        while True:
            try:
                self._control.scale(self._model, self._request(wanted))
            except ConflictError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
            else:
                self._in_force = wanted
                return

    def _request(self, wanted: InstanceRange, *, is_dry_run: bool = False) -> ScaleRequest:
        return ScaleRequest(min=wanted.min, max=wanted.max, is_dry_run=is_dry_run, user=self._user)
