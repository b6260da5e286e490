"""Which requests there are, and where: asked of the instances whenever somebody wants to know.

The scheduler keeps no list of running requests, only of those that wait with it.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from llx.agent.link import encode_arguments
from llx.cluster.fleet.load_watch import LoadWatch
from llx.cluster.scheduling.queue_view import Waiting
from llx.core.model import InstanceId, RequestId
from llx.errors import LlxError, WireError
from llx.ports import Frame
from llx.wire import LEAVING, OldestRequests, RequestView

LIST_CALL = "llx_requests"
OLDEST_CALL = "llx_oldest_requests"
QUEUED = "queued"
"""State of a request that no instance has, for it waits in a central queue."""
_ASK_S = 3.0
_ALL = msgspec.msgpack.Decoder(list[RequestView])
_OLDEST = msgspec.msgpack.Decoder(OldestRequests)
_SHARE = 4
"""Times what each instance has of the oldest if all have as many, and as many more."""


T = TypeVar("T")


class Located(msgspec.Struct, frozen=True, gc=False):
    """A request and the instance that has it; or `waits`, and the instance is empty.

    There are a hundred thousand at a time, which the garbage collector need not go through.
    """

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
    """Requests, and why those of some instances are not known, ``instance: reason``.

    `num_more`: so many more there are, all of them younger than those that were wanted.
    """

    requests: list[Located] = field(default_factory=list)
    not_asked: list[str] = field(default_factory=list)
    num_more: int = 0


async def list_requests(loads: LoadWatch, instances: Sequence[str]) -> Listing:
    """The requests of these instances, all asked at once.

    A request that is on its way may be listed at both ends: then it is where it goes.
    """
    arguments = encode_arguments()
    asked = [_ask(loads, each, LIST_CALL, arguments, _ALL.decode) for each in instances]
    return _merged(zip(instances, await asyncio.gather(*asked), strict=True))


async def list_oldest(loads: LoadWatch, instances: Sequence[str], count: int) -> Listing:
    """As `list_requests`, but at least the `count` oldest, and only the number of the others.

    Of many instances each is asked for a few. Who has more that may be among the oldest is asked
    again: a hundred thousand requests are not fetched for the sake of a page. If that fails, what
    it has told is listed. A request that moves and of which one end's is not listed counts twice in
    `num_more`, for that moment.
    """
    share = min(count, -(-_SHARE * count // max(1, len(instances))) + _SHARE)
    told = dict(zip(instances, await _oldest_of_each(loads, instances, share), strict=True))
    if share < count:
        views = [view for each in told.values() if not isinstance(each, str) for view in each.views]
        wanted = count + sum(each.state == LEAVING for each in views)  # who may be listed twice
        arrivals = sorted(each.arrival for each in views)
        last = arrivals[wanted - 1] if len(arrivals) >= wanted else math.inf
        again = [
            name
            for name, each in told.items()
            if not isinstance(each, str)
            and each.num > share
            and each.views[share - 1].arrival <= last
        ]
        more = zip(again, await _oldest_of_each(loads, again, wanted), strict=True)
        told.update((name, each) for name, each in more if not isinstance(each, str))
    found = _merged(
        (name, each if isinstance(each, str) else each.views) for name, each in told.items()
    )
    found.num_more = sum(
        each.num - len(each.views) for each in told.values() if not isinstance(each, str)
    )
    return found


async def _oldest_of_each(
    loads: LoadWatch, instances: Sequence[str], count: int
) -> list[OldestRequests | str]:
    arguments = encode_arguments(count)
    asked = [_ask(loads, each, OLDEST_CALL, arguments, _OLDEST.decode) for each in instances]
    return await asyncio.gather(*asked)


def _merged(answers: Iterable[tuple[str, list[RequestView] | str]]) -> Listing:
    found = Listing()
    by_id: dict[str, Located] = {}
    for instance, answer in answers:
        if isinstance(answer, str):
            found.not_asked.append(f"{instance}: {answer}")
            continue
        name = InstanceId(instance)
        here = {view.id: Located(view, name) for view in answer}
        for twice in by_id.keys() & here.keys():
            if by_id[twice].view.state != LEAVING:
                del here[twice]
        by_id.update(here)
    found.requests = list(by_id.values())
    return found


def add_waiting(listing: Listing, waiting: Iterable[Waiting], now: float) -> None:
    """Add what waits in central queues, as it was after the instances were asked.

    A request that an instance has listed besides was lost with it, or was about to be sent there.
    `now`: seconds since 1970.
    """
    queued = {each.request: _queued(each, now) for each in waiting}
    if not queued:
        return
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


async def _ask(
    loads: LoadWatch,
    instance: str,
    method: str,
    arguments: Sequence[Frame],
    decode: Callable[[bytes], T],
) -> T | str:
    """What an instance answers, or why that is not known."""
    try:
        frames = await loads.call(instance, method, arguments, _ASK_S)
        return decode(b"".join(frames))
    except TimeoutError:
        return f"no answer in {_ASK_S:g} s"
    except (msgspec.DecodeError, WireError) as error:
        return f"its answer makes no sense: {error}"
    except LlxError as error:
        return error.message
