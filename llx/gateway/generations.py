"""The front ends of a gateway: one for each pool, of which a model has two while it is rolled out.

The scheduler says which pools there are (`llx.wire.PoolOffer`). A front end for a new one is made
beside those that serve; when it is open, and its pool is the model's current one, new requests go
to it. One whose pool is gone is closed when its last stream has ended.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from llx.core.model import PoolName
from llx.gateway.counters import Counters
from llx.specs import PoolSpec
from llx.wire import PoolOffer, Unusable

if TYPE_CHECKING:
    from llx.gateway.front_end import FrontEnd

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_OVER = "its model was rolled out anew, and its time in the former generation is over"


class Generations:
    """Makes the front ends match the pools that there are.

    Args:
        front_ends: Those made before the start, prepared; of a model the first one is current.
        make: Makes another; it is prepared here.
        closed: Told of a front end that is closed, or was made in vain.
        unusable: Pools whose front end could not be prepared before the start (`prepare_all`).
    """

    def __init__(
        self,
        front_ends: "Iterable[FrontEnd]",
        make: "Callable[[PoolSpec], FrontEnd]",
        closed: "Callable[[FrontEnd], None]" = lambda _: None,
        unusable: Mapping[PoolName, Unusable] | None = None,
    ) -> None:
        self.pools: dict[str, FrontEnd] = {each.spec.key: each for each in front_ends}
        """By the pool's key."""
        self.current: dict[str, FrontEnd] = {}
        """By model: that for new requests."""
        for each in self.pools.values():
            self.current.setdefault(each.spec.name, each)
        self.unusable: dict[PoolName, Unusable] = dict(unusable or {})
        """Those that are not tried again unless the head asks for another attempt."""
        self._make = make
        self._closed = closed
        self._offers: dict[str, PoolOffer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._past: dict[str, Counters] = {}

    def apply(self, offers: Sequence[PoolOffer], changed: Callable[[], None]) -> None:
        """Have front ends for these pools; `changed` is called when there is another one.

        Models that come or go are not its business: for them the gateway is started again.
        """
        known = {each.spec.name for each in self.pools.values()}
        self._offers = {each.spec.key: each for each in offers if each.spec.name in known}
        models = {each.spec.name for each in self._offers.values()}
        self.unusable = {key: why for key, why in self.unusable.items() if key in self._offers}
        for key, offer in self._offers.items():
            failed = self.unusable.get(PoolName(key))
            if failed is not None and offer.attempt <= failed.attempt:
                continue
            if key not in self.pools:
                self._begin(f"make {key}", self._add(offer.spec, changed))
            elif failed is not None:
                self._begin(f"make {key}", self._prepare_anew(key, changed))
        for key in self.pools.keys() - self._offers.keys():
            client = self.pools[key].client
            if self.pools[key].spec.name not in models:
                continue
            if client is not None:
                client.give_up(_OVER)
            self._begin(f"close {key}", self._retire(key))
        self.settle()

    def settle(self) -> None:
        """New requests go to the current pools, as far as their front ends are open."""
        for key, offer in self._offers.items():
            front_end = self.pools.get(key)
            model = offer.spec.name
            if front_end is None or not front_end.is_open or not offer.is_current:
                continue
            if self.current.get(model) is not front_end:
                self.current[model] = front_end
                log.info("generations.current model=%s pool=%s", model, key)

    def fail(self, pool: PoolName, error: Exception) -> bool:
        """A front end could not be opened: whether that is given up, so that the head hears of it.

        Never of a model's current one: nothing else could serve in its place.
        """
        front_end = self.pools.get(pool)
        if front_end is None:
            return True
        if self.current.get(front_end.spec.name) is front_end:
            return False
        self.unusable[pool] = Unusable(self._attempt(pool), _in_words(error))
        return True

    def open(self) -> list[PoolName]:
        """Pools whose front end can serve."""
        return [PoolName(key) for key, each in self.pools.items() if each.is_open]

    def counters(self) -> "Iterator[tuple[str, int, Counters]]":
        """By model: what is in flight, and what has come of it since the gateway's start."""
        found: dict[str, tuple[int, Counters]] = {
            model: (0, past) for model, past in self._past.items()
        }
        for each in self.pools.values():
            if each.client is not None:
                in_flight, past = found.get(each.spec.name, (0, Counters()))
                now = in_flight + each.client.num_in_flight
                found[each.spec.name] = now, _sum(past, each.client.counters)
        for model, (in_flight, sums) in found.items():
            yield model, in_flight, sums

    async def close(self) -> None:
        """Close every front end."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for each in self.pools.values():
            await each.close()

    # ------------------------------------------------------------------ making and closing

    def _begin(self, what: str, work: "asyncio._CoroutineLike[None]") -> None:
        former = self._tasks.get(what)
        if former is not None and not former.done():
            work.close()
            return
        task = self._tasks[what] = asyncio.get_running_loop().create_task(work, name=what)

        def ended(_: "asyncio.Task[None]") -> None:
            if self._tasks[what] is task:  # called later: another one may have begun
                del self._tasks[what]

        task.add_done_callback(ended)

    async def _add(self, spec: PoolSpec, changed: Callable[[], None]) -> None:
        front_end = self._make(spec)
        if await self._prepare(front_end):
            self.pools[spec.key] = front_end
            log.info("generations.made pool=%s", spec.key)
            changed()
        else:
            self._closed(front_end)

    async def _prepare_anew(self, key: str, changed: Callable[[], None]) -> None:
        """One that could not be opened: what it was prepared from may have been mended."""
        if await self._prepare(self.pools[key]):
            changed()

    async def _prepare(self, front_end: "FrontEnd") -> bool:
        """Whether it can be used; again for as long as another attempt is asked for meanwhile."""
        key = PoolName(front_end.spec.key)
        while key in self._offers:
            attempt = self._attempt(key)
            try:
                await asyncio.to_thread(prepare, front_end)
            except Exception as error:  # whatever vLLM says of the model; the head is told
                log.exception("generations.unusable pool=%s", key)
                failed = Unusable(attempt, _in_words(error))
            else:
                self.unusable.pop(key, None)
                return key in self._offers
            if key in self._offers:
                self.unusable[key] = failed
            if self._attempt(key) <= attempt:
                return False
        return False

    def _attempt(self, key: str) -> int:
        offer = self._offers.get(key)
        return 0 if offer is None else offer.attempt

    async def _retire(self, key: str) -> None:
        """Close a front end that has no streams and no instances, unless it is wanted again."""
        front_end = self.pools[key]
        while True:
            await asyncio.sleep(_LOOK_S)
            if key in self._offers:
                return
            client = front_end.client
            has_streams = client is not None and client.num_in_flight > 0
            is_current = self.current.get(front_end.spec.name) is front_end
            if not (has_streams or is_current or front_end.roster.links()):
                break
        del self.pools[key]
        if front_end.client is not None:
            past = self._past.get(front_end.spec.name, Counters())
            self._past[front_end.spec.name] = _sum(past, front_end.client.counters)
        self._closed(front_end)
        await front_end.close()
        log.info("generations.closed pool=%s", key)


def prepare_all(
    specs: Iterable[PoolSpec], make: "Callable[[PoolSpec], FrontEnd]"
) -> "tuple[list[FrontEnd], dict[PoolName, Unusable]]":
    """Front ends for these pools, prepared, and those of which that failed; blocking.

    Of each model the first pool is the one for new requests: without it a gateway is of no use. Of
    any other the head is told, and the rest serves.

    Raises:
        Exception: Whatever vLLM says of the model of such a first pool, or of its arguments.
    """
    front_ends: list[FrontEnd] = []
    unusable: dict[PoolName, Unusable] = {}
    for spec in specs:
        front_end = make(spec)
        try:
            prepare(front_end)
        except Exception as error:
            if spec.name not in {each.spec.name for each in front_ends}:
                raise
            log.exception("generations.unusable pool=%s", spec.key)
            unusable[PoolName(spec.key)] = Unusable(0, _in_words(error))
        else:
            front_ends.append(front_end)
    return front_ends, unusable


def prepare(front_end: "FrontEnd") -> None:
    """vLLM's parser leaves by the door; that would end the gateway."""
    try:
        front_end.prepare()
    except SystemExit as error:
        raise ValueError(f"vLLM refused its arguments ({error.code})") from None


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _sum(one: Counters, other: Counters) -> Counters:
    names = [each.name for each in fields(Counters)]
    return Counters(**{name: getattr(one, name) + getattr(other, name) for name in names})
