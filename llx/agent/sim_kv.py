"""The simulated engine's KV cache as bytes, and what must be equal for a request to move."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llx.agent.sim_model import ModelFacts
from llx.core.model import MigrationId, RequestId
from llx.core.token_model import HashedTokens
from llx.specs import SimSpec


def sim_compatibility(model: str, facts: ModelFacts, sim: SimSpec) -> str:
    """Equal for two instances between which requests can move.

    The model's directory may lie elsewhere on another host, so its name counts and not its path;
    what tokens come of it hangs on the vocabulary, which is the digest's.
    """
    return (
        f"sim model={Path(model).name} vocabulary={facts.vocabulary.digest}"
        f" block_size={sim.block_size} bytes_per_token={sim.kv_bytes_per_token}"
    )


class SimKv:
    """The blocks of a `HashedTokens`; implements `llx.ports.KvStore` for the one rank there is."""

    def __init__(self, tokens: HashedTokens) -> None:
        self._pool = tokens.pool
        self._num_blocks = tokens.num_blocks
        self._block_bytes = tokens.block_bytes
        self._shape = f"{tokens.block_size} x {tokens.bytes_per_token}"

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self._block_bytes

    @property
    def layout(self) -> str:
        """Blocks of so many positions of so many bytes."""
        return f"sim, blocks of {self._shape} bytes"

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        """Gather blocks into `out`."""
        for here, there in self._runs(blocks, len(out)):
            out[there] = self._pool[here]

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        """Scatter `data` into blocks."""
        for here, there in self._runs(blocks, len(data)):
            self._pool[here] = data[there]

    def buffer(self, size_bytes: int) -> memoryview:
        """See `llx.ports.KvStore`."""
        return memoryview(bytearray(size_bytes))

    @property
    def device(self) -> None:
        """See `llx.ports.KvStore`."""
        return None

    def sampler_state(self, request: RequestId) -> bytes:
        """None: the next token hangs on the KV and the request's seed."""
        return b""

    def keep_sampler_state(self, migration: MigrationId, state: bytes) -> None:
        """There is none to keep."""

    def _runs(self, blocks: Sequence[int], size: int) -> Iterator[tuple[slice, slice]]:
        """Slices of the pool and of a packed buffer: one for each run of adjacent blocks."""
        assert size == len(blocks) * self._block_bytes, f"{size} bytes for {len(blocks)} blocks"
        first = 0
        for index, block in enumerate(blocks):
            assert 0 <= block < self._num_blocks, f"block {block} of {self._num_blocks}"
            if index + 1 < len(blocks) and blocks[index + 1] == block + 1:
                continue
            start, length = blocks[first] * self._block_bytes, index + 1 - first
            at, num_bytes = first * self._block_bytes, length * self._block_bytes
            yield slice(start, start + num_bytes), slice(at, at + num_bytes)
            first = index + 1
