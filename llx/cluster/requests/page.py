"""Which requests are meant by a filter, and a page of them: pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Facts(NamedTuple):
    """What a filter looks at, as `llx.api.RequestStatus` says it."""

    id: str
    name: str
    instance: str
    model: str
    state: str
    priority: int
    priority_class: str
    pinned: str


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """What a request must be; what is empty lets all through.

    Attributes:
        instance: Who has it.
        model: Its pool.
        state: As vLLM says it.
        priority_class: Its name, or the integer that vLLM sees.
        match: Part of its ids, instance, model, class or state; letters great or small.
        is_pinned: Whether it cannot move; None: either.
        offset: So many of those are left out first.
        limit: At most so many are given; None: all.
    """

    instance: str = ""
    model: str = ""
    state: str = ""
    priority_class: str = ""
    match: str = ""
    is_pinned: bool | None = None
    offset: int = 0
    limit: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it lets all through."""
        wanted = (self.instance, self.model, self.state, self.priority_class, self.match)
        return self.is_pinned is None and not any(wanted)

    def lets_through(self, request: Facts) -> bool:
        """Whether a request is meant."""
        if self.is_pinned is not None and bool(request.pinned) is not self.is_pinned:
            return False
        classes = (request.priority_class, str(request.priority))
        wanted = (
            (self.instance, (request.instance,)),
            (self.model, (request.model,)),
            (self.state, (request.state,)),
            (self.priority_class, classes),
        )
        if any(want and want not in has for want, has in wanted):
            return False
        if not self.match:
            return True
        words = (request.id, request.name, request.instance, request.model, request.state)
        return self.match.lower() in "\n".join((*words, *classes)).lower()

    def cut(self, found: Sequence[T]) -> Sequence[T]:
        """The page that is asked for, of those that are let through in the order given."""
        end = None if self.limit is None else self.offset + self.limit
        return found[self.offset : end]
