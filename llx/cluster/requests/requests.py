"""The requests of a cluster: those that instances have, and those that wait in central queues."""

import time
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from llx.api import RequestList, RequestStatus
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.moves.movability import SERVING, model_of
from llx.cluster.requests.finding import find
from llx.cluster.requests.listing import Listing, Located, add_waiting, list_oldest, list_requests
from llx.cluster.requests.page import Facts, RequestFilter
from llx.cluster.scheduling.queue_view import Waiting
from llx.specs import model_of_pool


class Requests:
    """Lists them whenever somebody wants to know.

    Args:
        fleet: Whose instances.
        waiting: Gives what waits in the central queues at that moment.
    """

    def __init__(self, fleet: Fleet, waiting: Callable[[], Sequence[Waiting]]) -> None:
        self._fleet = fleet
        self._waiting = waiting

    async def listing(self, oldest: int | None = None) -> Listing:
        """All of them, the oldest first; or at least so many, if that is what is wanted."""
        units = self._fleet.instances.values()
        serving = [each.name for each in units if each.state in SERVING and each.known]
        if oldest is None:
            listing = await list_requests(self._fleet.loads, serving)
        else:
            listing = await list_oldest(self._fleet.loads, serving, oldest)
        add_waiting(listing, self._waiting(), time.time())
        listing.requests.sort(key=attrgetter("view.arrival", "view.id"))
        return listing

    async def page(self, wanted: RequestFilter) -> RequestList:
        """A page of them."""
        is_beginning = wanted.is_open and wanted.limit is not None
        listing = await self.listing(wanted.offset + (wanted.limit or 0) if is_beginning else None)
        found = listing.requests
        if not wanted.is_open:
            classes = self._classes()
            found = [each for each in found if wanted.lets_through(self._facts(each, classes))]
        page = [self.status(each) for each in wanted.cut(found)]
        num_found = len(found) + listing.num_more
        return RequestList(requests=page, num_found=num_found, not_asked=listing.not_asked)

    async def get(self, given: str) -> RequestList:
        """One request by any of its ids, with all its generations.

        Raises:
            NotFoundError: There is none.
            ConflictError: The id is that of several requests.
        """
        listing = await self.listing()
        found = [self.status(each) for each in find(listing, given)]
        return RequestList(requests=found, num_found=len(found), not_asked=listing.not_asked)

    def status(self, located: Located) -> RequestStatus:
        """A request as the control API shows it."""
        view, waits = located.view, located.waits
        facts = self._facts(located, self._classes())
        move = self._fleet.moves.open_of(located.request)
        return RequestStatus(
            id=view.id,
            name=view.name,
            instance=located.instance,
            model=facts.model,
            priority=view.priority,
            priority_class=facts.priority_class,
            state=view.state,
            num_prompt=view.num_prompt,
            num_tokens=view.num_tokens,
            num_blocks=view.num_blocks,
            size_bytes=view.size_bytes,
            arrived_at=view.arrival,
            pinned=view.pinned,
            migration="" if move is None else move.id,
            position=None if waits is None else waits.position,
            nominated="" if waits is None else waits.nominated,
        )

    def _classes(self) -> dict[int, str]:
        return {each.priority: each.name for each in self._fleet.settings.priority_classes}

    def _facts(self, located: Located, classes: Mapping[int, str]) -> Facts:
        """What filters look at: of a hundred thousand requests a page alone is made in full."""
        view, waits = located.view, located.waits
        unit = self._fleet.instances.get(located.instance)
        model = "" if unit is None else model_of(unit)
        return Facts(
            id=view.id,
            name=view.name,
            instance=located.instance,
            model=model if waits is None else model_of_pool(waits.model),
            state=view.state,
            priority=view.priority,
            priority_class=classes.get(view.priority, ""),
            pinned=view.pinned,
        )
