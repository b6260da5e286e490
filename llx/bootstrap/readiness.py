"""Waiting until a cluster that was started serves: instances, gateways, the first token.

The part of `up` that is the same for a cluster here and one on hosts. Tells an observer.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from llx.api import ClusterStatus, GatewayStatus, HostState, InstanceState, InstanceStatus
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.errors import (
    DeadlineError,
    EngineError,
    ExitCode,
    LlxError,
    RemoteError,
    UnreachableError,
)
from llx.settings import ClusterSettings

TAIL_LINES = 20

_POLL_S = 0.2
_FIRST_TOKEN_S = 60.0
_ERROR_LINE = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .+")
_TERMINAL = frozenset(
    {InstanceState.READY, InstanceState.FAILED, InstanceState.STOPPED, InstanceState.LOST}
)
_BAD = _TERMINAL - {InstanceState.READY}
"""Not on its way to anything; what is being drained is on its way out."""


class StartError(EngineError):
    """Some of the cluster did not start. The exit code says whether the rest serves."""

    def __init__(self, message: str, *, is_partial: bool, detail: str, remedy: str) -> None:
        super().__init__(message, detail=detail, remedy=remedy)
        self.exit_code = ExitCode.PARTIAL if is_partial else ExitCode.FAILURE


class Say:
    """Passes on what a step is doing, and keeps what is to be said when it is done."""

    def __init__(self, step: str, observe: Observer) -> None:
        self._step = step
        self._observe = observe
        self.conclusion = ""

    def __call__(self, detail: str) -> None:
        """What goes on now."""
        self._observe(StepEvent(self._step, StepState.RUNNING, detail))

    def conclude(self, detail: str) -> None:
        """What is to be said when it is done."""
        self.conclusion = detail


@contextmanager
def step(name: str, observe: Observer) -> Iterator[Say]:
    """One line of the checklist: done at the end, failed when an `LlxError` passes."""
    say = Say(name, observe)
    observe(StepEvent(name, StepState.RUNNING))
    try:
        yield say
    except LlxError:
        observe(StepEvent(name, StepState.FAILED))
        raise
    observe(StepEvent(name, StepState.DONE, say.conclusion))


class Probe(Protocol):
    """Asks a gateway's model for one token; raises RemoteError while it cannot give one."""

    def __call__(self, status: ClusterStatus, model: str) -> None:
        """Return when it came."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What waiting needs of the world.

    Attributes:
        status: The control API's; raises UnreachableError when the head is gone.
        log_end: The last part of a process's log; empty if it cannot be had.
        log_place: Where a person finds that log.
        clock: Monotonic seconds.
        sleep: Wait so many seconds.
    """

    status: Callable[[], ClusterStatus]
    log_end: Callable[[str], str]
    log_place: Callable[[str], str]
    clock: Callable[[], float]
    sleep: Callable[[float], None]


def lists_all(status: ClusterStatus, settings: ClusterSettings) -> bool:
    """Whether a status has a gateway and as many instances of each model as its minimum.

    Which ones they are, of a model that is scaled, is the head's to say.
    """
    counts = Counter(each.model for each in status.instances)
    is_listed = all(counts[each.name] >= each.instances.min for each in settings.models)
    return is_listed and bool(status.gateways)


