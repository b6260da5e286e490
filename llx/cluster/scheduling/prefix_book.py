"""What instances say of their prefix caches, so that a request's beginning is found in them.

Kept for the pools whose dispatch policy looks at requests; of the others nothing is asked.
"""

from collections.abc import Iterable

from llx.cluster.scheduling.prefix_index import PrefixIndex
from llx.core.model import InstanceId, PoolName, Tokens
from llx.core.prefix_blocks import unpacked
from llx.errors import WireError
from llx.wire import Place, Prefixes


class PrefixBook:
    """An index for each pool: the same tokens are another model's block under the same name."""

    def __init__(self) -> None:
        self._pools: dict[PoolName, PrefixIndex] = {}

    @property
    def pools(self) -> frozenset[PoolName]:
        """The pools it is kept for."""
        return frozenset(self._pools)

    def keep(self, pools: Iterable[PoolName]) -> None:
        """Keep it for these pools, and no others."""
        self._pools = {each: self._pools.get(each, PrefixIndex()) for each in pools}

    def hear(self, pool: PoolName, instance: InstanceId, report: Prefixes) -> None:
        """An instance has reported.

        Raises:
            WireError: The report cannot be read.
        """
        index = self._pools.get(pool)
        if index is None:
            return
        try:
            added, removed = unpacked(report.added), unpacked(report.removed)
        except ValueError as error:
            raise WireError(f"a report of {instance}'s prefix cache: {error}") from None
        if report.is_whole:
            index.drop(instance)
        index.add(instance, added)
        index.remove(instance, removed)

    def forget(self, instance: InstanceId) -> None:
        """An instance is gone, or not heard of."""
        for index in self._pools.values():
            index.drop(instance)

    def hits(self, ask: Place) -> tuple[tuple[InstanceId, Tokens], ...]:
        """How many of a request's tokens which instance has cached.

        Raises:
            WireError: Its prefix cannot be read.
        """
        index = self._pools.get(ask.pool)
        if index is None or not ask.prefix:
            return ()
        try:
            blocks = unpacked(ask.prefix)
        except ValueError as error:
            raise WireError(f"the prefix of {ask.request}: {error}") from None
        size = max(0, ask.prefix_block)
        return tuple((each, Tokens(count * size)) for each, count in index.hits(blocks))
