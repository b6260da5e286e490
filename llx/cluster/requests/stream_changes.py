"""What operators want changed of requests, said to the gateways that hold their streams.

Every gateway that is heard of is asked, as nobody keeps a list of who has which request; all of
them answer. The others, lately fallen silent or not yet back at a new head, are named.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llx.cluster.fleet.gateway_line import GatewayLine
from llx.core.model import ClassName, RequestId, Term
from llx.wire import CancelRequests, Change, Changed, ReclassRequests

_ANSWER_S: Final = 3.5
"""More than a gateway waits for instances: `llx.gateway.changes`."""


@dataclass(slots=True)
class Outcome:
    """What came of a change.

    Attributes:
        done: For which requests it has come about.
        not_done: For which it has not, and why.
        silent: Gateways that were not asked, as nothing is heard of them.
        unanswered: Gateways that were asked and have not answered: it may still come about there.

    One of these gateways may have the requests that are in neither.
    """

    done: set[RequestId] = field(default_factory=set)
    not_done: dict[RequestId, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """A change that is under way."""

    outcome: Outcome
    waits_for: dict[bytes, str]
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class StreamChanges:
    """Has gateways change requests.

    Args:
        line: To the gateways; it tells this object what they answer.
        term: This head's.
        expected: Gives the names of the gateways that may have requests at that moment.
        answer_s: So long a gateway has for its answer.
    """

    def __init__(
        self,
        line: GatewayLine,
        term: Term,
        expected: Callable[[], Sequence[str]],
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._line = line
        self._term = term
        self._expected = expected
        self._answer_s = answer_s
        self._numbers = itertools.count(1)
        self._open: dict[int, _Open] = {}
        line.tell_changed(self._on_changed)

    async def cancel(self, requests: Sequence[RequestId]) -> Outcome:
        """End requests."""
        return await self._ask(lambda n: CancelRequests(self._term, n, list(requests)))

    async def reclass(
        self, requests: Sequence[RequestId], name: ClassName, priority: int
    ) -> Outcome:
        """Have requests served as of another class."""
        return await self._ask(
            lambda n: ReclassRequests(self._term, n, list(requests), name, priority)
        )

    async def _ask(self, change: Callable[[int], Change]) -> Outcome:
        number, gateways = next(self._numbers), self._line.present()
        silent = [each for each in self._expected() if each not in gateways.values()]
        found = self._open[number] = _Open(Outcome(silent=silent), gateways)
        try:
            for identity in list(gateways):
                self._line.tell(identity, change(number))
            if gateways:
                async with asyncio.timeout(self._answer_s):
                    await found.is_over.wait()
        except TimeoutError:
            found.outcome.unanswered = list(gateways.values())
        finally:
            del self._open[number]
        return found.outcome

    def _on_changed(self, gateway: bytes, changed: Changed) -> None:
        found = self._open.get(changed.change)
        if found is None or found.waits_for.pop(gateway, None) is None:
            return
        found.outcome.done.update(changed.done)
        found.outcome.not_done.update(changed.not_done)
        if not found.waits_for:
            found.is_over.set()
