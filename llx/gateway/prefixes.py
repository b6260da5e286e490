"""The beginning of a request, block by block, as an instance's prefix cache names it.

vLLM's own function names the blocks, there and here: so adapter, images, salt and whatever else
KV hangs on are in the name, and a request can only be found where vLLM would find it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import BlockHash, get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder

from llx.agent.vllm.cached_prefixes import HASH_ALGORITHM, block_name
from llx.core.prefix_blocks import packed
from llx.ports import Frame

MOST_BLOCKS: Final = 256
"""Of one request; beyond these it is not looked for."""


@dataclass(slots=True)
class _Beginning:
    """What vLLM's function reads of its `Request`."""

    all_token_ids: Sequence[int]
    num_tokens: int
    mm_features: Any
    lora_request: Any
    cache_salt: str | None
    prompt_embeds: Any = None
    block_hashes: list[BlockHash] = field(default_factory=list)


class PromptBlocks:
    """Names the blocks of requests."""

    def __init__(self) -> None:
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self._hash = get_hash_fn_by_name(HASH_ALGORITHM)
        init_none_hash(self._hash)

    def of(self, payload: Sequence[Frame], outputs: Sequence[int], block_size: int) -> bytes:
        """The first blocks of a request that has these outputs already.

        Not those of which vLLM would compute a part in any case: the last token's. Empty where the
        prompt is not made of tokens, or no cached block is to be used.
        """
        request: EngineCoreRequest = self._decoder.decode(payload)
        params = request.sampling_params
        if (
            not request.prompt_token_ids
            or request.prompt_embeds is not None
            or params is None
            or params.skip_reading_prefix_cache
        ):
            return b""
        tokens = [*request.prompt_token_ids, *outputs]
        num_blocks = min(MOST_BLOCKS, (len(tokens) - 1) // block_size)
        beginning = _Beginning(
            tokens,
            num_blocks * block_size,
            request.mm_features,
            request.lora_request,
            request.cache_salt,
        )
        hashes = get_request_block_hasher(block_size, self._hash)(beginning)
        return packed(map(block_name, hashes))
