"""The simulated model's arithmetic: KV bytes from tokens, the next token from KV bytes.

Each position owns `bytes_per_token` bytes in its block. They are a hash of the token there, of the
KV bytes of the position before, and of those of one earlier position picked by the hash itself:

    KV[p] = H(token[p], p, KV[p-1], KV[j])        j = KV[p-1] mod p          (p = 0: no KV read)
    next  = vocabulary[H(seed, n, KV[n-1], KV[j])]                           after n tokens

So a token depends on every token before it; it can only be found by reading the request's own
blocks; and bytes that are missing, stale or in the wrong place show up as wrong tokens, at once in
the last position and within a few tokens anywhere else. Hashing is blake2b: the same everywhere.
"""

from collections.abc import Sequence
from hashlib import blake2b

from llx.core.engine_state import EngineRequest

_DIGEST_BYTES = 64


class Vocabulary:
    """The token ids that the simulated model may emit, in ascending order."""

    def __init__(self, ids: Sequence[int]) -> None:
        assert len(ids) > 1, "a vocabulary has two tokens at least"
        self._ids = tuple(sorted(ids))
        self._index = {token: index for index, token in enumerate(self._ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def pick(self, number: int, banned: frozenset[int]) -> int:
        """The token that `number` falls on, or the next one that is not banned.

        With every token banned the ban is void.
        """
        start = number % len(self._ids)
        candidates = (self._ids[(start + k) % len(self._ids)] for k in range(len(self._ids)))
        return next((token for token in candidates if token not in banned), self._ids[start])

    @property
    def digest(self) -> str:
        """Equal for equal vocabularies, and else different."""
        return blake2b(repr(self._ids).encode(), digest_size=8).hexdigest()

    def neighbours(self, token: int, count: int) -> list[int]:
        """`count` further tokens, in a fixed order, as runners-up of `token` for logprobs."""
        assert count < len(self._ids), "more neighbours than the vocabulary has"
        start = self._index.get(token, -1) + 1
        following = (self._ids[(start + k) % len(self._ids)] for k in range(count + 1))
        return [other for other in following if other != token][:count]


class HashedTokens:
    """KV pool and sampler; implements `llx.core.engine_model.TokenModel`.

    Args:
        vocabulary: What may be sampled.
        num_blocks: Size of the pool in blocks.
        block_size: Tokens per block.
        bytes_per_token: KV bytes of one position.
        mean_output_tokens: A request that has an EOS token meets it with this mean distance.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        num_blocks: int,
        block_size: int,
        bytes_per_token: int,
        mean_output_tokens: int = 256,
    ) -> None:
        assert bytes_per_token >= 8, "8 bytes of KV per token at least"
        self.vocabulary = vocabulary
        self.block_bytes = block_size * bytes_per_token
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.bytes_per_token = bytes_per_token
        self._copies = -(-bytes_per_token // _DIGEST_BYTES)
        self._mean = mean_output_tokens
        self._pool = bytearray(num_blocks * self.block_bytes)

    @property
    def pool(self) -> memoryview:
        """The bytes of all blocks, one after the other, writable."""
        return memoryview(self._pool)

    def block(self, index: int) -> memoryview:
        """The bytes of one block, writable."""
        return self.pool[index * self.block_bytes : (index + 1) * self.block_bytes]

    def compute(self, tokens: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> None:
        """Write the KV of positions `start` to `end` (exclusive)."""
        for position in range(start, end):
            head = b"%d %d" % (tokens[position], position)
            digest = self._hash(head, position, blocks)
            at = self._offset(position, blocks)
            self._pool[at : at + self.bytes_per_token] = (digest * self._copies)[
                : self.bytes_per_token
            ]

    def sample(
        self,
        request: EngineRequest,
        num_tokens: int,
        blocks: Sequence[int],
        banned: frozenset[int],
    ) -> int:
        """The token after the first `num_tokens`; `EngineRequest.seed` is part of the hash."""
        digest = self._hash(b"seed %d" % request.seed, num_tokens, blocks)
        eos = request.eos_token
        if eos is not None and eos not in banned:
            chance = int.from_bytes(digest[8:16], "little")
            if chance % self._mean == 0:
                return eos
        return self.vocabulary.pick(int.from_bytes(digest[:8], "little"), banned)

    def _hash(self, head: bytes, position: int, blocks: Sequence[int]) -> bytes:
        """Hash of `head` and of the KV that `position` sees."""
        digest = blake2b(head, digest_size=_DIGEST_BYTES)
        if position:
            before = self._read(position - 1, blocks)
            digest.update(before)
            digest.update(self._read(int.from_bytes(before[:8], "little") % position, blocks))
        return digest.digest()

    def _read(self, position: int, blocks: Sequence[int]) -> bytearray:
        at = self._offset(position, blocks)
        return self._pool[at : at + self.bytes_per_token]

    def _offset(self, position: int, blocks: Sequence[int]) -> int:
        block = blocks[position // self.block_size]
        return block * self.block_bytes + position % self.block_size * self.bytes_per_token
