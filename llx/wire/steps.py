"""What an instance's steps cost: the answer of the utility ``llx_steps``."""

import msgspec


class StepRow(msgspec.Struct, frozen=True, array_like=True):
    """A step: what was in it, and how long it took.

    Attributes:
        num_prefill_tokens: Prompt tokens computed in it.
        num_decodes: Requests that decoded in it.
        num_context_tokens: Read by attention: over all requests in it, the tokens they had at its
            end. KV blocks are these by the block size.
        num_square_tokens: Over its prefills, the sum of end² - start².
        num_decode_context_tokens: What of the context the decodes read.
        duration_ns: From the end of the step before it, or from its own begin after an idle time,
            to its own end. So what the engine does between two steps is in it, and steps that
            overlap (async scheduling) share no time: durations of a busy engine add up to the
            clock's.
    """

    num_prefill_tokens: int
    num_decodes: int
    num_context_tokens: int
    num_square_tokens: int
    num_decode_context_tokens: int
    duration_ns: int


class StepRows(msgspec.Struct, frozen=True):
    """The last steps of an instance, the oldest first; `first` is the number of that one."""

    first: int
    rows: list[StepRow]
