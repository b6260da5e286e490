"""Is a stream what it should be? Each token against a reference, pure; and what is kept of it."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final

from pydantic import BaseModel, ConfigDict

_FINISHED: Final = "length"


class Flaw(StrEnum):
    """What is wrong with the tokens of a stream."""

    LOST = "lost"
    """Some are missing, though the stream goes on, or says that it is whole."""
    DOUBLED = "doubled"
    """One came again."""
    REORDERED = "reordered"
    """The right ones, in another order."""
    WRONG = "wrong"
    """Others than the reference has."""


class StreamEnd(StrEnum):
    """How a stream ended."""

    COMPLETE = "complete"
    FAILED = "failed"
    """With an error that its client was told, or with its connection."""
    SILENT = "silent"
    """Not at all: nothing came any more."""


class StreamRecord(BaseModel):
    """What is kept of one stream. Times are Unix seconds.

    `miscounted`: the usage, or the reason to finish, is not what it should be. `pause_s`: the
    longest wait for a token after the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    gateway: str
    began_at: float
    ended_at: float
    end: StreamEnd
    tokens: int
    flaw: Flaw | None = None
    flaw_at: int | None = None
    miscounted: str = ""
    error: str = ""
    pause_s: float = 0.0


def find_flaw(
    got: Sequence[int], reference: Sequence[int], *, is_whole: bool
) -> tuple[Flaw, int] | None:
    """What is wrong with `got`, and at which token; None: nothing is.

    A stream that broke off (not `is_whole`) must be a beginning of the reference, a whole one all
    of it.
    """
    at = next((n for n, (a, b) in enumerate(zip(got, reference, strict=False)) if a != b), None)
    if at is None:
        if len(got) > len(reference):
            return Flaw.DOUBLED, len(reference)
        if is_whole and len(got) < len(reference):
            return Flaw.LOST, len(got)
        return None
    return _kind_of(got, reference, at), at


def _kind_of(got: Sequence[int], reference: Sequence[int], at: int) -> Flaw:
    """By what would put it right: leave some out, put some in, sort them."""
    rest, wanted = list(got[at:]), list(reference[at:])
    common = min(len(rest), len(wanted))
    for back in range(1, at + 1):
        if rest[:common] == list(reference[at - back :])[:common]:
            return Flaw.DOUBLED
    for ahead in range(1, len(wanted)):
        left = wanted[ahead:]
        if rest[: len(left)] == left[: len(rest)]:
            return Flaw.LOST
    if Counter(rest) == Counter(wanted[: len(rest)]):
        return Flaw.REORDERED
    return Flaw.WRONG


def find_miscount(*, tokens: int, wanted: int, usage: int | None, finish_reason: str | None) -> str:
    """What a whole stream says of itself that is not so; empty: nothing."""
    if tokens != wanted:
        return f"{tokens} tokens of {wanted}"
    if usage != tokens:
        return f"usage says {usage} tokens, {tokens} came"
    if finish_reason != _FINISHED:
        return f"finish_reason is {finish_reason}, not {_FINISHED}"
    return ""


def longest_pause(times: Sequence[float]) -> float:
    """Between two pieces of a stream."""
    return max((later - sooner for sooner, later in pairwise(times)), default=0.0)
