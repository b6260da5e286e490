"""Which requests there are, and where: asked of the instances whenever somebody wants to know.

The scheduler keeps no list of running requests, only of those that wait with it. Finding one by any
of its ids is a pure function.
"""

import asyncio
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from llx.agent.link import encode_arguments
from llx.cluster.load_watch import LoadWatch
from llx.cluster.scheduling.queue_view import Waiting
from llx.core.model import InstanceId, RequestId
from llx.errors import ConflictError, LlxError, NotFoundError, WireError
from llx.wire import RequestView

LIST_CALL = "llx_requests"
LEAVING = "leaving"
"""State of a request that goes to another instance."""
QUEUED = "queued"
"""State of a request that no instance has, for it waits in a central queue."""
_ASK_S = 3.0
_MAX_NAMED = 5
_MAX_NEAR = 3
_SHORTEST_PART = 4


@dataclass(frozen=True, slots=True)
class Located:
    """A request and the instance that has it; or `waits`, and the instance is empty."""

    view: RequestView
    instance: InstanceId
    waits: Waiting | None = None

    @property
    def request(self) -> RequestId:
        """Its id."""
        return RequestId(self.view.id)

    @property
    def label(self) -> str:
        """What operators call it."""
        return self.view.name or self.view.id


@dataclass(slots=True)
class Listing:
    """Requests, and why those of some instances are not known, ``instance: reason``."""

    requests: list[Located] = field(default_factory=list)
    not_asked: list[str] = field(default_factory=list)


async def list_requests(loads: LoadWatch, instances: Sequence[str]) -> Listing:
    """The requests of these instances, all asked at once.

    A request that is on its way may be listed at both ends: then it is where it goes.
    """
    found = Listing()
    answers = await asyncio.gather(*(_ask(loads, each) for each in instances))
    by_id: dict[str, Located] = {}
    for instance, answer in zip(instances, answers, strict=True):
        if isinstance(answer, str):
            found.not_asked.append(f"{instance}: {answer}")
            continue
        for view in answer:
            known = by_id.get(view.id)
            if known is None or known.view.state == LEAVING:
                by_id[view.id] = Located(view, InstanceId(instance))
    found.requests = list(by_id.values())
    return found


def add_waiting(listing: Listing, waiting: Iterable[Waiting], now: float) -> None:
    """Add what waits in central queues, as it was after the instances were asked.

    A request that an instance has listed besides was lost with it, or was about to be sent there.
    `now`: seconds since 1970.
    """
    queued = {each.request: _queued(each, now) for each in waiting}
    elsewhere = [each for each in listing.requests if each.request not in queued]
    listing.requests = [*elsewhere, *queued.values()]


def _queued(waits: Waiting, now: float) -> Located:
    view = RequestView(
        id=waits.request,
        name=waits.name,
        peer=0,
        priority=waits.priority,
        state=QUEUED,
        num_prompt=waits.tokens,
        num_tokens=waits.tokens,
        num_blocks=0,
        size_bytes=0,
        arrival=now - waits.waited_s,
    )
    return Located(view, InstanceId(""), waits)


def find(listing: Listing, given: str) -> list[Located]:
    """The request that is meant: all its generations, of which there are several with ``n``.

    `given` is tried as, in this order:

    1. the engine's id: exactly that generation;
    2. `x-llx-request-id`: all its generations;
    3. the client's own id, its `x-request-id`. vLLM makes engine ids of it:
       ``cmpl-<id>-<prompt>-<random>`` and ``chatcmpl-<id>-<random>``, with ``<k>_`` before the k-th
       of several generations. All generations, if they belong to one request.

    Raises:
        NotFoundError: There is none, as far as instances were heard.
        ConflictError: Several requests carry that client's id.
    """
    requests = listing.requests
    exact = [each for each in requests if each.view.id == given]
    if exact:
        return exact
    named = [each for each in requests if each.view.name and each.view.name == given]
    if named:
        return named
    pattern = re.compile(rf"(\d+_)?[a-z]+[-_]{re.escape(given)}(-\d+)?(-[0-9a-f]{{8}})?")
    found = [each for each in requests if given and pattern.fullmatch(each.view.id)]
    names = list(dict.fromkeys(each.label for each in found))
    if len(names) > 1:
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        raise ConflictError(
            f'{len(names)} requests carry the id "{given}": {", ".join(names[:_MAX_NAMED])}{more}',
            remedy="name one of these",
        )
    if not found:
        raise NotFoundError(
            f'no request "{given}": it has ended, or never was',
            remedy=_suggestion(given, requests),
            detail="\n".join(f"not asked: {each}" for each in listing.not_asked),
        )
    return found


def _suggestion(given: str, requests: Sequence[Located]) -> str:
    """Ids that may be meant: those that contain it, else those that look much like it."""
    ids = list(dict.fromkeys(word for each in requests for word in (each.label, each.view.id)))
    near = [each for each in ids if len(given) >= _SHORTEST_PART and given in each]
    near = near or difflib.get_close_matches(given, ids, n=_MAX_NEAR)
    if not near:
        return "llx req ls"
    return f"llx req ls; did you mean {' or '.join(near[:_MAX_NEAR])}?"


async def _ask(loads: LoadWatch, instance: str) -> list[RequestView] | str:
    """Its requests, or why they are not known."""
    try:
        frames = await loads.call(instance, LIST_CALL, encode_arguments(), _ASK_S)
        return msgspec.msgpack.decode(b"".join(frames), type=list[RequestView])
    except TimeoutError:
        return f"no answer in {_ASK_S:g} s"
    except (msgspec.DecodeError, WireError) as error:
        return f"its answer makes no sense: {error}"
    except LlxError as error:
        return error.message
