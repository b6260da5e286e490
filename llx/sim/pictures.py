"""Pictures of simulated runs, drawn on the paper of `llx.sim.canvas`."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from llx.errors import ConfigError
from llx.sim.canvas import (
    COLORS,
    NINES,
    Area,
    Drawing,
    as_svg,
    colors,
    heading,
    kind_of,
    legend_beside,
    plain_numbers,
    save,
)
from llx.sim.figures import Row
from llx.sim.samples import ALL, Run
from llx.sim.timeline import Timeline

__all__ = ["as_svg", "drawings", "kind_of", "save", "timeline_drawing"]

_MEMORY: Final = LinearSegmentedColormap.from_list(
    "memory", ["#f4f6f8", "#bcd4ea", "#5b9bd0", "#1f5f9f", "#7a1f3d"]
)
_MOST_BARS: Final = 150


def drawings(
    runs: Sequence[Run], rows: Sequence[Row], timelines: Mapping[str, Timeline]
) -> list[Drawing]:
    """All that there is to see of a plan that has been run."""
    rates = list(dict.fromkeys(each.rate for each in runs))
    last = [each for each in runs if each.rate == rates[-1]]
    at = f" at {rates[-1]:g} requests/s" if len(rates) > 1 else ""
    out: list[Drawing] = [(2.9, lambda area: _latencies(area, last, at))]
    if len(rates) > 1:
        out.insert(0, (2.9, lambda area: _sweep(area, rows)))
    for policy, timeline in timelines.items():
        out.append(timeline_drawing(timeline, policy + at))
    return out


def timeline_drawing(timeline: Timeline, title: str) -> Drawing:
    """The course of one run.

    Raises:
        ConfigError: Nothing has happened in it.
    """
    if not timeline.samples:
        raise ConfigError(f"{title}: nothing has happened that could be drawn")
    return 4.4, lambda area: _course(area, timeline, title)


def _latencies(area: Area, runs: Sequence[Run], at: str) -> None:
    """How many requests were done within a time, over all seeds; stretched towards the slowest."""
    heading(area, f"Latency{at}")
    panels = area.subplots(1, 3, sharey=True)
    titles = (
        ("request", "request, s", 1.0),
        ("prefill", "prefill (TTFT), s", 1.0),
        ("decode", "decode (TPOT), ms", 1e3),
    )
    for axes, (name, title, unit) in zip(panels, titles, strict=True):
        for color, (policy, group) in zip(colors(), _by_policy(runs), strict=False):
            values = sorted(
                unit * each for run in group for each in getattr(run.samples[ALL], name)
            )
            nines = [-math.log10(1 - rank / len(values)) for rank in range(len(values))]
            axes.step(values, nines, where="post", color=color, linewidth=1.4, label=policy)
        axes.set_xscale("log")
        plain_numbers(axes)
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
    panels[0].set_yticks(*zip(*NINES, strict=True))
    panels[0].set_ylabel("of the requests, within")
    legend_beside(area, panels[0])


def _sweep(area: Area, rows: Sequence[Row]) -> None:
    """Figures against the rate, with the intervals over seeds."""
    heading(area, "By rate" + (", bars: 95 % over seeds" if len(rows[0].seeds) > 1 else ""))
    panels = area.subplots(1, 3)
    figures = (
        ("request_mean_s", "request mean, s", 1.0),
        ("prefill_p99_s", "prefill P99, s", 1.0),
        ("decode_p99_s", "decode P99, ms", 1e3),
    )
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.priority_class == ALL:
            groups.setdefault(row.policy, []).append(row)
    for axes, (name, title, unit) in zip(panels, figures, strict=True):
        for color, (policy, group) in zip(colors(), groups.items(), strict=False):
            shown = [row.figures[name] for row in group]
            means = [unit * each.mean for each in shown]
            bars = [unit * ((each.high or each.mean) - each.mean) for each in shown]
            rates = [row.rate or 0 for row in group]
            axes.errorbar(
                rates, means, yerr=bars if any(bars) else None, color=color, label=policy,
                marker="o", markersize=3.5, linewidth=1.4, elinewidth=1, capsize=2,
            )  # fmt: skip
            axes.set_xticks(rates)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests/s")
        axes.set_ylabel(title)
    legend_beside(area, panels[0])


def _course(area: Area, timeline: Timeline, title: str) -> None:
    """Memory of each instance, who waits, what moves; over time."""
    heading(area, title)
    memory, waiting, moves = area.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [2.2, 1.2, 1]}
    )
    samples = timeline.samples
    times = [each.at_s for each in samples]
    _memory(area, memory, timeline)
    for name, color, label in (
        ("num_queued", COLORS[1], "in central queues"),
        ("num_waiting", COLORS[0], "at instances"),
    ):
        values = [getattr(each, name) for each in samples]
        waiting.fill_between(times, values, step="post", color=color, alpha=0.25, linewidth=0)
        waiting.step(times, values, where="post", color=color, linewidth=1, label=label)
    waiting.set_ylabel("waiting")
    most = max(max(each.num_queued, each.num_waiting) for each in samples)
    waiting.set_ylim(0, 1.5 * max(1, most))  # the legend is above
    waiting.legend(loc="upper left", ncols=2, handlelength=1.2, borderpad=0)
    wider = samples[:: max(1, len(samples) // _MOST_BARS)]
    moved = [b.num_moved - a.num_moved for a, b in itertools.pairwise(wider)]
    step = wider[1].at_s - wider[0].at_s if len(wider) > 1 else 1.0
    begins = [each.at_s for each in wider[:-1]]
    moves.bar(begins, moved, width=step, align="edge", color=COLORS[2], linewidth=0)
    moves.set_ylabel(f"moves\nin {step:g} s")
    moves.set_ylim(0, max(1, *moved) if moved else 1)
    moves.set_xlabel("s")
    moves.set_xlim(0, times[-1] if times[-1:] > [0.0] else 1)
    for axes in (waiting, moves):
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    area.align_ylabels([memory, waiting, moves])


def _memory(area: Area, axes: Axes, timeline: Timeline) -> None:
    """A row for each instance, darker the fuller; blank where it is not there."""
    samples, count = timeline.samples, max(1, len(timeline.instances))
    grid = [[float("nan")] * len(samples) for _ in range(count)]
    for column, each in enumerate(samples):
        for number, used in each.used:
            grid[number][column] = 100 * used
    end = samples[-1].at_s if len(samples) > 1 else 1.0
    image = axes.imshow(
        grid, aspect="auto", interpolation="nearest", cmap=_MEMORY, vmin=0, vmax=100,
        extent=(0, end, count - 0.5, -0.5),
    )  # fmt: skip
    axes.grid(visible=False)
    axes.hlines(
        [row + 0.5 for row in range(count - 1)],
        0,
        end,
        color="white",
        linewidth=min(1.5, 8 / count),
    )
    axes.set_ylabel("instance")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = area.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.set_label("blocks used, %")
    bar.outline.set_visible(False)


def _by_policy(runs: Iterable[Run]) -> Iterable[tuple[str, list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for each in runs:
        groups.setdefault(each.policy, []).append(each)
    return groups.items()
