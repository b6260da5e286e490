"""What is asked and when, all of it fixed before a run begins, by a seed.

Lengths, arrivals and trace files are those of the simulator (`llx.sim`): what was measured can be
simulated, and the other way round.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llx.bench.prompts import Segment
from llx.bench.scenario import (
    Arrivals,
    Between,
    Kind,
    Lengths,
    Phase,
    Prefixes,
    Sessions,
    Trace,
    Workload,
)
from llx.errors import ConfigError
from llx.sim.trace_files import detect, read_trace
from llx.sim.workload import LIKE, gamma_arrivals, like_lengths, paper_lengths

_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a schedule.

    Attributes:
        number: From 0, in the order of arrival.
        at_s: When it is to be sent, from the run's beginning.
        segments: Its prompt.
        num_outputs: Tokens to ask for.
        priority_class: The class to ask for; "": the server's default.
    """

    number: int
    at_s: float
    segments: tuple[Segment, ...]
    num_outputs: int
    priority_class: str = ""

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(each.num_tokens for each in self.segments)


def make_schedule(workload: Workload, seed: int, rate: float | None = None) -> list[Planned]:
    """The requests of one run, in the order of time.

    Args:
        workload: Their kind.
        seed: Equal seeds make equal schedules, but for the rate.
        rate: Instead of the workload's.

    Raises:
        ConfigError: A trace file cannot be read, or is empty.
    """
    if workload.trace is not None:
        lone = list(_of_trace(workload.trace, workload.requests))
        if not lone:
            raise ConfigError(f"{workload.trace.file}: no requests")
    else:
        assert workload.arrivals is not None, "arrivals, or a trace"
        assert workload.lengths is not None, "lengths, or a trace"
        arrivals = workload.arrivals
        if rate is not None:
            arrivals = arrivals.model_copy(update={"rate": rate})
        turns = 1 if workload.sessions is None else workload.sessions.turns
        times = arrival_times(arrivals, seed, math.ceil(workload.requests / turns), turns)
        lone = _drawn(times, workload.lengths, workload, seed)
    requests = [_scaled(each, workload) for each in lone]
    if workload.sessions is not None:
        requests = _as_sessions(requests, workload.sessions)
    if workload.prefixes is not None:
        requests = _with_prefixes(requests, workload.prefixes, seed)
    if workload.longest is not None:
        requests = [_cut(each, workload.longest) for each in requests]
    classes = _classes(workload, seed)
    requests.sort(key=lambda each: each.at_s)
    return [
        replace(each, number=number, priority_class=next(classes))
        for number, each in enumerate(requests[: workload.requests])
    ]


def arrival_times(arrivals: Arrivals, seed: int, count: int, turns: int = 1) -> list[float]:
    """When `count` requests, or sessions of so many turns, come: seconds."""
    if arrivals.cv == 0:
        units = [float(number + 1) for number in range(count)]
    else:
        units = [each / _SECOND for each in gamma_arrivals(seed, 1.0, arrivals.cv, count)]
    return [_time_of(unit * turns, arrivals) for unit in units]


def _time_of(num_requests: float, arrivals: Arrivals) -> float:
    """By when so many have come on average: the integral of the rate, turned around."""
    full, ramp = arrivals.rate, arrivals.ramp
    if arrivals.phases:
        return _time_in_phases(num_requests / full, arrivals.phases)
    if ramp is None:
        return num_requests / full
    in_ramp = (ramp.from_rate + full) / 2 * ramp.over_s
    if num_requests >= in_ramp:
        return ramp.over_s + (num_requests - in_ramp) / full
    slope = (full - ramp.from_rate) / ramp.over_s
    # from_rate t + slope t^2 / 2 = n, in the form that knows a slope of 0
    root = math.sqrt(ramp.from_rate**2 + 2 * slope * num_requests)
    return 2 * num_requests / (ramp.from_rate + root)


