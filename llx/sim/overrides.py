"""Rules of scheduling as a user writes them: a named policy, and what is different about it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llx.core.model import Nanos
from llx.core.scheduler.config import PoolConfig
from llx.sim.presets import POLICIES, paper_cluster


class Part(BaseModel):
    """A part of a file: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ReschedulingRules(Part):
    """When requests move; as `llx.core.scheduler.config.Rescheduling`."""

    steps: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    hysteresis: float | None = Field(default=None, ge=0)
    choice: str | None = None
    rest_s: float | None = Field(default=None, ge=0)
    max_out: int | None = Field(default=None, ge=0)
    max_in: int | None = Field(default=None, ge=0)
    max_moves: int | None = Field(default=None, ge=0)
    retry_after_s: float | None = Field(default=None, ge=0)
    deadline_s: float | None = Field(default=None, gt=0)


class ScalingRules(Part):
    """How many instances there are; as `llx.core.scheduler.config.Scaling`."""

    rule: str | None = None
    min_instances: int | None = Field(default=None, ge=0)
    max_instances: int | None = Field(default=None, ge=0)
    low: float | None = None
    high: float | None = None
    sustain_s: float | None = Field(default=None, ge=0)
    grow_after_s: float | None = Field(default=None, ge=0)
    cooldown_s: float | None = Field(default=None, ge=0)


class PolicyRules(Part):
    """A policy: one that is known, and what differs from it."""

    base: str | None = Field(default=None, alias="from")
    dispatch: str | None = None
    immediate: bool | None = None
    overtaking: int | None = Field(default=None, ge=0)
    growth_tokens: int | None = Field(default=None, ge=0)
    age_after_s: float | None = Field(default=None, gt=0)
    rescheduling: ReschedulingRules = ReschedulingRules()
    scaling: ScalingRules = ScalingRules()

    def base_of(self, name: str) -> str:
        """The known policy that a policy of this name begins with."""
        return self.base or (name if name in POLICIES else "llx")

    def instead(self, pool: PoolConfig) -> PoolConfig:
        """These rules in the place of a pool's own; its classes and sizes stay.

        Raises:
            ConfigError: No such policy, or the numbers contradict each other.
        """
        return self.apply(pool if self.base is None else by_policy(pool, self.base))

    def apply(self, pool: PoolConfig) -> PoolConfig:
        """A pool with what differs.

        Raises:
            ConfigError: The numbers contradict each other.
        """
        own = {
            "dispatch": self.dispatch,
            "is_immediate": self.immediate,
            "overtaking": self.overtaking,
            "growth_tokens": self.growth_tokens,
            "age_after": _nanos(self.age_after_s),
            "rescheduling": replace(pool.rescheduling, **_changes(self.rescheduling)),
            "scaling": replace(pool.scaling, **_changes(self.scaling)),
        }
        return replace(pool, **given(own))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def by_policy(pool: PoolConfig, name: str) -> PoolConfig:
    """A pool under the rules of a known policy; classes and sizes stay its own.

    Raises:
        ConfigError: No such policy.
    """
    return replace(
        paper_cluster(name).pool,
        name=pool.name,
        classes=pool.classes,
        step_tokens=pool.step_tokens,
        max_requests=pool.max_requests,
        charge_expires_after=pool.charge_expires_after,
        step_time=pool.step_time,
    )


def _changes(rules: Part) -> dict[str, Any]:
    """Fields that are given, under the names that the core has for them."""
    values: Mapping[str, Any] = rules.model_dump()
    return given(
        {
            name.removesuffix("_s"): _nanos(value) if name.endswith("_s") else value
            for name, value in values.items()
        }
    )


def _nanos(seconds: float | None) -> Nanos | None:
    return None if seconds is None else Nanos(round(seconds * 1e9))