class Readiness:
    """One wait."""

    def __init__(self, outside: Outside, observe: Observer) -> None:
        self._outside = outside
        self._observe = observe
        self._seen: dict[str, tuple[InstanceState, str]] = {}

    def wait(self, timeout_s: float, is_complete: Callable[[ClusterStatus], bool]) -> ClusterStatus:
        """The first complete status in which nothing is on its way any more.

        Raises:
            DeadlineError: Something still is, after `timeout_s`.
            UnreachableError: The head is gone.
        """
        deadline = self._outside.clock() + timeout_s
        while True:
            status = self._outside.status()
            rows = rows_of(status)
            self._tell(rows)
            waiting = [each for each in rows if _is_on_its_way(each, status)]
            if is_complete(status) and not waiting:
                return status
            if self._outside.clock() > deadline:
                raise self._out_of_time(timeout_s, waiting)
            self._outside.sleep(_POLL_S)

    def require_all(self, status: ClusterStatus) -> None:
        """See that everything is ready.

        Raises:
            StartError: Something failed; says what, why and whether the rest serves.
        """
        bad = [each for each in rows_of(status) if each.state in _BAD]
        if not bad:
            return
        serves = all(each.instances_ready > 0 for each in status.models) and any(
            each.state is InstanceState.READY for each in status.gateways
        )
        first = bad[0]
        names = ", ".join(each.name for each in bad)
        end = self._outside.log_end(first.name)
        raise StartError(
            f"{names} did not start{reason(end)}; log: {self._outside.log_place(first.name)}",
            is_partial=serves,
            detail=tail(end) or first.detail,
            remedy=f"llx logs {first.name}; "
            + ("llx inst restart, or llx down" if serves else "llx down"),
        )

    def first_token(self, status: ClusterStatus, probe: Probe) -> None:
        """Ask every model for one token.

        Raises:
            StartError: One gives none.
        """
        with step("first token", self._observe) as say:
            deadline = self._outside.clock() + _FIRST_TOKEN_S
            for model in status.models:
                self._probe(status, model.name, probe, deadline)
            say.conclude(", ".join(model.name for model in status.models))

    def skip_first_token(self, why: str) -> None:
        """Say why nobody is asked."""
        self._observe(StepEvent("first token", StepState.SKIPPED, why))

    def _probe(self, status: ClusterStatus, model: str, probe: Probe, deadline: float) -> None:
        """One tiny request; a gateway that has not yet met its instances says it is busy.

        One that has just taken up another certificate is asked again by what it says now.
        """
        while True:
            try:
                return probe(status, model)
            except (RemoteError, UnreachableError, DeadlineError) as error:
                if self._outside.clock() > deadline:
                    names = [each.name for each in status.gateways] or ["gateway-0"]
                    raise StartError(
                        f"the gateway gives no first token of {model}: {error.message}",
                        is_partial=False,
                        detail=tail(self._outside.log_end(names[0])),
                        remedy=f"llx logs {names[0]}; llx down",
                    ) from None
            self._outside.sleep(_POLL_S)
            with contextlib.suppress(UnreachableError):  # the gateway needs no head for this
                status = self._outside.status()

    def _out_of_time(
        self, timeout_s: float, waiting: Sequence[InstanceStatus | GatewayStatus]
    ) -> DeadlineError:
        names = ", ".join(f"{each.name} ({each.state})" for each in waiting) or "instances"
        for each in waiting:
            self._observe(StepEvent(_step_of(each), StepState.FAILED, "out of time"))
        return DeadlineError(
            f"not ready after {timeout_s:.0f} s: {names}",
            detail=tail(self._outside.log_end(waiting[0].name)) if waiting else "",
            remedy="llx logs NAME; llx down; raise runtime.start_timeout_s",
        )

    def _tell(self, rows: Iterable[InstanceStatus | GatewayStatus]) -> None:
        """Pass on what has changed."""
        for each in rows:
            if self._seen.get(each.name) == (each.state, each.detail):
                continue
            self._seen[each.name] = (each.state, each.detail)
            match each.state:
                case InstanceState.READY:
                    state = StepState.DONE
                case InstanceState.FAILED | InstanceState.STOPPED | InstanceState.LOST:
                    state = StepState.FAILED
                case _:
                    state = StepState.RUNNING
            lines = each.detail.strip().splitlines()
            detail = lines[-1] if lines and state is not StepState.DONE else str(each.state)
            self._observe(StepEvent(_step_of(each), state, detail))


def _is_on_its_way(each: InstanceStatus | GatewayStatus, status: ClusterStatus) -> bool:
    """What was lost with a host that is back is about to be found again, or started."""
    if each.state is InstanceState.LOST:
        back = {host.name for host in status.hosts if host.state is HostState.READY}
        return each.host in back
    return each.state not in _TERMINAL


def rows_of(status: ClusterStatus) -> list[InstanceStatus | GatewayStatus]:
    """Everything in it that starts."""
    return [*status.instances, *status.gateways]


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines."""
    return "\n".join(text.splitlines()[-lines:])


def reason(log_end: str) -> str:
    """``: XyzError: …``, the first error that the end of a log speaks of; else empty.

    The first, because the end of a dying engine's log is about its dying.
    """
    found = _ERROR_LINE.search(log_end)
    return f": {found.group(0)[:300]}" if found else ""


def _step_of(each: InstanceStatus | GatewayStatus) -> str:
    return each.name if isinstance(each, GatewayStatus) else f"instance {each.name}"
