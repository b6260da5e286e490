"""The tables of policies, and how they are extended from outside.

A package extends a table by an entry point in the group `llx.policies` that is named
``dispatch.NAME``, ``rescheduling.NAME`` or ``scaling.NAME`` and loads to what the table holds.
Finding entry points reads the disk, so the driver does that, once; here they are only sorted in.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from llx.core.request_choice import CHOICES
from llx.core.scheduler.config import PoolConfig
from llx.core.scheduler.dispatch import DISPATCH, DispatchPolicy
from llx.core.scheduler.rescheduling import RESCHEDULING, ReschedulingRule
from llx.core.scheduler.scaling import SCALING, ScalingRule
from llx.errors import ConfigError

ENTRY_POINTS: Final = "llx.policies"
"""The group of entry points that the driver looks for."""


class EntryPoint(Protocol):
    """What is used of `importlib.metadata.EntryPoint`."""

    @property
    def name(self) -> str:
        """``table.NAME``."""

    def load(self) -> Any:
        """The policy."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Every policy that a pool's configuration can name."""

    dispatch: Mapping[str, DispatchPolicy] = field(default_factory=lambda: DISPATCH)
    rescheduling: Mapping[str, ReschedulingRule] = field(default_factory=lambda: RESCHEDULING)
    scaling: Mapping[str, ScalingRule] = field(default_factory=lambda: SCALING)

    def check(self, config: PoolConfig) -> None:
        """Whether all names in a configuration are known.

        Raises:
            ConfigError: One is not.
        """
        _known("dispatch policy", config.dispatch, self.dispatch)
        for step in config.rescheduling.steps:
            _known("rescheduling rule", step, self.rescheduling)
        _known("choice of requests", config.rescheduling.choice, CHOICES)
        _known("scaling rule", config.scaling.rule, self.scaling)


def extended(entry_points: Iterable[EntryPoint]) -> Policies:
    """The built-in policies and those that entry points bring.

    Raises:
        ConfigError: An entry point names no table, or a policy that exists.
    """
    own = Policies()
    tables: dict[str, dict[str, Any]] = {
        "dispatch": dict(own.dispatch),
        "rescheduling": dict(own.rescheduling),
        "scaling": dict(own.scaling),
    }
    for each in sorted(entry_points, key=lambda each: each.name):
        kind, _, name = each.name.partition(".")
        if kind not in tables or not name:
            raise ConfigError(
                f"entry point {each.name!r} of {ENTRY_POINTS} names no table",
                remedy=f"call it {', '.join(f'{table}.NAME' for table in tables)}",
            )
        if name in tables[kind]:
            raise ConfigError(f"entry point {each.name!r} of {ENTRY_POINTS}: that name is taken")
        tables[kind][name] = each.load()
    return Policies(**{kind: MappingProxyType(table) for kind, table in tables.items()})


def _known(what: str, name: str, table: Mapping[str, Any]) -> None:
    if name not in table:
        raise ConfigError(f"no {what} {name!r}", remedy=f"one of {', '.join(sorted(table))}")