def _time_in_phases(full_s: float, phases: Sequence[Phase]) -> float:
    """After how long they are worth `full_s` seconds of the whole rate."""
    cycle = math.fsum(each.share * each.for_s for each in phases)
    rounds, left = divmod(full_s, cycle)
    time_s = rounds * math.fsum(each.for_s for each in phases)
    for each in phases:
        if left <= each.share * each.for_s:
            break
        left -= each.share * each.for_s
        time_s += each.for_s
    return time_s + left / each.share


def _of_trace(trace: Trace, count: int) -> Iterator[Planned]:
    read = read_trace(trace.file, trace.format or detect(trace.file))
    for number, each in enumerate(itertools.islice(read, count)):
        segments = (Segment(str(number), each.num_prompt),)
        yield Planned(number, each.arrival / _SECOND / trace.speed, segments, each.num_outputs)


def _drawn(
    times: Sequence[float], lengths: Lengths, workload: Workload, seed: int
) -> list[Planned]:
    """A request for each time and turn; those of a session follow each other."""
    turns = 1 if workload.sessions is None else workload.sessions.turns
    count = len(times) * turns
    pairs: Sequence[tuple[int, int]]
    if lengths.mix is not None:
        is_like = lengths.mix in LIKE
        pairs = (
            like_lengths(lengths.mix, count, seed) if is_like else paper_lengths(lengths.mix, count)
        )
    else:
        draw = random.Random(f"lengths {seed}")
        kinds: Sequence[Kind | Lengths] = [lengths] * count
        if lengths.kinds:
            weights = [each.share for each in lengths.kinds]
            kinds = draw.choices(lengths.kinds, weights, k=count)
        pairs = [(_length(each.prompt, draw), _length(each.output, draw)) for each in kinds]
    return [
        Planned(number, times[number // turns], (Segment(str(number), prompt),), outputs)
        for number, (prompt, outputs) in enumerate(pairs)
    ]


def _length(given: int | Between | None, draw: random.Random) -> int:
    assert given is not None, "a length, or a mix"
    return draw.randint(given.least, given.most) if isinstance(given, Between) else given


def _scaled(planned: Planned, workload: Workload) -> Planned:
    (segment,) = planned.segments
    longest = workload.longest or math.inf

    def scaled(tokens: int) -> int:
        return int(min(longest, max(1, round(tokens * workload.scale))))

    return replace(
        planned,
        segments=(replace(segment, num_tokens=scaled(segment.num_tokens)),),
        num_outputs=scaled(planned.num_outputs),
    )


def _as_sessions(requests: Sequence[Planned], sessions: Sessions) -> list[Planned]:
    """Every `turns` requests become one conversation."""
    found = []
    for start in range(0, len(requests), sessions.turns):
        told: tuple[Segment, ...] = ()
        for turn, each in enumerate(requests[start : start + sessions.turns]):
            asked = (*told, *each.segments)
            found.append(replace(each, at_s=each.at_s + turn * sessions.gap_s, segments=asked))
            told = (*asked, Segment(f"{each.number} answer", each.num_outputs))
    return found


def _with_prefixes(requests: Sequence[Planned], prefixes: Prefixes, seed: int) -> list[Planned]:
    draw = random.Random(f"prefixes {seed}")
    of_session: dict[str, tuple[Segment, ...]] = {}
    found = []
    for each in requests:
        key = each.segments[0].key
        if key not in of_session:
            chosen = Segment(f"prefix {draw.randrange(prefixes.count)}", prefixes.tokens)
            of_session[key] = (chosen,) if draw.random() < prefixes.share else ()
        found.append(replace(each, segments=(*of_session[key], *each.segments)))
    return found


def _cut(planned: Planned, longest: int) -> Planned:
    """The prompt's beginning, if it is too long."""
    left, kept = longest, []
    for each in planned.segments:
        if left > 0:
            kept.append(replace(each, num_tokens=min(left, each.num_tokens)))
            left -= each.num_tokens
    return replace(planned, segments=tuple(kept))


def _classes(workload: Workload, seed: int) -> Iterator[str]:
    names = [*workload.classes, ""]
    shares = [*workload.classes.values(), max(0.0, 1 - sum(workload.classes.values()))]
    draw = random.Random(f"classes {seed}")
    while True:
        yield draw.choices(names, shares)[0]
