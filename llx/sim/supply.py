"""The requests of a run: lengths of a workload or a trace, arrivals of a seed or the trace."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llx.core.model import ClassName, Nanos, Tokens
from llx.errors import ConfigError
from llx.sim import trace_files
from llx.sim.workload import SimRequest, gamma_arrivals, paper_lengths

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
        lengths: Of prompts and outputs.
        times: When each comes; None: not known.
        num_left_out: Those that were longer than the engine takes.
    """

    source: Source
    lengths: Sequence[tuple[Tokens, Tokens]]
    times: Sequence[Nanos] | None
    num_left_out: int = 0

    @property
    def count(self) -> int:
        """Requests of a run."""
        return min(self.source.count or len(self.lengths), len(self.lengths))

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
        begin = self._begin(seed)
        lengths = self.lengths[begin : begin + self.count]
        if rate is not None:
            times: Sequence[Nanos] = gamma_arrivals(seed, rate, self.source.cv, len(lengths))
        elif self.times is None:
            raise ConfigError("these requests have no times of their own", remedy="give a rate")
        else:
            times = _from_zero(self.times[begin : begin + self.count], self.scale_rate)
        draw = random.Random(f"classes {seed}")
        return [
            SimRequest(at, num_prompt, num_outputs, self._class(draw.random()))
            for at, (num_prompt, num_outputs) in zip(times, lengths, strict=True)
        ]

    def has_seeds(self, rate: float | None) -> bool:
        """Whether two seeds can give two runs."""
        is_drawn = rate is not None or bool(self.source.shares)
        return is_drawn or self.count < len(self.lengths)

    @property
    def scale_rate(self) -> float:
        """So many times the own rate."""
        return self.source.lengths.scale_rate if isinstance(self.source.lengths, Trace) else 1.0

    def _begin(self, seed: int) -> int:
        num_left = len(self.lengths) - self.count
        return random.Random(f"stretch {seed}").randint(0, num_left) if seed and num_left else 0

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
        lengths = paper_lengths(source.lengths.name, source.count or _DEFAULT_COUNT)
        kept = [each for each in lengths if sum(each) <= longest]
        return Supply(source, kept, None, len(lengths) - len(kept))
    return _of_trace(source, source.lengths, longest)


def _of_trace(source: Source, trace: Trace, longest: int) -> Supply:
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
    return Supply(source, lengths, times, num_read - len(lengths))


def _from_zero(times: Sequence[Nanos], scale_rate: float) -> list[Nanos]:
    return [Nanos(round((each - times[0]) / scale_rate)) for each in times]
