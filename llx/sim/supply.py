"""The requests of a run: lengths of a workload or a trace, arrivals of a seed or the trace."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llx.core.model import ClassName, Nanos, Tokens
from llx.errors import ConfigError
from llx.sim import trace_files
from llx.sim.workload import SimRequest, gamma_arrivals, generated

_DEFAULT_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Mix:
    """Lengths as in the paper.

    Attributes:
        name: ``m-m``, ``s-l``, …
    """

    name: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Lengths, and arrivals if it has some, of a file.

    Attributes:
        path: The file, gzipped or not.
        format: Of `trace_files.NAMES`; None: as it looks.
        scale_rate: So many times the file's own rate.
    """

    path: Path
    format: str | None = None
    scale_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from.

    Attributes:
        lengths: Of the paper, or of a trace.
        count: How many of them; None: all of a trace, 1000 of a workload.
        cv: Of the gaps between requests where arrivals are drawn: 1 is Poisson.
        default_class: Of those that no share takes.
        shares: Part of the requests that each class has, drawn by the seed.
    """

    lengths: Mix | Trace
    default_class: ClassName
    count: int | None = None
    cv: float = 1.0
    shares: tuple[tuple[ClassName, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Supply:
    """Requests at hand; every seed draws from them.

    Attributes:
        source: Whose.
        longest: Tokens of a prompt and its outputs that an engine takes; no request is longer.
        count: Requests of a run.
        num_left_out: Those that were longer.
        lengths: Of a trace: all that it has.
        times: Of a trace: when each comes; None: not known.
    """

    source: Source
    longest: int
    count: int
    num_left_out: int
    lengths: Sequence[tuple[Tokens, Tokens]] = ()
    times: Sequence[Nanos] | None = None

    def requests(self, seed: int, rate: float | None) -> list[SimRequest]:
        """Those of one run.

        Of a trace with more requests than are wanted each seed has a stretch of its own; that of
        seed 0 is the first.

        Args:
            seed: Of the arrivals, the classes, the stretch.
            rate: Requests a second, drawn; None: they come when the trace says.

        Raises:
            ConfigError: There is no rate, and no times either.
        """
        source = self.source
        if isinstance(source.lengths, Trace):
            drawn = self._of_trace(source.lengths, seed, rate)
        elif rate is None:
            raise ConfigError("a workload has no times of its own", remedy="give a rate")
        else:
            drawn = _of_mix(source, source.lengths, seed, rate, self.longest)
        draw = random.Random(f"classes {seed}")
        return [replace(each, priority_class=self._class(draw.random())) for each in drawn]

    def has_seeds(self, rate: float | None) -> bool:
        """Whether two seeds can give two runs."""
        is_drawn = rate is not None or bool(self.source.shares)
        return is_drawn or self.count < len(self.lengths)

    def _of_trace(self, trace: Trace, seed: int, rate: float | None) -> list[SimRequest]:
        num_left = len(self.lengths) - self.count
        begin = random.Random(f"stretch {seed}").randint(0, num_left) if seed and num_left else 0
        stretch = slice(begin, begin + self.count)
        if rate is not None:
            times: Sequence[Nanos] = gamma_arrivals(seed, rate, self.source.cv, self.count)
        elif self.times is None:
            raise ConfigError("these requests have no times of their own", remedy="give a rate")
        else:
            times = _from_zero(self.times[stretch], trace.scale_rate)
        pairs = zip(times, self.lengths[stretch], strict=True)
        return [SimRequest(at, *lengths) for at, lengths in pairs]

    def _class(self, drawn: float) -> ClassName:
        for name, share in self.source.shares:
            if drawn < share:
                return name
            drawn -= share
        return self.source.default_class


def supply_of(source: Source, longest: int) -> Supply:
    """Read or draw what a source has.

    Args:
        source: Where requests come from.
        longest: Tokens of a prompt and its outputs together that an engine takes.

    Raises:
        ConfigError: There is no such workload, or the trace cannot be read or has nothing.
    """
    if isinstance(source.lengths, Mix):
        wanted = source.count or _DEFAULT_COUNT
        count = len(_of_mix(source, source.lengths, 0, 1.0, longest))
        return Supply(source, longest, count, wanted - count)
    return _read(source, source.lengths, longest)


def _of_mix(source: Source, mix: Mix, seed: int, rate: float, longest: int) -> list[SimRequest]:
    requests = generated(mix.name, rate, source.count or _DEFAULT_COUNT, seed, cv=source.cv)
    return [each for each in requests if each.num_prompt + each.num_outputs <= longest]


def _read(source: Source, trace: Trace, longest: int) -> Supply:
    name = trace.format or trace_files.detect(trace.path)
    if not trace.scale_rate > 0:
        raise ConfigError(f"a rate is scaled by something positive, not {trace.scale_rate}")
    times: list[Nanos] | None = None
    if trace_files.has_times(name):
        all_of_it = list(trace_files.read_trace(trace.path, name))
        requests = [each for each in all_of_it if each.num_prompt + each.num_outputs <= longest]
        lengths = [(each.num_prompt, each.num_outputs) for each in requests]
        times = [each.arrival for each in requests]
        num_read = len(all_of_it)
    else:
        read = list(trace_files.read_lengths(trace.path, name))
        lengths = [each for each in read if sum(each) <= longest]
        num_read = len(read)
    if not lengths:
        raise ConfigError(f"{trace.path}: no request that an engine of {longest} tokens takes")
    count = min(source.count or len(lengths), len(lengths))
    return Supply(source, longest, count, num_read - len(lengths), lengths, times)


def _from_zero(times: Sequence[Nanos], scale_rate: float) -> list[Nanos]:
    return [Nanos(round((each - times[0]) / scale_rate)) for each in times]
