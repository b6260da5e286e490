"""What operators do to requests: end them, serve them as of another class, pin them.

Streams are the gateways' (`llx.cluster.requests.stream_changes`), pins the instances': a pinned
request stays where it is, so nobody else has to know.
"""

import asyncio
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, assert_never

import msgspec

from llx.agent.link import encode_arguments
from llx.api import NotChanged, RequestChange, RequestChangeReport, RequestVerb
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.moves.movability import why_moving
from llx.cluster.requests.finding import RequestIndex
from llx.cluster.requests.listing import Located
from llx.cluster.requests.requests import Requests
from llx.cluster.requests.stream_changes import Outcome, StreamChanges
from llx.core.model import ClassName, RequestId
from llx.errors import ConflictError, NotFoundError, RemoteError, UnreachableError
from llx.log import get_log
from llx.ports import PIN
from llx.settings import PriorityClassSettings

log = get_log(__name__)

_ENDED: Final = "has ended meanwhile"
_PIN_S: Final = 3.0
_EVENTS: Final = {
    RequestVerb.CANCEL: "request.cancelled",
    RequestVerb.SET_PRIORITY: "request.reclassed",
    RequestVerb.PIN: "request.pinned",
    RequestVerb.UNPIN: "request.unpinned",
}


_Effects = dict[RequestId, dict[str, str]]
"""For which requests something has come about, or may yet; and what is in doubt, as the event of
it says: `not_taken`, why the instance goes on with the former priority; `unanswered`, by whom."""


@dataclass(slots=True)
class _Meant:
    """The requests that are meant, each with the id it was given by; and what is in the way."""

    requests: dict[RequestId, Located] = field(default_factory=dict)
    given: dict[RequestId, str] = field(default_factory=dict)
    not_changed: list[NotChanged] = field(default_factory=list)

    def leave_out(
        self,
        request: RequestId,
        reason: str,
        error: Literal["conflict", "unreachable"] = "conflict",
        remedy: str = "",
    ) -> None:
        """It is not done to this one."""
        located = self.requests.pop(request)
        self.not_changed.append(
            NotChanged(
                given=self.given[request],
                error=error,
                reason=f"{located.label} {reason}",
                remedy=remedy,
            )
        )


@dataclass(frozen=True, slots=True)
class _NotPinned:
    """Why a pin has not come about; `is_open`: nobody has said, and it may yet."""

    error: Literal["conflict", "unreachable"]
    reason: str
    is_open: bool = False


