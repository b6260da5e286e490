"""How a pool is scheduled: classes, thresholds, budgets. Checked once, never changed in place."""

from dataclasses import dataclass, field
from typing import Final

from llx.core.model import Blocks, ClassName, Nanos, PoolName, Tokens
from llx.core.scheduler.freeness import Freeness
from llx.errors import ConfigError

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

_GIVES_BELOW: Final = Freeness(3.0)
_TAKES_ABOVE: Final = Freeness(6.0)
_HYSTERESIS: Final = Freeness(1.0)
_GROWS_BELOW: Final = Freeness(10.0)
_SHRINKS_ABOVE: Final = Freeness(60.0)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a class is promised: time to the first token, time per token after it."""

    ttft: Nanos
    tpot: Nanos


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """A named urgency.

    Attributes:
        name: Its name.
        priority: The integer that vLLM sees; lower is more urgent.
        headroom: Blocks kept free on an instance where one of it runs.
        queue_limit: How many of it wait in the central queue; who comes then is refused.
        max_wait: How long one waits there before it is refused; counts anew in another class.
        slo: Its promise, for policies that predict.
        headroom_share: Of the pool's instances at most this share keep it, but one in any case;
            then its requests share those, as long as they are not more crowded than the others.
    """

    name: ClassName
    priority: int
    headroom: Blocks = Blocks(0)
    queue_limit: int = 1024
    max_wait: Nanos = Nanos(600 * SECOND)
    slo: Slo | None = None
    headroom_share: float = 1.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """An engine step's predicted time: the four terms add up.

    Attributes:
        base: Of any step.
        per_prefill_token: For each prompt token computed in it.
        per_request: For each request decoding in it.
        per_block: For each KV block that those read.
    """

    base: Nanos = Nanos(8 * MILLISECOND)
    per_prefill_token: Nanos = Nanos(20_000)
    per_request: Nanos = Nanos(50_000)
    per_block: Nanos = Nanos(160)


@dataclass(frozen=True, slots=True)
class Rescheduling:
    """When requests move.

    Attributes:
        steps: Names of the rescheduling rules, in the order in which they are asked.
        low: An instance that is less free gives requests away …
        high: … to one that is freer than this. By `requeue` to one that has twice as much left.
        hysteresis: How far past its threshold an instance must come back before it stops.
        choice: Which request goes (`llx.core.request_choice.CHOICES`).
        rest: For so long a moved request does not move again, and the two instances do not change
            roles, lest work goes back and forth.
        max_out: Moves away from an instance at a time.
        max_in: Moves to an instance at a time.
        max_moves: Moves in the pool at a time.
        retry_after: Pause of a source after a move that did not come about.
        deadline: A move that has not ended by then counts no longer.
    """

    steps: tuple[str, ...] = ("preempt", "requeue", "drain", "make_room", "balance")
    low: Freeness = _GIVES_BELOW
    high: Freeness = _TAKES_ABOVE
    hysteresis: Freeness = _HYSTERESIS
    choice: str = "lowest-class"
    rest: Nanos = Nanos(2 * SECOND)
    max_out: int = 2
    max_in: int = 2
    max_moves: int = 64
    retry_after: Nanos = Nanos(500 * MILLISECOND)
    deadline: Nanos = Nanos(60 * SECOND)


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many instances there are.

    Attributes:
        rule: Name of the scaling rule.
        min_instances: Never fewer.
        max_instances: Never more, those that are starting included.
        low: An average freeness below this asks for more …
        high: … and one above this for one less …
        sustain: … when it has lasted so long; of `demand` one less only, and one more for a queue.
        cooldown: Pause after each change, and after a start that has failed.
        start_deadline: One that was asked for and has not joined by then is asked for again.
        lost_grace: One that is lost is missed, and may be replaced, only after this.
        grow_after: For so long instances are missing before `demand` asks for them.
    """

    rule: str = "none"
    min_instances: int = 1
    max_instances: int = 1
    low: Freeness = _GROWS_BELOW
    high: Freeness = _SHRINKS_ABOVE
    sustain: Nanos = Nanos(10 * SECOND)
    cooldown: Nanos = Nanos(30 * SECOND)
    start_deadline: Nanos = Nanos(600 * SECOND)
    lost_grace: Nanos = Nanos(30 * SECOND)
    grow_after: Nanos = Nanos(2 * SECOND)


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A pool: the instances of one model, and the rules for them.

    Attributes:
        name: Its name.
        classes: Priority classes, each with a name and a priority of its own.
        dispatch: Name of the dispatch policy.
        is_immediate: Send every request at once to the instance's own queue, as in the paper,
            instead of keeping it until an instance has room.
        overtaking: So many of a class that wait behind its head may be sent before it while it
            waits for room, to where they take nothing of what is kept for it; until it has waited
            for `age_after`.
        growth_tokens: So many are to find room on an instance for each of its requests, which grow
            as they decode: blocks for their sum are kept free.
        step_tokens: Tokens that an engine computes in a step (vLLM's max_num_batched_tokens).
        max_requests: Requests that an engine runs at a time (vLLM's max_num_seqs).
        age_after: Waiting for so long makes a request one class more urgent, in the queue only.
        charge_expires_after: A dispatch that no report covers by then counts no longer.
        step_time: Predicts, for policies that do.
        rescheduling: When requests move.
        scaling: How many instances there are.

    Raises:
        ConfigError: The numbers contradict each other.
    """

    name: PoolName
    classes: tuple[PriorityClass, ...]
    dispatch: str = "soonest"
    is_immediate: bool = False
    overtaking: int = 16
    growth_tokens: Tokens = Tokens(16)
    step_tokens: Tokens = Tokens(8192)
    max_requests: int = 256
    age_after: Nanos = Nanos(30 * SECOND)
    charge_expires_after: Nanos = Nanos(5 * SECOND)
    step_time: StepTime = field(default_factory=StepTime)
    rescheduling: Rescheduling = field(default_factory=Rescheduling)
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        priorities = [each.priority for each in self.classes]
        if not priorities or priorities != sorted(set(priorities)):
            raise ConfigError(f"pool {self.name}: classes are to be given by rising priority")
        if len({each.name for each in self.classes}) < len(self.classes):
            raise ConfigError(f"pool {self.name}: two classes have the same name")
        for each in self.classes:
            if each.queue_limit < 1:
                raise ConfigError(f"pool {self.name}: {each.name}.queue_limit must be at least 1")
            if not 0 < each.headroom_share <= 1:
                raise ConfigError(
                    f"pool {self.name}: {each.name}.headroom_share must be above 0 and at most 1"
                )
        if self.age_after < 1:
            raise ConfigError(f"pool {self.name}: age_after must be above 0")
        if min(self.overtaking, self.growth_tokens) < 0:
            raise ConfigError(
                f"pool {self.name}: overtaking and growth_tokens must not be negative"
            )
        moves, scaling = self.rescheduling, self.scaling
        if moves.low + moves.hysteresis > moves.high - moves.hysteresis:
            raise ConfigError(
                f"pool {self.name}: rescheduling.low must be below high, twice hysteresis apart"
            )
        if not 0 <= scaling.min_instances <= scaling.max_instances:
            raise ConfigError(f"pool {self.name}: scaling.min_instances is above max_instances")
        if scaling.low > scaling.high:
            raise ConfigError(f"pool {self.name}: scaling.low is above scaling.high")

    def rank_of(self, priority: int) -> int:
        """The class of a priority integer, 0 the most urgent.

        One between two classes is of the less urgent, one beyond the last is of the last.
        """
        for rank, each in enumerate(self.classes):
            if priority <= each.priority:
                return rank
        return len(self.classes) - 1
