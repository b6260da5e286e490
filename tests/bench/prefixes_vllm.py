"""vLLM's parts of `tests.bench.prefixes`; run by the node's Python."""

import random
from collections.abc import Callable
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackEncoder

from llx.agent.prefix_log import PrefixLog
from llx.agent.vllm.cached_prefixes import HASH_ALGORITHM, note_events
from llx.gateway.prefixes import PromptBlocks


def vllm_ways(num_tokens: int, block_size: int) -> dict[str, Callable[[], object]]:
    """By name."""
    draw = random.Random(2)
    message = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[draw.randrange(50_000) for _ in range(num_tokens)],
        mm_features=None, sampling_params=SamplingParams(), pooling_params=None, arrival_time=0.0,
        lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
    payload, blocks = MsgpackEncoder().encode(message), PromptBlocks()
    hasher = get_request_block_hasher(block_size, get_hash_fn_by_name(HASH_ALGORITHM))
    request = Request.from_engine_core_request(message, hasher)
    ways: dict[str, Callable[[], object]] = {
        "names": lambda: blocks.of(payload, [], block_size),
    }
    for what, each in (("stored", num_tokens // block_size), ("stored one by one", 1)):
        for who, is_on in (("nobody listens", False), ("somebody listens", True)):
            ways[f"{what}, {who}"] = _storing(request, block_size, each, is_on)
    return ways


def _storing(request: Any, block_size: int, each: int, is_on: bool) -> Callable[[], object]:
    """Store the request's blocks, and have others take them, so that they are dropped."""
    count = request.num_tokens // block_size
    pool = BlockPool(count + 1, enable_caching=True, hash_block_size=block_size)
    pool.enable_kv_cache_events = is_on
    log = PrefixLog()
    log.begin([])

    def store() -> None:
        taken = pool.get_new_blocks(count)
        for first in range(0, count, each):
            pool.cache_full_blocks(request, taken, first, first + each, block_size, 0)
            if is_on:
                note_events(log, pool.take_events())
        pool.free_blocks(reversed(taken))

    return store
