"""Whether steps that were seen are enough to tell the terms of a step's time apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llx.sim.calibration import StepSample

_ENDS: Final = 5
"""So many steps at either end of a range: one odd step covers nothing."""
_PROMPTS: Final = 20
_DECODES: Final = 50
_MIXED: Final = 20
_LENGTHS: Final = 4.0
_BATCHES: Final = 3.0
_CONTEXTS: Final = 3.0
_FAR: Final = 256
"""Tokens by which contexts differ: what fewer of them cost is less than the noise of a step."""


@dataclass(frozen=True, slots=True)
class Range:
    """How many steps, and from where to where without the few at either end; 0, 0: nowhere."""

    count: int
    least: float
    most: float

    def spans(self, ratio: float) -> bool:
        """Whether its ends are so far apart."""
        return self.least > 0 and self.most >= ratio * self.least

    def __str__(self) -> str:
        return f"{self.least:.0f} to {self.most:.0f}"


@dataclass(frozen=True, slots=True)
class Coverage:
    """What steps covered.

    Attributes:
        prompts: Prompt tokens in a step that has some.
        batches: Requests in a step that only decodes.
        contexts: Tokens of context of each, there.
        num_mixed: Steps with both; 0 if there are too few to tell what that costs.
        missing: What has to be seen besides, in words.
    """

    prompts: Range
    batches: Range
    contexts: Range
    num_mixed: int
    missing: tuple[str, ...]


def cover(samples: Sequence[StepSample]) -> Coverage:
    """Of these steps."""
    decodes = [each for each in samples if each.num_decodes and not each.num_prefill_tokens]
    prompts = _range([each.num_prefill_tokens for each in samples if each.num_prefill_tokens])
    batches = _range([each.num_decodes for each in decodes])
    contexts = _range([each.num_decode_context_tokens / each.num_decodes for each in decodes])
    num_mixed = sum(1 for each in samples if each.num_decodes and each.num_prefill_tokens)
    return Coverage(
        prompts,
        batches,
        contexts,
        num_mixed if num_mixed >= _MIXED else 0,
        tuple(_missing(prompts, batches, contexts)),
    )


def _missing(prompts: Range, batches: Range, contexts: Range) -> list[str]:
    found = []
    if prompts.count < _PROMPTS:
        found.append(f"{prompts.count} steps computed prompts, it takes {_PROMPTS}")
    elif not prompts.spans(_LENGTHS):
        found.append(f"prompts of unlike lengths: all steps had {prompts} tokens of them")
    if batches.count < _DECODES:
        found.append(f"{batches.count} steps only decoded, it takes {_DECODES}")
        return found
    if not batches.spans(_BATCHES):
        found.append(f"unlike numbers of requests at a time: it was {batches}")
    if not contexts.spans(_CONTEXTS) or contexts.most - contexts.least < _FAR:
        found.append(f"short and long requests: all decoded at {contexts} tokens")
    return found


def _range(values: Sequence[float]) -> Range:
    ordered = sorted(values)
    if len(ordered) < 2 * _ENDS:
        return Range(len(ordered), 0.0, 0.0)
    return Range(len(ordered), ordered[_ENDS - 1], ordered[-_ENDS])
