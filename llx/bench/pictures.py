"""Pictures of measured runs, drawn on the paper of `llx.sim.canvas`, as simulated ones are."""

import itertools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from llx.bench.cluster_watch import Move, Sight
from llx.bench.record import Outcome, Record
from llx.bench.run_directory import Results, Run
from llx.bench.scenario import Variant
from llx.sim.canvas import (
    COLORS,
    NINES,
    Area,
    Drawing,
    as_svg,
    colors,
    heading,
    kind_of,
    legend_above,
    legend_beside,
    plain_numbers,
    save,
)

__all__ = ["as_svg", "drawings", "kind_of", "save"]

_NARROW: Final = 8
"""Where times differ less, their axis is linear."""
_LATENCIES: Final[tuple[tuple[str, Callable[[Record], float | None]], ...]] = (
    ("TTFT, ms", lambda record: record.ttft_s),
    ("TPOT, ms", lambda record: record.tpot_s),
    ("E2E, ms", lambda record: record.e2e_s),
)
_STEPS: Final = 120
"""Points of a course over time."""

Records = Mapping[Path, Sequence[Record]]


def drawings(results: Results) -> list[Drawing]:
    """All that there is to see of a benchmark: latencies, rates, and the course of each variant."""
    records = {each.path: each.records() for each in results.runs}
    found: list[Drawing] = [(3.0, lambda area: _latencies(area, results, records))]
    if len({each.figure("request_rate") for each in results.runs}) > 1:
        found.append((2.8, lambda area: _by_rate(area, results)))
    found += [_course_of(results.of(each)[0], records) for each in results.variants]
    return found


def _latencies(area: Area, results: Results, records: Records) -> None:
    """How many requests were served within a time, all repetitions; stretched to the slowest."""
    heading(area, "Latency")
    panels = area.subplots(1, len(_LATENCIES), sharey=True)
    for axes, (title, value) in zip(panels, _LATENCIES, strict=True):
        for color, variant in zip(colors(), results.variants, strict=False):
            mine = itertools.chain.from_iterable(records[e.path] for e in results.of(variant))
            ok = (value(each) for each in mine if each.outcome is Outcome.OK)
            values = sorted(1000 * each for each in ok if each is not None)
            nines = [-math.log10(1 - rank / len(values)) for rank in range(len(values))]
            axes.step(values, nines, where="post", color=color, linewidth=1.4, label=variant)
        _time_axis(axes)
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
    panels[0].set_yticks(*zip(*NINES, strict=True))
    panels[0].set_ylim(top=max(1.2, panels[0].dataLim.y1 * 1.05))
    panels[0].set_ylabel("of the requests, within")
    legend_beside(area, panels[0])


