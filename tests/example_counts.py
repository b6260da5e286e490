"""How many examples a property that is dear gets: a share of what the hypothesis profile says."""

from hypothesis import settings


def of_a_hundred(count: int) -> int:
    """`count` where the profile says 100, and at least two."""
    return max(2, settings().max_examples * count // 100)
