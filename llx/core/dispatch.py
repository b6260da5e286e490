"""Dispatch: the first placement of a request.

Policies are plain functions in a table, chosen by name. Each gets the candidates and the request's
demand and returns a `Decision` that carries its reasons; nothing else is needed to explain it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from llx.core.model import Blocks, InstanceId, InstanceLoad


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance as dispatch sees it: the last report plus what is in flight to it."""

    instance: InstanceId
    load: InstanceLoad
    in_flight_requests: int = 0
    in_flight_demand: Blocks = Blocks(0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and why.

    `scores` holds the freeness of every candidate, highest first; `tie_break` is true when the
    chosen one shared its freeness with the next.
    """

    chosen: InstanceId
    policy: str
    scores: tuple[tuple[InstanceId, Fraction], ...]
    tie_break: bool


DispatchPolicy = Callable[[Sequence[Candidate], Blocks], Decision]


def freeness(candidate: Candidate) -> Fraction:
    """Freeness ``F = (M - sum V) / B`` (Llumnix, OSDI'24, Algorithm 1 and section 4.4.3).

    M is the instance's memory in blocks, V the virtual usage of each of its requests, B the batch
    size (never below 1). For a first placement every waiting or in-flight request counts with its
    full demand: it is committed to that instance, whether admitted yet or not. F may be negative.
    """
    load = candidate.load
    usage = load.used + load.waiting_demand + candidate.in_flight_demand
    batch = load.num_running + load.num_waiting + candidate.in_flight_requests
    return Fraction(load.total - usage, max(1, batch))


def freest(candidates: Sequence[Candidate], demand: Blocks) -> Decision:
    """The instance with the highest freeness; ties go to fewer requests, then to the lower id."""
    assert candidates, "freest needs a candidate: no instance is a case for the caller"
    ranked = sorted(candidates, key=_rank)
    scores = tuple((c.instance, freeness(c)) for c in ranked)
    tie = len(scores) > 1 and scores[0][1] == scores[1][1]
    return Decision(chosen=ranked[0].instance, policy="freest", scores=scores, tie_break=tie)


def _rank(candidate: Candidate) -> tuple[Fraction, int, InstanceId]:
    load = candidate.load
    committed = load.num_running + load.num_waiting + candidate.in_flight_requests
    return (-freeness(candidate), committed, candidate.instance)


POLICIES: MappingProxyType[str, DispatchPolicy] = MappingProxyType({"freest": freest})