class RequestVerbs:
    """Changes requests of a fleet.

    Args:
        fleet: Whose instances and classes.
        requests: Lists the requests.
        streams: Reaches gateways.
        audit: Where what is done is written down.
    """

    def __init__(
        self, fleet: Fleet, requests: Requests, streams: StreamChanges, audit: AuditTrail
    ) -> None:
        self._fleet = fleet
        self._requests = requests
        self._streams = streams
        self._audit = audit

    async def change(self, verb: RequestVerb, ask: RequestChange) -> RequestChangeReport:
        """Do something to requests, as far as that is possible for each.

        Raises:
            NotFoundError: There is no priority class of that name.
        """
        wanted = self._class(ask.priority_class) if verb is RequestVerb.SET_PRIORITY else None
        meant = await self._meant(verb, ask.ids)
        before = dict(meant.requests)
        if before and not ask.is_dry_run:
            effects = await self._carry_out(verb, meant, wanted, ask.user)
            for request, doubts in effects.items():
                self._note(verb, before[request], wanted, ask.user, doubts)
            if verb is not RequestVerb.CANCEL:
                now = {each.request: each for each in (await self._requests.listing()).requests}
                before |= {key: now[key] for key in before if key in now}
        changed = [self._requests.status(before[each]) for each in meant.requests]
        return RequestChangeReport(changed=changed, not_changed=meant.not_changed)

    # ------------------------------------------------------------------ who is meant

    def _class(self, name: str) -> PriorityClassSettings:
        classes = {each.name: each for each in self._fleet.settings.priority_classes}
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise NotFoundError(
                f'no priority class "{name}"', remedy=f"there are: {', '.join(classes)}{hint}"
            )
        return classes[name]

    async def _meant(self, verb: RequestVerb, ids: Sequence[str]) -> _Meant:
        index, meant = RequestIndex(await self._requests.listing()), _Meant()
        for given in dict.fromkeys(ids):
            try:
                found = index.find(given, suggests=len(ids) == 1)
            except (NotFoundError, ConflictError) as error:
                kind: Literal["not_found", "conflict"] = (
                    "not_found" if isinstance(error, NotFoundError) else "conflict"
                )
                reason = " ".join([error.message, *error.detail.splitlines()])
                meant.not_changed.append(
                    NotChanged(given=given, error=kind, reason=reason, remedy=error.remedy)
                )
                continue
            for each in found:
                meant.requests.setdefault(each.request, each)
                meant.given.setdefault(each.request, given)
        if verb in (RequestVerb.PIN, RequestVerb.UNPIN):
            self._leave_out_homeless(verb, meant)
        return meant

    def _leave_out_homeless(self, verb: RequestVerb, meant: _Meant) -> None:
        for each in list(meant.requests.values()):
            if each.waits is not None:
                meant.leave_out(each.request, "waits in the central queue: no instance has it yet")
            elif verb is RequestVerb.PIN and (reason := why_moving(self._fleet, each)):
                meant.leave_out(each.request, reason, remedy="llx mig cancel, or wait")

    # ------------------------------------------------------------------ what is done

    async def _carry_out(
        self, verb: RequestVerb, meant: _Meant, wanted: PriorityClassSettings | None, user: str
    ) -> _Effects:
        requests = list(meant.requests)
        match verb:
            case RequestVerb.CANCEL:
                return self._sort_out(meant, await self._streams.cancel(requests))
            case RequestVerb.SET_PRIORITY:
                assert wanted is not None, "the verb has a class"
                name = ClassName(wanted.name)
                outcome = await self._streams.reclass(requests, name, wanted.priority)
                return self._sort_out(meant, outcome)
            case RequestVerb.PIN:
                return await self._pin(meant, f"by {user or 'an operator'}")
            case RequestVerb.UNPIN:
                return await self._pin(meant, "")
            case _:
                assert_never(verb)

    def _sort_out(self, meant: _Meant, outcome: Outcome) -> _Effects:
        quiet = " or ".join([*outcome.silent, *outcome.unanswered])
        effects: _Effects = {}
        for request in list(meant.requests):
            if request in outcome.done:
                effects[request] = {}
            elif (reason := outcome.not_done.get(request)) is not None:
                effects[request] = {"not_taken": reason}
                meant.leave_out(request, f"is of that class from now on, but was {reason}")
            elif quiet:
                if outcome.unanswered:
                    effects[request] = {"unanswered": " or ".join(outcome.unanswered)}
                meant.leave_out(request, f"may be with {quiet}, silent now", "unreachable")
            else:
                meant.leave_out(request, _ENDED)
        return effects

    async def _pin(self, meant: _Meant, words: str) -> _Effects:
        located = list(meant.requests.values())
        answers = await asyncio.gather(*(self._pin_one(each, words) for each in located))
        effects: _Effects = {}
        for each, answer in zip(located, answers, strict=True):
            if answer is None:
                effects[each.request] = {}
                continue
            if answer.is_open:
                effects[each.request] = {"unanswered": each.instance}
            meant.leave_out(each.request, answer.reason, answer.error)
        return effects

    async def _pin_one(self, located: Located, words: str) -> _NotPinned | None:
        """Why it has not come about, if it has not."""
        arguments, where = encode_arguments(located.request, words), located.instance
        try:
            frames = await self._fleet.loads.call(where, PIN, arguments, _PIN_S)
            why = msgspec.msgpack.decode(b"".join(frames), type=str)
        except TimeoutError:
            reason = f"is on {where}: no answer in {_PIN_S:g} s"
            return _NotPinned("unreachable", reason, is_open=True)
        except (UnreachableError, RemoteError) as error:
            return _NotPinned("unreachable", f"is on {where}: {error.message}")
        except msgspec.DecodeError as error:
            return _NotPinned("unreachable", f"is on {where}: its answer makes no sense: {error}")
        return _NotPinned("conflict", f"is not pinned on {where}: {why}") if why else None

    def _note(
        self,
        verb: RequestVerb,
        each: Located,
        wanted: PriorityClassSettings | None,
        user: str,
        doubts: Mapping[str, str],
    ) -> None:
        told = {
            "request": each.request,
            "name": each.view.name,
            "instance": each.instance,
            "state": each.view.state,
        }
        if wanted is not None:
            told["priority_class"] = wanted.name
        told.update(doubts)
        log.info(_EVENTS[verb], **told)
        self._audit.record(_EVENTS[verb], user=user, **told)
