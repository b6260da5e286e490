"""Which request goes, where the order leaves that to the source: by its rule, at this moment."""

import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

from llx.core.model import Blocks, RequestId, Tokens
from llx.core.request_choice import CHOICES, Movable
from llx.core.scheduler.move_rule import MoveRule, pick
from llx.wire import ByRule, RequestView

_REMEMBERED: Final = 4096


class Picking:
    """Picks, and knows who has come to this instance by a move just now."""

    def __init__(self) -> None:
        self._came: OrderedDict[RequestId, int] = OrderedDict()

    def note_arrival(self, request: RequestId) -> None:
        """A request has come here by a move."""
        self._came[request] = time.monotonic_ns()
        self._came.move_to_end(request)
        if len(self._came) > _REMEMBERED:
            self._came.popitem(last=False)

    def pick(
        self, rule: ByRule, views: Sequence[RequestView], leaving: Collection[RequestId]
    ) -> Movable | str:
        """The request that goes; or, in words, why none does.

        Args:
            rule: From the order.
            views: All requests that are here.
            leaving: Those among them that are being moved already, or will be.
        """
        if rule.choice not in CHOICES:
            return f"no choice {rule.choice!r}"
        movable = [
            _movable(each)
            for each in views
            if not each.pinned and each.state != "leaving" and each.id not in leaving
        ]
        limit = time.monotonic_ns() - rule.rest
        resting = {each.request for each in movable if self._came.get(each.request, 0) > limit}
        found = pick(_rule(rule), movable, resting)
        if found is None:
            return f"none of {len(views)} may: {len(movable)} can move, {len(resting)} rest"
        return found


def _rule(rule: ByRule) -> MoveRule:
    return MoveRule(
        choice=rule.choice,
        least_priority=rule.least_priority,
        about=None if rule.about is None else Blocks(rule.about),
        at_most=Blocks(rule.at_most),
        rest=rule.rest,
        most_tokens=None if rule.most_tokens is None else Tokens(rule.most_tokens),
    )


def _movable(view: RequestView) -> Movable:
    return Movable(
        RequestId(view.id),
        Blocks(view.num_blocks),
        Tokens(view.num_tokens),
        view.priority,
        view.arrival,
    )
