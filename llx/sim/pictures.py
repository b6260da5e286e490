"""Pictures of runs, by matplotlib: the one place that imports it (the extra `plots`).

Figures are made without pyplot, so nothing global changes, and without times or random ids, so the
same runs give the same file.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from llx.errors import ConfigError
from llx.sim.figures import Row
from llx.sim.samples import ALL, Run
from llx.sim.timeline import Timeline

_COLORS: Final = ("#2a6fbb", "#e07b39", "#3b8f5c", "#8d5fb5", "#c4476c", "#6b6f76", "#b59a1c")
_INK, _FAINT = "#33373d", "#e4e6e9"
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": "#9a9ea5", "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": _FAINT, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "llx", "savefig.facecolor": "white",
}  # fmt: skip
_MEMORY: Final = LinearSegmentedColormap.from_list(
    "memory", ["#f4f6f8", "#bcd4ea", "#5b9bd0", "#1f5f9f", "#7a1f3d"]
)
_WIDTH: Final = 10.0
_WIDE: Final = 300
"""From here on an axis of times is labelled by powers of ten only."""
_NINES: Final = (
    (0.0, "0 %"),
    (math.log10(2), "50 %"),
    (1.0, "90 %"),
    (2.0, "99 %"),
    (3.0, "99.9 %"),
)

Area = Figure | SubFigure
Drawing = tuple[float, Callable[[Area], None]]
"""A height in inches, and what draws into an area."""


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
    """The course of one run."""
    return 4.4, lambda area: _course(area, timeline, title)


def kind_of(path: Path) -> str:
    """The kind of picture that a file's name asks for.

    Raises:
        ConfigError: None that is known.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise ConfigError(f"{path}: a picture's name ends in .svg, .png or .pdf")
    return kind


def save(path: Path, parts: Sequence[Drawing]) -> None:
    """Write a picture of these parts, one below the other; its kind is the file's ending.

    Raises:
        ConfigError: The file cannot be written, or is of no known kind.
    """
    data = _rendered(parts, kind_of(path))
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def as_svg(part: Drawing) -> str:
    """One part, to be put into a page."""
    text = _rendered([part], "svg").decode()
    return text[text.index("<svg") :]


def _rendered(parts: Sequence[Drawing], kind: str) -> bytes:
    with mpl.rc_context(_STYLE):
        heights = [height for height, _ in parts]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        areas = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
        for area, (_, draw) in zip(areas[:, 0], parts, strict=True):
            draw(area)
        data = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(data, format=kind, dpi=160, metadata=metadata)
        return data.getvalue()


def _latencies(area: Area, runs: Sequence[Run], at: str) -> None:
    """How many requests were done within a time, over all seeds; stretched towards the slowest."""
    _head(area, f"Latency{at}")
    panels = area.subplots(1, 3, sharey=True)
    titles = (
        ("request", "request, s", 1.0),
        ("prefill", "prefill (TTFT), s", 1.0),
        ("decode", "decode (TPOT), ms", 1e3),
    )
    for axes, (name, title, unit) in zip(panels, titles, strict=True):
        for color, (policy, group) in zip(_colors(), _by_policy(runs), strict=False):
            values = sorted(
                unit * each for run in group for each in getattr(run.samples[ALL], name)
            )
            nines = [-math.log10(1 - rank / len(values)) for rank in range(len(values))]
            axes.step(values, nines, where="post", color=color, linewidth=1.4, label=policy)
        axes.set_xscale("log")
        _plain_numbers(axes)
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
    panels[0].set_yticks(*zip(*_NINES, strict=True))
    panels[0].set_ylabel("of the requests, within")
    _legend(area, panels[0])


def _sweep(area: Area, rows: Sequence[Row]) -> None:
    """Figures against the rate, with the intervals over seeds."""
    _head(area, "By rate" + (", bars: 95 % over seeds" if len(rows[0].seeds) > 1 else ""))
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
        for color, (policy, group) in zip(_colors(), groups.items(), strict=False):
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
    _legend(area, panels[0])


def _course(area: Area, timeline: Timeline, title: str) -> None:
    """Memory of each instance, who waits, what moves; over time."""
    _head(area, title)
    memory, waiting, moves = area.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [2.2, 1.2, 1]}
    )
    samples = timeline.samples
    times = [each.at_s for each in samples]
    _memory(area, memory, timeline)
    for name, color, label in (
        ("num_queued", _COLORS[1], "in central queues"),
        ("num_waiting", _COLORS[0], "at instances"),
    ):
        values = [getattr(each, name) for each in samples]
        waiting.fill_between(times, values, step="post", color=color, alpha=0.25, linewidth=0)
        waiting.step(times, values, where="post", color=color, linewidth=1, label=label)
    waiting.set_ylabel("waiting")
    waiting.set_ylim(bottom=0)
    waiting.legend(loc="upper left", ncols=2, handlelength=1.2, borderpad=0)
    moved = [b.num_moved - a.num_moved for a, b in itertools.pairwise(samples)]
    step = times[1] - times[0] if len(times) > 1 else 1.0
    moves.bar(times[:-1], moved, width=step, align="edge", color=_COLORS[2], linewidth=0)
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
    axes.hlines([row + 0.5 for row in range(count - 1)], 0, end, color="white", linewidth=1.5)
    axes.set_ylabel("instance")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = area.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.set_label("blocks used, %")
    bar.outline.set_visible(False)


def _head(area: Area, title: str) -> None:
    area.suptitle(title, x=0.01, ha="left", fontweight="bold")


def _legend(area: Area, axes: Axes) -> None:
    """One for all panels, beside the heading."""
    handles, labels = axes.get_legend_handles_labels()
    legend = area.legend(
        handles, labels, loc="upper right", ncols=len(labels), handlelength=1.2, borderpad=0
    )
    legend.set_in_layout(False)


def _by_policy(runs: Iterable[Run]) -> Iterable[tuple[str, list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for each in runs:
        groups.setdefault(each.policy, []).append(each)
    return groups.items()


def _colors() -> Iterable[str]:
    return itertools.cycle(_COLORS)


def _plain_numbers(axes: Axes) -> None:
    """0.1, 1, 10 instead of powers; 2 and 5 between them where there is room."""
    low, high = axes.get_xlim()
    is_wide = low > 0 and high / low > _WIDE
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
