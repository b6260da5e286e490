"""What the two ends of a migration know of the request, as values.

Everything counts tokens and blocks; block ids are the engines' own and only passed through.
"""

from dataclasses import dataclass

from llx.core.model import Epoch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is on its source, between two steps.

    The KV of its first `num_settled` tokens is in its blocks for good: no step that is in flight
    writes there. `blocks` is its block table. `is_waiting`: it is in no batch and holds no KV.
    """

    num_tokens: int
    num_prompt: int
    num_settled: int
    blocks: tuple[int, ...]
    is_waiting: bool = False

    @property
    def num_outputs(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt

    @property
    def is_decoding(self) -> bool:
        """Whether it has had its first token, and is in a batch."""
        return not self.is_waiting and self.num_outputs > 0


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose migration begins: how far it is, whose it is, and how it was asked for.

    `peer` holds its stream, under `epoch`. `payload` is the frames of its ADD, `name` what
    operators call it (`llx.wire.Add.name`).
    """

    progress: Progress
    peer: int
    epoch: Epoch
    name: str
    payload: tuple[bytes | memoryview, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A request as it left the batch: all its outputs, and the tokens whose KV is in `blocks`.

    It goes on elsewhere by computing from token `num_computed` on, with that `priority`, which may
    be another than it came with.
    """

    outputs: tuple[int, ...]
    num_computed: int
    blocks: tuple[int, ...]
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks at the target, for `num_tokens` tokens; the first `num_reused` need no copy."""

    num_tokens: int
    blocks: tuple[int, ...]
    num_reused: int


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What a source goes by.

    Attributes:
        block_size: Tokens per block.
        max_model_len: No request is longer.
        max_stages: Copy rounds of a decoding request before the last one.
        aborts_if_diverging: Whether a request that grows faster than it is copied stays; else it is
            stopped, and the rest is copied.
        is_blocking: Whether it is stopped before anything is copied.
        is_checked: Whether both ends read back what was copied, with the last stage.
    """

    block_size: int
    max_model_len: int
    max_stages: int = 8
    aborts_if_diverging: bool = False
    is_blocking: bool = False
    is_checked: bool = False
