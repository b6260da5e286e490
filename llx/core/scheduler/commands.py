"""What the scheduler wants done. A driver does it, and says what came of it as events."""

from enum import Enum

from llx.core.fixed import fixed
from llx.core.model import ClassName, InstanceId, Nanos, PoolName, RequestId
from llx.core.scheduler.decision import Decision
from llx.core.scheduler.events import MoveId
from llx.core.scheduler.move_rule import MoveRule


class Refusal(Enum):
    """Why a request gets no instance."""

    QUEUE_FULL = "queue full"
    """429."""
    TOO_BUSY = "would wait too long"
    """429: as fast as the queue is served, it would not be served in time."""
    WAITED_TOO_LONG = "waited too long"
    """503."""
    OUT_OF_TIME = "out of its client's time"
    """504: it could not be done any more in the time that its client gives it."""
    TOO_LARGE = "larger than an instance"
    """400: it would not fit an instance that has nothing else."""
    NO_SUCH_POOL = "no such pool"
    """404."""


@fixed
class Dispatch:
    """Send the request to the instance now."""

    request: RequestId
    instance: InstanceId
    decision: Decision


@fixed
class Hold:
    """Keep the request: it waits in the central queue and will be dispatched or refused.

    Attributes:
        request: Which.
        priority_class: Whose queue.
        num_waiting: Requests of its class that wait, itself included.
        decision: Whom it is nominated for, if it is the head of its queue; else None.
    """

    request: RequestId
    priority_class: ClassName
    num_waiting: int
    decision: Decision | None


@fixed
class Refuse:
    """Tell the client no. `retry_after`: when there may be room; None where it makes no sense."""

    request: RequestId
    reason: Refusal
    retry_after: Nanos | None


@fixed
class Move:
    """Have the source move a request of its own choice, within the rule, to the target."""

    pool: PoolName
    move: MoveId
    source: InstanceId
    target: InstanceId
    rule: MoveRule
    decision: Decision


@fixed
class AddInstances:
    """So many more instances: first those that are being emptied, used again; then new ones."""

    pool: PoolName
    count: int
    decision: Decision


@fixed
class Terminate:
    """There is one instance too many, and it is this: it is being emptied from now on."""

    pool: PoolName
    instance: InstanceId
    decision: Decision


@fixed
class Emptied:
    """A terminating instance has nothing left; it may be stopped. Said once."""

    pool: PoolName
    instance: InstanceId


Command = Dispatch | Hold | Refuse | Move | AddInstances | Terminate | Emptied
