"""What a rollout does next, by what it sees of its instances: pure.

Instances of the former revision give way to as many of the new one. Where requests can move from
the one to the other:

    room for one more?   yes: a new one is added ─► ready, steady ─► a former one is emptied ─► …
                         no:  a former one is emptied ─► a new one is added ─► ready, steady ─► …

Where they cannot, the new ones are a pool of their own beside the former. New requests go there as
soon as it is as large as what is left of the former pool and there is room for no more; then the
former instances are emptied, all at once: what they have may finish until the deadline.
"""

from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """What to do now."""

    WAIT = "wait"
    ADD = "add a new instance"
    RETIRE = "empty a former instance"
    SWITCH = "send new requests to the new generation"
    RETIRE_ALL = "empty all former instances"
    STUCK = "nothing can be done without an end of service"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Sight:
    """A rollout as it is.

    Attributes:
        former: Instances of the former revision that are in use.
        failed: Those among them that have failed.
        new: Instances of the new revision.
        going: Former instances that are being emptied.
        count: So many new ones there are to be.
        has_room: One more could be placed beside all these.
        is_steady: The new ones serve, and have for a moment.
        is_one_pool: Requests can move from the former to the new.
        is_switched: New requests go to the new generation already.
    """

    former: int
    failed: int
    new: int
    going: int
    count: int
    has_room: bool
    is_steady: bool
    is_one_pool: bool
    is_switched: bool


def next_step(sight: Sight) -> Step:
    """What to do now; each step is seen to its end before the next."""
    if not sight.is_steady:
        return Step.WAIT
    if sight.is_switched and not sight.is_one_pool:
        return _after_the_switch(sight)
    if sight.going:
        return Step.WAIT
    if sight.failed:
        return Step.RETIRE
    return _in_one_pool(sight) if sight.is_one_pool else _side_by_side(sight)


def _in_one_pool(sight: Sight) -> Step:
    total = sight.former + sight.new
    if total > sight.count and sight.former:
        return Step.RETIRE
    if sight.new >= sight.count:
        return Step.DONE
    if total < sight.count or sight.has_room:
        return Step.ADD
    return Step.RETIRE if total > 1 else Step.STUCK


def _side_by_side(sight: Sight) -> Step:
    if sight.new < sight.count and sight.has_room:
        return Step.ADD
    if sight.new and sight.new >= min(sight.former, sight.count):
        return Step.SWITCH
    return Step.RETIRE if sight.former > 1 else Step.STUCK


def _after_the_switch(sight: Sight) -> Step:
    if sight.former:
        return Step.RETIRE_ALL
    if sight.new < sight.count and (sight.has_room or not sight.going):
        return Step.ADD
    return Step.WAIT if sight.going else Step.DONE
