"""What is done to a cluster during a run of a benchmark, and undone after it."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from llx.api import ClusterStatus, HostState, InstanceState, RolloutRequest
from llx.bench.scenario import Fault
from llx.client import Cluster
from llx.errors import ConfigError, ConflictError, DeadlineError, LlxError, NotFoundError

_READY_S: Final = 180.0
_ROLLED_OUT_S: Final = 900.0
_POLL_S: Final = 0.2
_CALM_S: Final = 1.0
"""All must be in use again for so long at a stretch: a death is not known at once."""
_DRAIN_S: Final = 60.0
_SETTLED: Final = frozenset({InstanceState.READY, InstanceState.FAILED})
_UNDER_WAY: Final = frozenset({"running", "paused"})
"""Of a rollout."""

Strike = Callable[[Fault], None]
"""Does a fault that is done on a host; raises LlxError if it cannot be."""


class Injector:
    """The faults of one run.

    Args:
        control: Of the cluster.
        model: Whose instances a rollout replaces.
        faults: With times from the run's beginning.
        user: Who is at work, for the audit trail.
        strike: For those that are done on a host.

    Raises:
        ConfigError: There are such, and nobody to do them.
    """

    def __init__(
        self,
        control: Cluster,
        model: str,
        faults: Sequence[Fault],
        user: str,
        strike: Strike | None,
    ) -> None:
        if strike is None and any(each.is_struck for each in faults):
            raise ConfigError("nobody here can do faults on the cluster's hosts")
        self.faults = faults
        self._control = control
        self._model = model
        self._user = user
        self._strike = strike
        self._done: list[Fault] = []
        self._over_at = 0.0

    def do(self, fault: Fault) -> None:
        """Do one; what lasts ends by itself, and a rollout goes on.

        Raises:
            LlxError: It cannot be done.
        """
        self._done.append(fault)
        try:
            self._do(fault)
        finally:  # a strike takes a while, and only then what it does begins
            self._over_at = max(self._over_at, time.monotonic() + (fault.for_s or 0.0))

    def _do(self, fault: Fault) -> None:
        match fault.do:
            case "cordon" | "uncordon":
                is_on = fault.do == "cordon"
                self._control.cordon_instance(fault.instance, is_on=is_on, user=self._user)
            case "drain":
                self._control.drain_instance(fault.instance, deadline_s=_DRAIN_S, user=self._user)
            case "restart":
                self._control.restart_instance(fault.instance, user=self._user, deadline_s=0.0)
            case "rollout":
                request = RolloutRequest(is_again=True, user=self._user)
                self._control.rollout(self._model, request)
            case _:
                assert self._strike is not None, "looked at before"
                self._strike(fault)

    def uncordon(self) -> None:
        """Use again what faults have taken out of use, as far as the cluster answers.

        A drain that is under way ends with it.
        """
        self._uncordon(self._hit())

    def put_back(self) -> None:
        """Use again what faults have taken out of use, and wait until all that they hit is ready.

        Raises:
            DeadlineError: It does not get ready, or the cluster does not answer.
            ConflictError: A rollout has failed.
        """
        if not self._done:
            return
        begun = max(time.monotonic(), self._over_at)
        deadline = begun + (_ROLLED_OUT_S if self._has_rollout else _READY_S)
        cordoned, calm_since = self._hit(), None
        while True:
            cordoned = self._uncordon(cordoned)
            waiting = [f"{name} is cordoned" for name in cordoned] + self._unsettled()
            now = time.monotonic()
            calm_since = None if waiting or now < begun else calm_since or now
            if calm_since is not None and now - calm_since >= _CALM_S:
                return
            if now > deadline:
                raise DeadlineError(
                    f"not as before after a fault: {', '.join(waiting)}", remedy="llx status"
                )
            time.sleep(_POLL_S)

    @property
    def _has_rollout(self) -> bool:
        return any(each.do == "rollout" for each in self._done)

    def _hit(self) -> list[str]:
        return sorted({each.instance for each in self._done if each.instance})

    def _uncordon(self, names: Sequence[str]) -> list[str]:
        """Those of them of which the cluster has not answered."""
        left = []
        for name in names:
            try:
                self._control.cordon_instance(name, is_on=False, user=self._user)
            except NotFoundError:
                pass  # the fault's note names it
            except LlxError:
                left.append(name)
        return left

    def _unsettled(self) -> list[str]:
        """What was hit and is not in use again, or why that is not known.

        Raises:
            ConflictError: A rollout has failed.
        """
        try:
            status = self._control.status()
            rollouts = self._control.rollouts() if self._has_rollout else []
        except LlxError as error:  # a head may be away for a moment
            return [error.message]
        found = [each for hit in self._done for each in _waits(hit, status, self._model)]
        for each in rollouts:
            if each.model == self._model and each.state == "failed":
                raise ConflictError(
                    f"the rollout of {each.model} has failed: {each.reason}", remedy="llx rollout"
                )
            if each.model == self._model and each.state in _UNDER_WAY:
                found.append(f"rollout of {each.model}")
        return sorted(set(found))


def _waits(fault: Fault, status: ClusterStatus, model: str) -> list[str]:
    hosts = [
        each.name
        for each in status.hosts
        if each.name == fault.host and each.state is not HostState.READY
    ]
    instances = [
        each.name
        for each in status.instances
        if each.state not in _SETTLED
        and (
            each.name == fault.instance
            or (fault.host and each.host == fault.host)
            or (fault.do == "rollout" and each.model == model)
        )
    ]
    return hosts + instances
