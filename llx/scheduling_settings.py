"""How a model is scheduled, as cluster.yaml says it, and the core's configuration made of it.

The defaults are the core's (`llx.core.scheduler.config`), whose words explain what each means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import PydanticCustomError

from llx.core.model import Blocks, ClassName, Nanos, PoolName, Tokens
from llx.core.scheduler.config import (
    SECOND,
    PoolConfig,
    PriorityClass,
    Rescheduling,
    Scaling,
    Slo,
    StepTime,
)
from llx.core.scheduler.freeness import Freeness
from llx.errors import ConfigError

if TYPE_CHECKING:  # they are asked for by the head alone
    from llx.core.scheduler.policies import Policies

_MILLISECOND: Final = 1_000_000
_MICROSECOND: Final = 1_000
_SCALING: Final = Scaling()
_DRAIN: Final = "drain"


def _not_drain(step: str) -> str:
    if step == _DRAIN:
        raise PydanticCustomError("steps", '"drain" is what `llx inst drain` does, not a step here')
    return step


Step = Annotated[str, AfterValidator(_not_drain)]
"""A rescheduling rule's name."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class SloSettings(_Section):
    """What a class is promised, for policies that predict."""

    ttft_ms: float = Field(gt=0)
    tpot_ms: float = Field(gt=0)


class PriorityClassSettings(_Section):
    """A named urgency; a lower `priority` is more urgent."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    priority: int
    default: bool = False
    headroom_blocks: int = Field(default=0, ge=0)
    headroom_share: float = Field(default=1.0, gt=0, le=1)
    queue_limit: int = Field(default=1024, ge=1)
    max_wait_s: float = Field(default=600, gt=0)
    slo: SloSettings | None = None


class StepTimeSettings(_Section):
    """An engine step's predicted time, for policies that predict."""

    base_ms: float = Field(default=8.0, ge=0)
    per_prefill_token_us: float = Field(default=20.0, ge=0)
    per_request_us: float = Field(default=50.0, ge=0)
    per_block_us: float = Field(default=0.16, ge=0)

    def value(self) -> StepTime:
        """In the core's units."""
        return StepTime(
            base=_nanos(self.base_ms, _MILLISECOND),
            per_prefill_token=_nanos(self.per_prefill_token_us, _MICROSECOND),
            per_request=_nanos(self.per_request_us, _MICROSECOND),
            per_block=_nanos(self.per_block_us, _MICROSECOND),
        )


class ReschedulingSettings(_Section):
    """When running requests move."""

    steps: tuple[Step, ...] = ("preempt", "requeue", "make_room", "balance")
    low: float = 3.0
    high: float = 6.0
    hysteresis: float = Field(default=1.0, ge=0)
    choice: str = "lowest-class"
    rest_s: float = Field(default=2, ge=0)
    max_out: int = Field(default=2, ge=1)
    max_in: int = Field(default=2, ge=1)
    max_moves: int = Field(default=64, ge=1)
    retry_after_s: float = Field(default=0.5, ge=0)
    deadline_s: float = Field(default=60, gt=0)


class ScalingSettings(_Section):
    """When a model whose `instances` are a range gets one more or one less.

    `weight`: of two models that want the same devices, how much more of them this one gets.
    """

    rule: str = "demand"
    low: float = float(_SCALING.low)
    high: float = float(_SCALING.high)
    sustain_s: float = Field(default=_SCALING.sustain / SECOND, ge=0)
    grow_after_s: float = Field(default=_SCALING.grow_after / SECOND, ge=0)
    cooldown_s: float = Field(default=_SCALING.cooldown / SECOND, ge=0)
    lost_grace_s: float = Field(default=_SCALING.lost_grace / SECOND, ge=0)
    weight: float = Field(default=1.0, gt=0)


