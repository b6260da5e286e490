"""What a pool has decided and has not seen come about yet: dispatches, moves, starts."""

from dataclasses import dataclass

from llx.core.fixed import fixed
from llx.core.model import Blocks, Nanos, Tokens
from llx.core.scheduler.events import MoveId
from llx.core.scheduler.instance import Instance


@fixed
class Charge:
    """A request that was dispatched and is in no report yet."""

    instance: Instance
    rank: int
    demand: Blocks
    tokens: Tokens
    at: Nanos


@fixed
class OpenMove:
    """A move that was ordered and has not ended.

    `blocks`: about how many. `is_waiting`: of one that waits in its source's own queue.
    """

    move: MoveId
    source: Instance
    target: Instance
    blocks: Blocks
    at: Nanos
    is_waiting: bool


@fixed
class Settling:
    """A move that has taken place, at an end of it that has not said so in a report yet."""

    blocks: Blocks
    at: Nanos
    is_target: bool


@dataclass(slots=True)
class ScalingState:
    """What scaling remembers: since when the average is out of its band, and what is under way.

    `low_since`: since when there is too little, or somebody waits; `missing_since`: since when
    there is too little to have all there is run, which the rule `demand` alone looks at.
    """

    low_since: Nanos | None = None
    missing_since: Nanos | None = None
    high_since: Nanos | None = None
    changed_at: Nanos | None = None
    starting: int = 0
    asked_at: Nanos | None = None
    failed_at: Nanos | None = None

    def forget_since(self) -> None:
        """All that is to last for a while begins anew."""
        self.low_since = self.missing_since = self.high_since = None

    def found(self) -> None:
        """One that was asked for, if any was, is there."""
        self.starting = max(0, self.starting - 1)

    def fail(self, count: int, now: Nanos) -> None:
        """So many that were starting will not come; the next is asked for after the cooldown."""
        self.starting = max(0, self.starting - count)
        self.failed_at = now
