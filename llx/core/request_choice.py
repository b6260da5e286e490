"""Which requests leave an instance when it is to give up some.

A choice is a function in a table, chosen by name: it ranks a request, and those of the least rank
go first. Whoever adds one writes it here and names it in `CHOICES`.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from llx.core.fixed import fixed
from llx.core.model import Blocks, RequestId, Tokens


@fixed
class Movable:
    """A request that can move.

    Attributes:
        request: Its id.
        num_blocks: KV blocks that it holds, which a move copies; 0 while it waits.
        num_tokens: Of its prompt and its output so far.
        priority: The integer that vLLM sees; lower is more urgent.
        arrival: When it came, in Unix seconds.
    """

    request: RequestId
    num_blocks: Blocks
    num_tokens: Tokens
    priority: int
    arrival: float


Rank = tuple[float, ...]
Choice = Callable[[Movable], Rank]


def shortest(request: Movable) -> Rank:
    """Least to copy first."""
    return request.num_blocks, request.num_tokens


def longest(request: Movable) -> Rank:
    """Most to copy first: it frees the most."""
    return -request.num_blocks, -request.num_tokens


def latest(request: Movable) -> Rank:
    """Who came last goes first, as in preemption."""
    return (-request.arrival,)


def oldest(request: Movable) -> Rank:
    """Who came first goes first."""
    return (request.arrival,)


def lowest_class(request: Movable) -> Rank:
    """The least urgent first, among equals the shortest (as in Llumnix, OSDI'24)."""
    return -request.priority, *shortest(request)


def next_in_line(request: Movable) -> Rank:
    """The most urgent first, among equals who came first: as an engine serves its queue."""
    return request.priority, request.arrival


CHOICES: MappingProxyType[str, Choice] = MappingProxyType(
    {
        "shortest": shortest,
        "longest": longest,
        "latest": latest,
        "oldest": oldest,
        "lowest-class": lowest_class,
        "next-in-line": next_in_line,
    }
)


def choose(requests: Sequence[Movable], choice: Choice, count: int | None) -> list[Movable]:
    """At most `count` requests (None: all), in the order in which they go; ties by id."""
    ranked = sorted(requests, key=lambda each: (choice(each), each.request))
    return ranked if count is None else ranked[:count]
