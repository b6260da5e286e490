"""The nouns every room shares: ids, units and the load of an instance.

Ids and units are types, so that a wrong unit or sign is a type error, not a bug report.
"""

from dataclasses import field
from typing import NewType

from llx.core.fixed import fixed

RequestId = NewType("RequestId", str)
InstanceId = NewType("InstanceId", str)
"""An instance's name, unique in its cluster: ``<pool>-<index>``."""
PoolName = NewType("PoolName", str)
HostName = NewType("HostName", str)
MigrationId = NewType("MigrationId", str)
"""One move of one request, unique in its cluster."""
ClassName = NewType("ClassName", str)

Blocks = NewType("Blocks", int)
"""A count of KV blocks."""
Tokens = NewType("Tokens", int)
"""A count of tokens."""
Nanos = NewType("Nanos", int)
"""Nanoseconds; a point on, or a distance along, one process's monotonic clock."""

Epoch = NewType("Epoch", int)
"""Generation of a request's ownership: raised at every change of owner, fences the older owner."""
Term = NewType("Term", int)
"""Generation of the scheduler: raised at every start of it, fences the older scheduler."""

TERMS_PER_SEAT = 1_000_000
"""A scheduler on another host begins at the next multiple. The former one, cut off and starting
again and again all the while, must not come to the same number."""


def is_of_later_seat(term: Term, own: Term) -> bool:
    """Whether `term` is one of a scheduler on another host than that of `own`, which came later."""
    return term // TERMS_PER_SEAT > own // TERMS_PER_SEAT


def next_seat(highest: Term) -> Term:
    """What the first term of a scheduler on another host is raised from; `highest` so far."""
    return Term((highest // TERMS_PER_SEAT + 1) * TERMS_PER_SEAT)


@fixed
class ClassLoad:
    """What one priority class has on an instance."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_demand: Blocks = Blocks(0)


@fixed
class InstanceLoad:
    """An instance's load at one moment, as its llumlet reports it.

    Invariant: ``0 <= free <= total``. ``waiting_demand`` counts the blocks that the prompts of all
    waiting requests will need; ``waiting_tokens`` the tokens of prompts still to be computed, of
    theirs and of those of running requests whose first token is yet to come.
    """

    total: Blocks
    free: Blocks
    block_size: Tokens
    num_running: int = 0
    num_waiting: int = 0
    waiting_demand: Blocks = Blocks(0)
    waiting_tokens: Tokens = Tokens(0)
    num_preempted: int = 0
    classes: dict[int, ClassLoad] = field(default_factory=dict)
    """By the priority integer that vLLM sees (lower = more urgent)."""

    @property
    def used(self) -> Blocks:
        """Blocks held by running requests."""
        return Blocks(self.total - self.free)

    def with_free(self, free: Blocks) -> "InstanceLoad":
        """The same but for its free blocks."""
        return InstanceLoad(
            self.total,
            free,
            self.block_size,
            self.num_running,
            self.num_waiting,
            self.waiting_demand,
            self.waiting_tokens,
            self.num_preempted,
            self.classes,
        )


def blocks_for(num_tokens: int, block_size: int) -> Blocks:
    """Blocks that `num_tokens` tokens occupy: the ceiling of their quotient."""
    return Blocks(-(-num_tokens // block_size))
