"""How `llx sim` prints: tables that fit a terminal, CSV for spreadsheets, a bar of progress."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llx.cli.render import Column, Grid
    from llx.sim.figures import Interval, Row


class SimOutput(StrEnum):
    """How a simulation prints its figures."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


SimOutputOption = Annotated[
    SimOutput | None,
    typer.Option("-o", "--output", help="How to print; default: table. csv and json have it all."),
]


@contextmanager
def progress(
    console: "Console", total: int | None, unit: str
) -> Iterator[Callable[[str, int], None]]:
    """A bar on stderr: what is under way, how much is done, how fast, how long still.

    Args:
        console: For progress.
        total: Of what is to be done; None: not known.
        unit: Of it.

    Yields:
        To be told the name of what is under way, and how much is done in all.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """So many of the unit each second of real time."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(),
        TimeRemainingColumn(),
    )  # fmt: skip
    is_shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not is_shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda name, count: bar.update(task, description=name, completed=count)


def rows_table(rows: "Sequence[Row]", *, is_wide: bool) -> "Grid":
    """The most telling figures of each row; they fit 80 columns unless wide."""
    from llx.cli.render import Column, table

    has_classes = any(row.priority_class != rows[0].priority_class for row in rows)
    has_goals = any("good_share" in row.figures for row in rows)
    has_rates = len({row.rate for row in rows}) > 1
    # Who is refused is in no latency: that is never left unsaid.
    is_refusing = any(row.figures["refused"].mean for row in rows)
    columns: list[Column[Row]] = [
        Column("policy", lambda row: row.policy),
        _column("request", "request_mean_s"),
        _column("p50", "request_p50_s", is_wide_only=True),
        _column("p90", "request_p90_s", is_wide_only=True),
        _column("p99", "request_p99_s", is_wide_only=True),
        _column("prefill", "prefill_mean_s"),
        _column("p50", "prefill_p50_s", is_wide_only=True),
        _column("p90", "prefill_p90_s", is_wide_only=True),
        _column("p99", "prefill_p99_s"),
        _column("p99 ratio", "prefill_p99_s", is_ratio=True, is_wide_only=True),
        _column("decode", "decode_mean_s", unit=1e3, is_wide_only=has_goals),
        _column("p50", "decode_p50_s", unit=1e3, is_wide_only=True),
        _column("p90", "decode_p90_s", unit=1e3, is_wide_only=True),
        _column("p99" if is_wide or not has_goals else "decode p99", "decode_p99_s", unit=1e3),
        _column("p99 ratio", "decode_p99_s", is_ratio=True, is_wide_only=True),
        _column("loss", "preemption_loss_s", is_wide_only=has_goals or has_classes or has_rates),
        _column("refused", "refused", is_wide_only=not is_refusing),
        _column("moves", "moves", digits=2, is_wide_only=has_classes and (has_goals or has_rates)),
        _column("downtime ms", "downtime_p50_s", unit=1e3, is_wide_only=True),
        _column("instances", "instances", is_wide_only=True),
    ]
    if has_goals:
        columns.insert(-4, _column("good %", "good_share", unit=100))
        columns.insert(-4, _column("goodput", "goodput_per_s", is_wide_only=True))
    if has_classes:
        columns.insert(1, Column("class", lambda row: row.priority_class))
    if has_rates:
        columns.insert(0, Column("rate", lambda row: f"{row.rate or 0:g}", is_number=True))
    return table(columns, rows, is_wide=is_wide)


def _column(
    title: str,
    name: str,
    *,
    unit: float = 1,
    digits: int = 3,
    is_ratio: bool = False,
    is_wide_only: bool = False,
) -> "Column[Row]":
    """A figure, or its ratio to the first policy; empty where a row has none."""
    from llx.cli.render import Column

    def cell(row: "Row") -> str:
        figure = row.figures.get(name)
        shown = figure.ratio if figure is not None and is_ratio else figure
        return "" if shown is None else _cell(shown, unit, digits)

    return Column(title, cell, is_wide_only, is_number=True)


def write_csv(file: IO[str], rows: "Sequence[Row]") -> None:
    """A line for each figure of each row."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow("policy rate class figure mean low high ratio ratio_low ratio_high".split())
    for row in rows:
        for name, figure in row.figures.items():
            ratio = figure.ratio
            parts = (ratio.mean, ratio.low, ratio.high) if ratio else (None,) * 3
            values = (figure.mean, figure.low, figure.high, *parts)
            cells = ["" if each is None else f"{each:.6g}" for each in values]
            rate = "" if row.rate is None else f"{row.rate:g}"
            writer.writerow([row.policy, rate, row.priority_class, name, *cells])


def legend(rows: "Sequence[Row]") -> str:
    """What a table's figures are, in a line."""
    seeds = len(rows[0].seeds)
    spread = f", ± of 95 % over {seeds} seeds" if seeds > 1 else ", one seed: no spread"
    return f"seconds, decode in ms a token{spread}"


def _cell(figure: "Interval", unit: float, digits: int) -> str:
    """``12.9±3%``: so many digits, and half the interval in percent of the mean."""
    text = _number(figure.mean * unit, digits)
    if figure.high is None or not figure.mean:
        return text
    return f"{text}±{100 * (figure.high - figure.mean) / abs(figure.mean):.0f}%"


def _number(value: float, digits: int) -> str:
    """So many digits, or all of a whole number's; two below 1."""
    size = abs(value)
    if size < 1:
        return f"{value:.2g}"
    return f"{value:.{max(0, digits - len(str(int(size))))}f}"
