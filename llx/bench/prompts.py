"""Prompts as token ids, exact for every tokenizer, made while a schedule is being held.

At thousands of requests a second there is no time to draw thousands of ids each: a segment of a
prompt is a few ids of its own and then a cut of one long random text of ids.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Final

_FIRST_ID: Final = 100
_NUM_IDS: Final = 150
"""Every vocabulary has these ids, no control token is among them, each has three digits."""
_WIDTH: Final = 4
"""Characters of an id with its comma."""
_CUTS: Final = 1 << 14
_OWN_IDS: Final = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt; equal keys of one run have equal tokens."""

    key: str
    num_tokens: int


class Prompts:
    """Token ids of segments.

    Args:
        salt: Of the run: two runs share no prompt, and so no block of a prefix cache.
        longest: Tokens of the longest segment.
    """

    def __init__(self, salt: str, longest: int) -> None:
        draw = random.Random(f"prompts {salt}")
        count = _CUTS + longest
        ids = (b"%d," % (_FIRST_ID + each) for each in draw.choices(range(_NUM_IDS), k=count))
        self._text = b"".join(ids)
        self._salt = salt

    def ids(self, segments: tuple[Segment, ...]) -> bytes:
        """The ids of a prompt with commas between."""
        return b"".join(map(self._ids, segments))[:-1]

    def _ids(self, segment: Segment) -> bytes:
        digest = hashlib.blake2b(f"{self._salt} {segment.key}".encode(), digest_size=12).digest()
        own = b"".join(b"%d," % (_FIRST_ID + each % _NUM_IDS) for each in digest[:_OWN_IDS])
        cut = int.from_bytes(digest[_OWN_IDS:]) % _CUTS
        rest = max(0, segment.num_tokens - _OWN_IDS)
        return own[: segment.num_tokens * _WIDTH] + self._text[cut * _WIDTH : (cut + rest) * _WIDTH]