def _by_rate(area: Area, results: Results) -> None:
    """Goodput and tails against the rate of arrivals; a dot for each run."""
    heading(area, "By rate")
    panels = area.subplots(1, 3)
    figures = (
        ("request_goodput", "good requests/s"),
        ("p99_ttft_ms", "TTFT P99, ms"),
        ("p99_tpot_ms", "TPOT P99, ms"),
    )
    for axes, (name, title) in zip(panels, figures, strict=True):
        for color, (label, runs) in zip(colors(), _servers(results), strict=False):
            points = sorted(
                (rate, value)
                for each in runs
                if (rate := each.figure("request_rate")) is not None
                and (value := each.figure(name)) is not None
            )
            medians = [
                (rate, statistics.median(value for _, value in group))
                for rate, group in itertools.groupby(points, key=lambda point: point[0])
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), color=color, s=14, zorder=3)
                axes.plot(*zip(*medians, strict=True), color=color, linewidth=1.4, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("requests/s, planned")
        axes.set_ylabel(title)
    panels[0].axline((0, 0), slope=1, color=COLORS[5], linewidth=0.8, linestyle=":")
    if len(_servers(results)) > 1:
        legend_beside(area, panels[1])


def _servers(results: Results) -> list[tuple[str, list[Run]]]:
    """Variants that differ in their rate alone, together under what their names begin with."""
    groups: dict[str, list[Variant]] = {}
    for each in results.scenario.variants:
        same = each.model_dump_json(exclude={"name", "rate"})
        groups.setdefault(same, []).append(each)
    found = []
    for group in groups.values():
        names = [each.name for each in group]
        begin = os.path.commonprefix(names).rstrip("-_.")  # noqa: RUF071 - names, not paths
        found.append((begin or names[0], [run for name in names for run in results.of(name)]))
    return found


def _course_of(run: Run, records: Records) -> Drawing:
    sights = [each for each in run.sights() if each.instances]
    num_panels = 2 + bool(sights) + bool(run.moves())
    return 0.6 + num_panels, lambda area: _course(area, run, records[run.path], sights)


def _course(area: Area, run: Run, records: Sequence[Record], sights: Sequence[Sight]) -> None:
    """One run over time: the clients' side, then each instance's KV cache and its moves."""
    heading(area, f"{run.variant}, repetition {run.repetition + 1}")
    moves = run.moves()
    panels = area.subplots(2 + bool(sights) + bool(moves), 1, sharex=True)
    end = max(run.figure("duration") or 0.0, *(each.at_s for each in sights), 1e-3)
    _under_way(panels[0], records, end)
    _tokens(panels[1], records, end)
    if sights:
        _instances(panels[2], sights)
    if moves:
        _moves(panels[-1], moves, end)
    for fault in run.faults():
        what = f"{fault.words} (not done)" if fault.error else fault.words
        for axes in panels:
            axes.axvline(fault.at_s, color=COLORS[4], linewidth=1, linestyle="--")
        panels[0].annotate(
            what, (fault.at_s, 1.02), color=COLORS[4], fontsize=8,
            xycoords=("data", "axes fraction"), va="bottom", ha="center",
        )  # fmt: skip
    panels[-1].set_xlim(0, end)
    panels[-1].set_xlabel("s")
    area.align_ylabels(list(panels))


def _under_way(axes: Axes, records: Sequence[Record], end: float) -> None:
    steps = sorted(
        step
        for each in records
        if each.sent_at is not None
        for step in ((each.sent_at, 1), (each.last_at or end, -1))
    )
    counts = list(itertools.accumulate(step for _, step in steps))
    times = [at for at, _ in steps]
    axes.fill_between(times, counts, step="post", color=COLORS[0], alpha=0.2, linewidth=0)
    axes.step(times, counts, where="post", color=COLORS[0], linewidth=1)
    _count_axis(axes, "streams")


def _tokens(axes: Axes, records: Sequence[Record], end: float) -> None:
    """Tokens per second, spread evenly between a request's first and last."""
    width = end / _STEPS
    rates = [0.0] * _STEPS
    for each in records:
        if each.first_at is None or each.last_at is None:
            continue
        first = min(_STEPS - 1, int(each.first_at / width))
        last = min(_STEPS - 1, int(each.last_at / width))
        for step in range(first, last + 1):
            rates[step] += each.num_outputs / (last - first + 1) / width
    axes.step([width * step for step in range(_STEPS)], rates, where="post", color=COLORS[2])
    _count_axis(axes, "tokens/s")


def _instances(axes: Axes, sights: Sequence[Sight]) -> None:
    """The share of each instance's KV cache in use; dotted while it takes nothing new."""
    names = sorted({each.name for sight in sights for each in sight.instances})
    for color, name in zip(colors(), names, strict=False):
        points = [
            (sight.at_s, 100 * each.blocks_used / each.blocks_total, each.is_cordoned)
            for sight in sights
            for each in sight.instances
            if each.name == name and each.blocks_total
        ]
        times = [at for at, _, _ in points]
        shares = [share for _, share, _ in points]
        closed = [share if is_closed else math.nan for _, share, is_closed in points]
        axes.step(times, shares, where="post", color=color, linewidth=1.2, label=name)
        axes.step(times, closed, where="post", color="white", linewidth=1.2, linestyle=":")
    _count_axis(axes, "KV used, %", is_integer=False)
    if len(names) <= len(COLORS):
        legend_above(axes)


def _moves(axes: Axes, moves: Sequence[Move], end: float) -> None:
    moved = [each for each in moves if each.ended_s is not None]
    width = end / _STEPS
    for color, word in ((COLORS[2], "moved"), (COLORS[6], "kept")):
        counts = [0] * _STEPS
        for each in moved:
            if each.outcome == word and each.ended_s is not None:
                counts[min(_STEPS - 1, max(0, int(each.ended_s / width)))] += 1
        if any(counts) or word == "moved":
            starts = [width * step for step in range(_STEPS)]
            axes.bar(starts, counts, width=width, align="edge", color=color, label=word)
    _count_axis(axes, "migrations")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    if {each.outcome for each in moved} - {"moved"}:
        legend_above(axes)


def _count_axis(axes: Axes, title: str, *, is_integer: bool = True) -> None:
    axes.set_ylabel(title)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=is_integer))


def _time_axis(axes: Axes) -> None:
    """Logarithmic where times differ much."""
    low, high = axes.dataLim.x0, axes.dataLim.x1
    if low > 0 and high > _NARROW * low:
        axes.set_xscale("log")
        plain_numbers(axes)
    else:
        axes.set_xlim(left=0)
