"""Decode steps that are alike, taken at once.

While the same requests decode and nothing comes in, a step differs from the one before it only in
that each request has one token more. How many such steps follow is known in advance: until one
reaches its last token, or until the free blocks are used up.
"""

from collections.abc import Sequence

from llx.core.engine_state import EngineState, Held
from llx.core.model import blocks_for


def leap_limit(state: EngineState, are_decodes: Sequence[bool]) -> int:
    """How many steps alike there are, from the open one on; 1 at least.

    Blocks only become fewer and places stay taken: whoever waits and could not be admitted to the
    open step cannot be admitted to one that follows.

    Args:
        state: With the open step's blocks taken. The step has admitted and preempted nobody.
        are_decodes: Of the open step's chunks.
    """
    if state.arrived or len(are_decodes) != len(state.running) or not all(are_decodes):
        return 1
    limit = state.config.max_model_len
    most = min(
        min(held.asked.max_tokens - held.num_outputs, limit - len(held.tokens))
        for held in state.running
    )
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        num_new = sum(_num_new(state, held, middle) for held in state.running)
        low, high = (middle, high) if num_new <= len(state.free) else (low, middle - 1)
    return low


def leap(state: EngineState, count: int) -> None:
    """Give every running request `count` tokens more."""
    for held in state.running:
        held.blocks.extend(state.take(_num_new(state, held, count)))
        held.num_computed += count
        held.tokens.extend([0] * count)


def _num_new(state: EngineState, held: Held, count: int) -> int:
    """Blocks it lacks for the KV of `count` tokens more."""
    needed = blocks_for(held.num_computed + count, state.config.block_size)
    return max(0, needed - len(held.blocks))