class SchedulingSettings(_Section):
    """How the requests of a model are placed and moved, and how many instances it has."""

    dispatch: str = "soonest"
    binding: Literal["late", "immediate"] = "late"
    overtaking: int = Field(default=16, ge=0)
    growth_tokens: int = Field(default=16, ge=0)
    age_after_s: float = Field(default=30, gt=0)
    charge_expires_after_s: float = Field(default=5, gt=0)
    step_time: StepTimeSettings = StepTimeSettings()
    rescheduling: ReschedulingSettings = ReschedulingSettings()
    scaling: ScalingSettings = ScalingSettings()


def pool_config(
    name: str,
    scheduling: SchedulingSettings,
    classes: Sequence[PriorityClassSettings],
    *,
    step_tokens: int,
    max_requests: int,
    can_move: bool = True,
    num_instances: tuple[int, int] = (1, 1),
) -> PoolConfig:
    """The core's configuration of a pool.

    Args:
        name: The model's.
        scheduling: Its section.
        classes: The cluster's, in any order.
        step_tokens: Tokens that its engines compute in a step.
        max_requests: Requests that they run at a time.
        can_move: Whether their requests can move.
        num_instances: The least and the most that there are; the scheduler has no say if they are
            the same.

    Raises:
        ConfigError: The numbers contradict each other.
    """
    least, most = num_instances
    pool = PoolConfig(
        name=PoolName(name),
        classes=tuple(_class(each) for each in sorted(classes, key=lambda each: each.priority)),
        step_tokens=Tokens(step_tokens),
        max_requests=max_requests,
        scaling=Scaling(min_instances=least, max_instances=most),
    )
    return with_rules(pool, scheduling, can_move=can_move)


def with_rules(pool: PoolConfig, scheduling: SchedulingSettings, *, can_move: bool) -> PoolConfig:
    """A pool scheduled by a model's section; its classes, sizes and numbers stay its own.

    Raises:
        ConfigError: The numbers contradict each other.
    """
    limits = pool.scaling.min_instances, pool.scaling.max_instances
    return replace(
        pool,
        dispatch=scheduling.dispatch,
        is_immediate=scheduling.binding == "immediate",
        overtaking=scheduling.overtaking,
        growth_tokens=Tokens(scheduling.growth_tokens),
        age_after=_nanos(scheduling.age_after_s),
        charge_expires_after=_nanos(scheduling.charge_expires_after_s),
        step_time=scheduling.step_time.value(),
        rescheduling=_rescheduling(scheduling.rescheduling) if can_move else Rescheduling(steps=()),
        scaling=_scaling(scheduling.scaling, *limits),
    )


def with_changes(
    scheduling: SchedulingSettings, changes: Mapping[str, JsonValue]
) -> SchedulingSettings:
    """The settings with dotted keys replaced.

    Raises:
        ConfigError: A key does not exist, or a value is not allowed.
    """
    values: dict[str, Any] = scheduling.model_dump(mode="json")
    for key, value in changes.items():
        *sections, last = key.split(".")
        place: Any = values
        for each in sections:
            place = place.get(each) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            known = ", ".join(_keys("", values))
            raise ConfigError(f'scheduling has no key "{key}"', remedy=f"there are: {known}")
        place[last] = value
    try:
        return SchedulingSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise ConfigError(f"scheduling.{where}: {first['msg']}") from None


