"""Decisions about a request, looked up in recordings: of former heads, and what this one forgot.

Only lines in which an id occurs are read in full; the others are passed over. What is kept of them
is bounded, and so is the time: the newest recordings are read first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from llx.api import DecisionStatus, ExplainedRequest
from llx.cluster.scheduling.decisions import HELD, MOST_OF_ONE, own_id, words_of
from llx.cluster.scheduling.recordings import newest_first
from llx.core.model import RequestId, Term
from llx.core.scheduler.commands import Dispatch, Hold, Refuse
from llx.core.scheduler.events import RequestArrived
from llx.errors import ConfigError
from llx.log import get_log
from llx.recording import Recording, decided

log = get_log(__name__)

_LONGEST_S: Final = 5.0
_MOST: Final = 64
"""Requests that go by one id."""


@dataclass(slots=True)
class _Found:
    model: str = ""
    priority_class: str = ""
    decisions: dict[tuple[int, str], DecisionStatus] = field(default_factory=dict)
    """By when and what: two files tell of the same time."""

    def in_order(self) -> list[DecisionStatus]:
        """The last ones; of one that was held several times in a row its latest reason."""
        told: list[DecisionStatus] = []
        for each in sorted(self.decisions.values(), key=lambda each: each.at):
            if told and each.what == told[-1].what == HELD:
                told[-1] = each.model_copy(update={"at": told[-1].at})
            else:
                told.append(each)
        return told[-MOST_OF_ONE:]


def past_decisions(
    folder: Path, ids: Sequence[str], term: Term, known: frozenset[str]
) -> list[ExplainedRequest]:
    """What recordings tell of a request. Blocking: for a thread.

    Args:
        folder: Where they lie.
        ids: Its ids: the engine's, or the client's own; no others are in recordings.
        term: This head's.
        known: Requests, by the engine's id, whose decisions of this term are known.
    """
    found: dict[RequestId, _Found] = {}
    deadline = time.monotonic() + _LONGEST_S
    for of_term, path in newest_first(folder):
        looked_at = _Search(ids, known if of_term == term else frozenset())
        try:
            looked_at.read(path, found, deadline)
        except ConfigError as error:  # cut off by a crash, or removed as it is read
            log.warning("explain.recording_not_read", path=path, error=error)
        if time.monotonic() >= deadline:
            log.warning("explain.out_of_time", path=path)
            break
    return [
        ExplainedRequest(
            request=request,
            name="",
            model=each.model,
            priority_class=each.priority_class,
            decisions=each.in_order(),
        )
        for request, each in found.items()
        if each.decisions
    ]


class _Search:
    """For a request, in one file."""

    def __init__(self, ids: Sequence[str], known: frozenset[str]) -> None:
        self._ids = frozenset(ids)
        self._known = known
        self._own = [own_id(each) for each in ids]
        # As in JSON, less the quotes: it may be part of a longer id.
        self._needles = [msgspec.json.encode(each)[1:-1] for each in ids]

    def read(self, path: Path, found: dict[RequestId, _Found], deadline: float) -> None:
        recording = Recording(path)
        epoch_s = recording.epoch_s or 0.0
        entries = recording.entries_with(self._needles, lambda: time.monotonic() >= deadline)
        for entry in entries:
            event = entry.event
            if isinstance(event, RequestArrived):
                known = self._known_as(event.request, found)
                if known is not None:
                    known.model, known.priority_class = event.pool, event.priority_class
            for command in decided(entry.commands):
                if isinstance(command, Dispatch | Hold | Refuse):
                    known = self._known_as(command.request, found)
                    if known is not None:
                        decision = _status(command, entry.at / 1e9 + epoch_s)
                        known.decisions[entry.at, decision.what] = decision

    def _known_as(self, request: RequestId, found: dict[RequestId, _Found]) -> _Found | None:
        if request not in found and len(found) < _MOST and self._is_meant(request):
            found[request] = _Found()
        return found.get(request) if request not in self._known else None

    def _is_meant(self, request: RequestId) -> bool:
        if request in self._known:
            return False
        return request in self._ids or any(each.fullmatch(request) for each in self._own)


def _status(command: Dispatch | Hold | Refuse, at: float) -> DecisionStatus:
    what, instance, why = words_of(command)
    return DecisionStatus(at=at, what=what, instance=instance, why=why)
