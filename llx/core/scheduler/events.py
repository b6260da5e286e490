"""What the scheduler is told. A driver makes these of messages, or of a simulation's happenings."""

from enum import Enum
from typing import NewType

from llx.core.fixed import fixed
from llx.core.model import (
    Blocks,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
)
from llx.core.scheduler.config import PoolConfig

MoveId = NewType("MoveId", int)
"""A move that this scheduler ordered: 1, 2, … in each pool."""


class InstanceState(Enum):
    """What may be done with an instance."""

    UP = "up"
    CORDONED = "cordoned"
    """Takes nothing new; what it has may go on, or move away when others are freer."""
    TERMINATING = "terminating"
    """To be emptied, whatever for: a drain, an upgrade, fewer instances."""
    LOST = "lost"
    """Not heard of; may come back."""


class MoveOutcome(Enum):
    """How a move ended."""

    MOVED = "moved"
    KEPT = "kept"
    """It goes on at the source: refused or given up."""
    GONE = "gone"
    """The request has ended meanwhile."""
    NONE = "none"
    """The source had none that may move."""


@fixed
class PoolConfigured:
    """A pool begins, or is scheduled by other rules from now on."""

    config: PoolConfig


@fixed
class PoolGone:
    """A pool is no more: whoever waits is refused. Told when its last instance has left."""

    pool: PoolName


@fixed
class StartFailed:
    """So many of the instances that were asked for will not join."""

    pool: PoolName
    count: int = 1


@fixed
class InstanceJoined:
    """An instance is there. It takes part once it has reported."""

    pool: PoolName
    instance: InstanceId


@fixed
class InstanceChanged:
    """An instance is to be used otherwise, or is lost, or back.

    LOST does not touch what is wanted of it: UP of a lost one says that it is back, cordoned or
    terminating if it was that before, or has become that while it was lost.
    """

    instance: InstanceId
    state: InstanceState


@fixed
class InstanceLeft:
    """An instance is no more. What it had comes back as arrivals, if it goes on."""

    instance: InstanceId


@fixed
class LoadReported:
    """An instance's load, on change.

    Attributes:
        instance: Whose.
        load: As it is now.
        covers: Requests dispatched to it that this report, or an earlier one, contains.
        queue_head: Demand of the request that waits first there; None: not said, and then taken as
            the mean of the most urgent class that waits.
    """

    instance: InstanceId
    load: InstanceLoad
    covers: tuple[RequestId, ...] = ()
    queue_head: Blocks | None = None


@fixed
class RequestArrived:
    """A request wants an instance: a new one, or one that has lost its own.

    Attributes:
        pool: Of which model.
        request: Its id. One that waits already keeps its place.
        priority_class: A name that the pool does not know counts as its least urgent class. One
            that waits in another class goes over to this, and keeps its age; how long it may wait
            there counts from now.
        num_tokens: To be computed before its next token: prompt, and outputs so far.
        waited: Since it first came; 0 unless another scheduler had it before.
        prefix_hits: Instances that have some of its KV cached, and how many tokens of it.
        held: Since it came into this class, of one that a scheduler has held before; None: none
            has, and it came into it when it first came. One that was held is taken in however
            many wait.
        patience: So long it may wait in the queue and still be done in the time that its client
            gives it; None: its client has not said.
    """

    pool: PoolName
    request: RequestId
    priority_class: ClassName
    num_tokens: Tokens
    waited: Nanos = Nanos(0)
    prefix_hits: tuple[tuple[InstanceId, Tokens], ...] = ()
    held: Nanos | None = None
    patience: Nanos | None = None


@fixed
class RequestWithdrawn:
    """The client has gone, or the dispatch could not be carried out."""

    pool: PoolName
    request: RequestId


@fixed
class MoveEnded:
    """A move has ended. A second one of the same move is ignored."""

    pool: PoolName
    move: MoveId
    outcome: MoveOutcome


@fixed
class Paused:
    """Nothing is moved or scaled from now on but by `Stepped`. Requests are dispatched as ever."""

    pool: PoolName


@fixed
class Resumed:
    """Ends `Paused`."""

    pool: PoolName


@fixed
class Stepped:
    """One round of rescheduling and scaling, also of a paused pool."""

    pool: PoolName


@fixed
class Ticked:
    """Time has passed: a round for every pool. The driver chooses how often."""


Event = (
    PoolConfigured
    | PoolGone
    | StartFailed
    | InstanceJoined
    | InstanceChanged
    | InstanceLeft
    | LoadReported
    | RequestArrived
    | RequestWithdrawn
    | MoveEnded
    | Paused
    | Resumed
    | Stepped
    | Ticked
)
