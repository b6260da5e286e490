"""Which request moves is the source's choice, within a rule that comes with the order.

The scheduler knows loads, not requests: an order says "one of this class or a less urgent one,
about so many blocks", and the source, which knows its requests at this very moment, picks one.
"""

from collections.abc import Collection, Sequence

from llx.core.fixed import fixed
from llx.core.model import Blocks, Nanos, RequestId, Tokens
from llx.core.request_choice import CHOICES, Movable


@fixed
class MoveRule:
    """What may be picked, and what of it.

    Attributes:
        choice: Ranks those that may move (`llx.core.request_choice.CHOICES`).
        least_priority: Only requests with this priority integer or a higher one, hence at most
            this urgent; None: any.
        about: Blocks that are wanted free; None: as the choice has it.
        at_most: What the target has room for.
        rest: Not one that has moved within this time.
        most_tokens: Of its prompt and its output so far; None: any number. What waits holds no
            blocks, so that says nothing of what it will take.
    """

    choice: str
    least_priority: int | None
    about: Blocks | None
    at_most: Blocks
    rest: Nanos
    most_tokens: Tokens | None = None


def pick(
    rule: MoveRule, requests: Sequence[Movable], resting: Collection[RequestId]
) -> Movable | None:
    """The request that goes: the first by the rule's choice, ties by id.

    Where blocks are wanted, one that has as many alone goes before those that have not; if none
    has, the largest goes, and the scheduler orders another.

    Args:
        rule: From the order.
        requests: That can move.
        resting: Those among them that moved less than `rule.rest` ago.
    """
    rank = CHOICES[rule.choice]
    allowed = [
        each
        for each in requests
        if each.num_blocks <= rule.at_most
        and each.request not in resting
        and (rule.most_tokens is None or each.num_tokens <= rule.most_tokens)
        and (rule.least_priority is None or each.priority >= rule.least_priority)
    ]
    if rule.about is not None:
        enough = [each for each in allowed if each.num_blocks >= rule.about]
        largest = max((each.num_blocks for each in allowed), default=0)
        allowed = enough or [each for each in allowed if each.num_blocks == largest]
    return min(allowed, key=lambda each: (rank(each), each.request), default=None)
