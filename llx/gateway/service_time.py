"""How long a pool's requests take once they have an instance, by those that finished last."""

from typing import Final

_WEIGHT: Final = 1 / 16
"""Of the request that has just finished."""


class ServiceTime:
    """Running means, in seconds."""

    def __init__(self) -> None:
        self._whole_s = 0.0
        self._token_s = 0.0
        """Of an output token, its part of the prompt's computation included."""

    def note(self, took_s: float, num_outputs: int) -> None:
        """A request has finished, so long after it was sent to an instance, with so many tokens."""
        if num_outputs < 1:
            return
        weight = _WEIGHT if self._whole_s else 1.0
        self._whole_s += weight * (took_s - self._whole_s)
        self._token_s += weight * (took_s / num_outputs - self._token_s)

    def expected_s(self, max_tokens: int | None) -> float:
        """Of a request that may have so many tokens; 0 before any has finished.

        Nobody knows how many it will have: it takes what others take, or less if it may not.
        """
        if max_tokens is None:
            return self._whole_s
        return min(self._whole_s, max_tokens * self._token_s)