def settings_of(pool: PoolConfig) -> SchedulingSettings:
    """The section that a pool is scheduled by: `with_rules` turned around, `weight` apart."""
    moves, scaling, step = pool.rescheduling, pool.scaling, pool.step_time
    return SchedulingSettings(
        dispatch=pool.dispatch,
        binding="immediate" if pool.is_immediate else "late",
        overtaking=pool.overtaking,
        growth_tokens=pool.growth_tokens,
        age_after_s=pool.age_after / SECOND,
        charge_expires_after_s=pool.charge_expires_after / SECOND,
        step_time=StepTimeSettings(
            base_ms=step.base / _MILLISECOND,
            per_prefill_token_us=step.per_prefill_token / _MICROSECOND,
            per_request_us=step.per_request / _MICROSECOND,
            per_block_us=step.per_block / _MICROSECOND,
        ),
        rescheduling=ReschedulingSettings.model_construct(  # checked when it is changed
            steps=tuple(each for each in moves.steps if each != _DRAIN),
            low=float(moves.low),
            high=float(moves.high),
            hysteresis=float(moves.hysteresis),
            choice=moves.choice,
            rest_s=moves.rest / SECOND,
            max_out=moves.max_out,
            max_in=moves.max_in,
            max_moves=moves.max_moves,
            retry_after_s=moves.retry_after / SECOND,
            deadline_s=moves.deadline / SECOND,
        ),
        scaling=ScalingSettings(
            rule=scaling.rule,
            low=float(scaling.low),
            high=float(scaling.high),
            sustain_s=scaling.sustain / SECOND,
            grow_after_s=scaling.grow_after / SECOND,
            cooldown_s=scaling.cooldown / SECOND,
            lost_grace_s=scaling.lost_grace / SECOND,
        ),
    )


def with_changed_rules(pool: PoolConfig, changes: Mapping[str, JsonValue]) -> PoolConfig:
    """A pool with dotted keys of its section replaced; how it empties instances stays as it is.

    Raises:
        ConfigError: A key does not exist, or a value is not allowed.
    """
    changed = with_rules(pool, with_changes(settings_of(pool), changes), can_move=True)
    before, moves = pool.rescheduling.steps, changed.rescheduling
    if _DRAIN not in before:
        return changed
    later = before[before.index(_DRAIN) :]
    at = next((n for n, each in enumerate(moves.steps) if each in later), len(moves.steps))
    steps = (*moves.steps[:at], _DRAIN, *moves.steps[at:])
    return replace(changed, rescheduling=replace(moves, steps=steps))


def installed_policies() -> "Policies":
    """The built-in policies, and those of packages that are installed here.

    Raises:
        ConfigError: A package's entry point is wrong.
    """
    from importlib.metadata import entry_points

    from llx.core.scheduler.policies import ENTRY_POINTS, extended

    return extended(entry_points(group=ENTRY_POINTS))


def _rescheduling(settings: ReschedulingSettings) -> Rescheduling:
    return Rescheduling(
        steps=settings.steps,
        low=Freeness(settings.low),
        high=Freeness(settings.high),
        hysteresis=Freeness(settings.hysteresis),
        choice=settings.choice,
        rest=_nanos(settings.rest_s),
        max_out=settings.max_out,
        max_in=settings.max_in,
        max_moves=settings.max_moves,
        retry_after=_nanos(settings.retry_after_s),
        deadline=_nanos(settings.deadline_s),
    )


def _scaling(settings: ScalingSettings, least: int, most: int) -> Scaling:
    return Scaling(
        rule=settings.rule if least < most else "none",
        min_instances=least,
        max_instances=most,
        low=Freeness(settings.low),
        high=Freeness(settings.high),
        sustain=_nanos(settings.sustain_s),
        grow_after=_nanos(settings.grow_after_s),
        cooldown=_nanos(settings.cooldown_s),
        lost_grace=_nanos(settings.lost_grace_s),
    )


def _class(settings: PriorityClassSettings) -> PriorityClass:
    slo = settings.slo
    return PriorityClass(
        name=ClassName(settings.name),
        priority=settings.priority,
        headroom=Blocks(settings.headroom_blocks),
        headroom_share=settings.headroom_share,
        queue_limit=settings.queue_limit,
        max_wait=_nanos(settings.max_wait_s),
        slo=None
        if slo is None
        else Slo(_nanos(slo.ttft_ms, _MILLISECOND), _nanos(slo.tpot_ms, _MILLISECOND)),
    )


def _nanos(value: float, unit: int = SECOND) -> Nanos:
    return Nanos(round(value * unit))


def _keys(prefix: str, values: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        found += _keys(f"{prefix}{key}.", value) if isinstance(value, dict) else [prefix + key]
    return found
