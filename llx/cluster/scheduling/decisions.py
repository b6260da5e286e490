"""The last decisions about requests, with their reasons, for `llx explain`. In memory, bounded."""

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from llx.api import DecisionStatus, ExplainedRequest
from llx.core.model import RequestId
from llx.log import get_log
from llx.wire import Place

log = get_log(__name__)

_MOST: Final = 4096
_MOST_OF_ONE: Final = 64
HELD: Final = "held"


@dataclass(slots=True)
class _Known:
    """One request."""

    name: str
    model: str
    priority_class: str
    decisions: list[DecisionStatus] = field(default_factory=list)


class Decisions:
    """Remembers the requests that were decided about last."""

    def __init__(self) -> None:
        self._known: OrderedDict[RequestId, _Known] = OrderedDict()

    def meet(self, ask: Place) -> None:
        """A request is being placed, or is of another class from now on."""
        known = self._known.get(ask.request)
        if known is not None and known.priority_class != ask.priority_class:
            was, known.priority_class = known.priority_class, ask.priority_class
            self.note(ask.request, "reclassed", "", f"from {was} to {ask.priority_class}")
        if known is None:
            self._known[ask.request] = _Known(ask.name, ask.pool, ask.priority_class)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)

    def note(self, request: RequestId, what: str, instance: str, why: str) -> None:
        """Something was decided. One that is held again is so for its latest reason."""
        known = self._known.get(request)
        if known is None:
            return
        self._known.move_to_end(request)
        decisions = known.decisions
        at = time.time()
        if what == HELD and decisions and decisions[-1].what == HELD:
            at = decisions.pop().at
        else:
            log.info(
                f"scheduler.{what}", request=request, name=known.name, instance=instance, why=why
            )
        decisions.append(DecisionStatus(at=at, what=what, instance=instance, why=why))
        del decisions[:-_MOST_OF_ONE]

    def find(self, given: str) -> list[ExplainedRequest]:
        """All generations that go by that id: the engine's, llx's, or the client's own."""
        own = re.compile(rf"(\d+_)?[a-z]+[-_]{re.escape(given)}(-\d+)?(-[0-9a-f]{{8}})?")
        return [
            ExplainedRequest(
                request=request,
                name=known.name,
                model=known.model,
                priority_class=known.priority_class,
                decisions=list(known.decisions),
            )
            for request, known in self._known.items()
            if given in (request, known.name) or own.fullmatch(request)
        ]
