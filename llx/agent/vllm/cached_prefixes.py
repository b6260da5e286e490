"""What vLLM's prefix cache holds, taken from its own KV cache events.

vLLM names a block by a hash of its tokens, the hash of the block before, and whatever else its KV
hangs on (adapter, images, salt); of that hash its events carry 64 bits, and so do we. The events
are made only while somebody listens: vLLM looks at the switch each time.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    EventPublisher,
)
from vllm.v1.core.kv_cache_utils import get_block_hash
from vllm.v1.engine import EngineCoreRequestType

from llx.agent.prefix_log import PrefixLog
from llx.agent.prefix_reports import PrefixReports
from llx.agent.vllm.migrating import OnCore
from llx.core.prefix_blocks import BlockName

if TYPE_CHECKING:
    from llx.agent.vllm.engine import LlxEngineCore

HASH_ALGORITHM = "sha256"
"""The one whose hashes are the same in every process; it is vLLM's default."""


def block_name(block_hash: bytes | int) -> BlockName:
    """The name of a block of that hash; vLLM's events carry either."""
    number = block_hash if isinstance(block_hash, int) else int.from_bytes(block_hash[-8:], "big")
    return BlockName(number)


class CachedPrefixes(EventPublisher):
    """Stands where vLLM's publisher of events would. Core thread only, but for `reports`.

    Attributes:
        block: Tokens of a block; 0: nothing can be told of this engine's cache, which it has not,
            or which has several groups of blocks, or whose events go elsewhere by its settings.
    """

    def __init__(self, core: "LlxEngineCore") -> None:
        super().__init__()
        self.block = _block_of(core.scheduler)
        self._log = PrefixLog()
        self._manager = core.scheduler.kv_cache_manager
        self._core = core
        if self.block:
            core.scheduler.kv_event_publisher = self

    def reports(self) -> PrefixReports | None:
        """For the endpoint; None: nothing can be told."""
        return PrefixReports(self._log, self._want) if self.block else None

    def flush(self) -> None:
        """Take in what has happened outside of steps: arrivals, resets."""
        note_events(self._log, self._manager.take_events())

    def publish(self, events: EventBatch) -> None:
        """`EventPublisher`: what has happened up to the end of a step."""
        note_events(self._log, events.events)

    def shutdown(self) -> None:
        """`EventPublisher`: there is nothing to end."""

    def _want(self, is_wanted: bool) -> None:
        """On the endpoint's thread."""
        listen = OnCore(partial(self._listen, is_wanted))
        self._core.input_queue.put_nowait((EngineCoreRequestType.UTILITY, listen))

    def _listen(self, is_wanted: bool) -> None:
        """Follow the cache from now on, beginning with what it has; or no longer."""
        pool = self._manager.block_pool
        pool.take_events()
        pool.enable_kv_cache_events = is_wanted
        if is_wanted:
            self._log.begin(_cached(pool))
        else:
            self._log.end()


def note_events(log: PrefixLog, events: Iterable[Any]) -> None:
    """Take what events say into a log."""
    for event in events:
        match event:
            case BlockStored(block_hashes=hashes):
                log.add(map(block_name, hashes))
            case BlockRemoved(block_hashes=hashes):
                log.remove(map(block_name, hashes))
            case AllBlocksCleared():
                log.clear()
            case _:
                pass  # nothing of blocks


def _block_of(scheduler: Any) -> int:
    config, events = scheduler.vllm_config.cache_config, scheduler.kv_events_config
    if (
        not config.enable_prefix_caching
        or config.prefix_caching_hash_algo != HASH_ALGORITHM
        or len(scheduler.kv_cache_config.kv_cache_groups) != 1
        or (events is not None and events.enable_kv_cache_events)
    ):
        return 0
    return int(scheduler.hash_block_size)


def _cached(pool: Any) -> Iterable[BlockName]:
    """Every block that can be found in the cache; one that is there twice comes twice."""
    for block in pool.blocks:
        if block.block_hash is not None:
            yield block_name(get_block_hash(block.block_hash))
