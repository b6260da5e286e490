"""The last decisions about requests, with their reasons, for `llx explain`. In memory, bounded.

Each is a line of the log, too, by which `llx logs --request` tells a request's story. Lines are
written when whoever owns this says so (`log_all`), with their own times: not while a gateway waits.
"""

import re
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Final, assert_never

from llx.api import DecisionStatus, ExplainedRequest
from llx.core.model import RequestId
from llx.core.scheduler.commands import Dispatch, Hold, Refuse
from llx.log import get_log
from llx.wire import Place

log = get_log(__name__)

MOST_REQUESTS: Final = 4096
MOST_OF_ONE: Final = 64
_MOST_UNLOGGED: Final = 256
HELD: Final = "held"


@dataclass(frozen=True, slots=True)
class _Decision:
    """As `DecisionStatus` has it, in less than half of its memory: there are thousands."""

    at: float
    what: str
    instance: str
    why: str


@dataclass(slots=True)
class _Known:
    """One request."""

    name: str
    model: str
    priority_class: str
    decisions: list[_Decision] = field(default_factory=list)


class Decisions:
    """Remembers the requests that were decided about last."""

    def __init__(self) -> None:
        self._known: OrderedDict[RequestId, _Known] = OrderedDict()
        self._unlogged: list[tuple[_Known, RequestId, _Decision]] = []

    def meet(self, ask: Place) -> None:
        """A request is being placed, or is of another class from now on."""
        known = self._known.get(ask.request)
        if known is not None and known.priority_class != ask.priority_class:
            was, known.priority_class = known.priority_class, ask.priority_class
            self.note(ask.request, "reclassed", "", f"from {was} to {ask.priority_class}")
        if known is None:
            self._known[ask.request] = _Known(ask.name, ask.pool, ask.priority_class)
            if len(self._known) > MOST_REQUESTS:
                self._known.popitem(last=False)

    def note(self, request: RequestId, what: str, instance: str, why: str) -> None:
        """Something was decided. One that is held again is so for its latest reason."""
        known = self._known.get(request)
        if known is None:
            return
        self._known.move_to_end(request)
        decisions = known.decisions
        is_again = what == HELD and bool(decisions) and decisions[-1].what == HELD
        at = decisions.pop().at if is_again else time.time()
        decision = _Decision(at, what, instance, why)
        decisions.append(decision)
        del decisions[:-MOST_OF_ONE]
        if not is_again:
            self._unlogged.append((known, request, decision))
            if len(self._unlogged) >= _MOST_UNLOGGED:
                self.log_all()

    def log_all(self) -> None:
        """Write the lines of what was decided since the last time."""
        unlogged, self._unlogged = self._unlogged, []
        for known, request, each in unlogged:
            log.info_of(
                each.at,
                f"scheduler.{each.what}",
                request=request,
                name=known.name,
                instance=each.instance,
                why=each.why,
            )

    def find(self, given: str) -> list[ExplainedRequest]:
        """All generations that go by that id: the engine's, llx's, or the client's own."""
        own = own_id(given)
        return [
            ExplainedRequest(
                request=request,
                name=known.name,
                model=known.model,
                priority_class=known.priority_class,
                decisions=[DecisionStatus(**asdict(each)) for each in known.decisions],
            )
            for request, known in self._known.items()
            if given in (request, known.name) or own.fullmatch(request)
        ]


def own_id(given: str) -> re.Pattern[str]:
    """Matches the engine's ids of a request whose client called it so."""
    return re.compile(rf"(\d+_)?[a-z]+[-_]{re.escape(given)}(-\d+)?(-[0-9a-f]{{8}})?")


def words_of(command: Dispatch | Hold | Refuse) -> tuple[str, str, str]:
    """What was decided about a request, about which instance, and why."""
    match command:
        case Dispatch(instance=instance, decision=decision):
            return "placed", instance, str(decision)
        case Hold(num_waiting=num_waiting, decision=decision):
            nominee = decision.chosen.instance if decision and decision.chosen else ""
            why = "" if decision is None else f": {decision}"
            return HELD, nominee, f"{num_waiting} of its class wait{why}"
        case Refuse(reason=reason):
            return "refused", "", reason.value
        case _:
            assert_never(command)
