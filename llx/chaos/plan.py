"""A plan of faults as a file, or drawn from a seed. Nothing here touches a cluster."""

import random
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llx.errors import ConfigError
from llx.yaml_reader import read_yaml

Seconds = Annotated[float, Field(ge=0, le=3600)]


class FaultKind(StrEnum):
    """What is done to a victim."""

    KILL = "kill"
    """SIGKILL."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT some time later."""
    SLOW = "slow"
    """Stopped three quarters of the time, for a while."""
    PARTITION = "partition"
    """A host hears and reaches no other host of the cluster, for a while."""
    RESTART = "restart"
    """What `llx inst restart` does: a planned change, which may cost no stream."""


class Role(StrEnum):
    """Whom a fault may hit that names nobody."""

    INSTANCE = "instance"
    GATEWAY = "gateway"
    HEAD = "head"
    AGENT = "agent"
    SHIM = "shim"
    """Of an instance: what keeps its log and its exit status, and dies together with it."""
    RAY = "ray"
    """A host's raylet; on the head's host Ray's control store."""
    HOST = "host"


ONLY_ON_HOSTS: Final = frozenset({Role.AGENT, Role.RAY, Role.HOST})
_PROCESSES: Final = tuple(each for each in Role if each is not Role.HOST)
ROLES: Final = {
    FaultKind.KILL: _PROCESSES,
    FaultKind.FREEZE: _PROCESSES,
    FaultKind.SLOW: _PROCESSES,
    FaultKind.PARTITION: (Role.HOST,),
    FaultKind.RESTART: (Role.INSTANCE, Role.GATEWAY),
}
DEFAULT_FOR_S: Final = {
    FaultKind.KILL: 0.0,
    FaultKind.FREEZE: 15.0,
    FaultKind.SLOW: 10.0,
    FaultKind.PARTITION: 15.0,
    FaultKind.RESTART: 0.0,
}
_GAP_S: Final = (0.5, 3.0)
_FREEZES_S: Final = (1.0, 5.0, 15.0)
"""Shorter than what gateways bear; between that and what shims bear; longer than both."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Part):
    """One fault.

    Attributes:
        kind: What.
        target: A role (`Role`), or the name of an instance, gateway or host.
        for_s: How long a freeze, slowness or partition lasts; None: as long as is usual.
        after_s: Streams go on undisturbed so long before it.
        draw: Which of those that may be hit, in the order of their names: a share of them.
        burst: So many streams more begin at once before it, and are under way when it strikes.
    """

    kind: FaultKind
    target: Annotated[str, Field(min_length=1, max_length=100)]
    for_s: Seconds | None = None
    after_s: Seconds = 1.0
    draw: Annotated[float, Field(ge=0, lt=1)] = 0.0
    burst: Annotated[int, Field(ge=0, le=1024)] = 0

    @property
    def role(self) -> Role | None:
        """The role it hits; None: it names its victim."""
        return Role(self.target) if self.target in set(Role) else None

    @property
    def lasts_s(self) -> float:
        """How long it lasts by itself."""
        return DEFAULT_FOR_S[self.kind] if self.for_s is None else self.for_s

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.role is not None and self.role not in ROLES[self.kind]:
            known = ", ".join(ROLES[self.kind])
            raise ValueError(f"{self.kind} hits {known}, no {self.target}")
        if self.for_s and not DEFAULT_FOR_S[self.kind]:
            raise ValueError(f"{self.kind} has no duration")
        return self


class Traffic(_Part):
    """Greedy streams beside the faults; every one is compared with its reference.

    Attributes:
        streams: At a time.
        prompts: How many different ones.
        prompt_tokens: Length of each.
        output_tokens: Length of each answer.
        silence_s: A stream that is silent for so long hangs.
        compares_tokens: False, for models that answer differently each time: only count them.
    """

    streams: Annotated[int, Field(ge=1, le=256)] = 4
    prompts: Annotated[int, Field(ge=1, le=64)] = 8
    prompt_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    output_tokens: Annotated[int, Field(ge=2, le=100_000)] = 256
    silence_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    compares_tokens: bool = True


class Bounds(_Part):
    """What the verdict demands besides what is never allowed.

    Attributes:
        completed: Share of the streams on instances that were hit which must end well.
        healed_s: The cluster is whole again so long after a fault has ended, at most.
        settled_s: Everything is given back so long after the last stream, at most.
    """

    completed: Annotated[float, Field(ge=0, le=1)] = 0.99
    healed_s: Annotated[float, Field(gt=0, le=3600)] = 180.0
    settled_s: Annotated[float, Field(gt=0, le=3600)] = 30.0


class ChaosPlan(_Part):
    """Faults, one after another, each when the cluster has recovered from the one before.

    `hits_last`: the last instance of a model, and the only gateway, may be hit, too; what is lost
    by that is excused.
    """

    seed: int = 1
    hits_last: bool = False
    traffic: Traffic = Traffic()
    bounds: Bounds = Bounds()
    faults: Annotated[list[Fault], Field(min_length=1, max_length=10_000)]


def load_plan(path: Path) -> ChaosPlan:
    """The plan of a file.

    Raises:
        ConfigError: Says line and mistake.
    """
    return read_yaml(path, ChaosPlan)


def draw_faults(
    seed: int, count: int, kinds: Sequence[FaultKind], roles: Sequence[Role]
) -> list[Fault]:
    """That many faults. The same seed gives the same ones; every kind comes as often, at random.

    Raises:
        ConfigError: No kind can hit any of these roles.
    """
    pairs = [(kind, role) for kind in kinds for role in ROLES[kind] if role in roles]
    if not pairs:
        raise ConfigError(f"{', '.join(kinds)} cannot be done to: {', '.join(roles)}")
    rng = random.Random(f"chaos {seed}")
    deck: list[tuple[FaultKind, Role]] = []
    found = []
    for _ in range(count):
        if not deck:
            deck = rng.sample(pairs, len(pairs))
        kind, role = deck.pop()
        found.append(
            Fault(
                kind=kind,
                target=role,
                for_s=rng.choice(_FREEZES_S) if kind is FaultKind.FREEZE else None,
                after_s=round(rng.uniform(*_GAP_S), 2),
                draw=round(rng.random(), 6) % 1,
            )
        )
    return found
