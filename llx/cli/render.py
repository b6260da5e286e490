"""Resources as text: one function per format, tables from columns. Pure but for the console."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from llx.choices import OutputFormat
from llx.figures import span

if TYPE_CHECKING:
    from llx.settings import Environment

R = TypeVar("R", bound=BaseModel)

_PIPE_WIDTH = 400
"""Columns where there is no terminal: nothing is cut."""

_STYLES = {
    "ready": "green",
    "up": "green",
    "starting": "yellow",
    "loading": "yellow",
    "stopping": "yellow",
    "degraded": "yellow",
    "failed": "bold red",
    "stopped": "dim",
    "down": "dim",
    "moved": "green",
    "kept": "yellow",
    "gone": "dim",
    "unknown": "bold red",
}


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """A column: its heading and what it says of a row."""

    title: str
    value: Callable[[R], str]
    is_wide_only: bool = False
    is_number: bool = False


def make_console(environment: "Environment", *, stderr: bool = False) -> Console:
    """A console for results (stdout) or progress (stderr); colour on terminals only."""
    console = Console(
        stderr=stderr,
        highlight=False,
        no_color=environment.is_colour_off or None,
        soft_wrap=False,
    )
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, no_color=True, width=_PIPE_WIDTH)
    return console


def table(columns: Sequence[Column[R]], rows: Sequence[R], *, is_wide: bool = False) -> Table:
    """Rows under UPPERCASE headings."""
    shown = [each for each in columns if is_wide or not each.is_wide_only]
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    cells = [[each.value(row) for each in shown] for row in rows]
    for index, each in enumerate(shown):
        widest = max(len(text) for text in (each.title, *(row[index] for row in cells)))
        grid.add_column(
            each.title.upper(),
            justify="right" if each.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Where room is short, it is the last column that gives way.
            min_width=widest if each is not shown[-1] else None,
        )
    for row in cells:
        grid.add_row(*(styled(text) for text in row))
    return grid


def styled(text: str) -> Text:
    """A word in the colour of the state it names, if it names one."""
    return Text(text, style=_STYLES.get(text, ""))


def print_table(console: Console, grid: RenderableType) -> None:
    """Print without the blanks that pad a last column."""
    if console.is_terminal:
        console.print(grid)
        return
    with console.capture() as capture:
        console.print(grid)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    console.file.write("\n".join(lines) + "\n")


def as_json(resource: BaseModel | Sequence[BaseModel], *, is_line: bool = False) -> str:
    """JSON, on one line or to be read."""
    data = _plain(resource)
    return json.dumps(data, ensure_ascii=False) if is_line else json.dumps(data, indent=2)


def as_yaml(resource: BaseModel | Sequence[BaseModel]) -> str:
    """YAML of the same data as the JSON."""
    import yaml

    return yaml.safe_dump(_plain(resource), sort_keys=False).rstrip()


def emit(
    console: Console,
    output: OutputFormat,
    resource: BaseModel | Sequence[BaseModel],
    names: Sequence[str],
    show: Callable[[bool], None],
) -> None:
    """Print `resource` in a format.

    Args:
        console: For stdout.
        output: The format.
        resource: What JSON and YAML show.
        names: What ``-o name`` shows.
        show: Prints the tables; told whether they are wide.
    """
    match output:
        case OutputFormat.TABLE | OutputFormat.WIDE:
            show(output is OutputFormat.WIDE)
        case OutputFormat.JSON:
            console.file.write(as_json(resource) + "\n")
        case OutputFormat.YAML:
            console.file.write(as_yaml(resource) + "\n")
        case OutputFormat.NAME:
            console.file.write("".join(f"{name}\n" for name in names))


def age(at: float | None, now: float | None = None) -> str:
    """How long ago, roughly: ``12s``, ``3m``, ``5h``, ``2d``."""
    return "-" if at is None else span((time.time() if now is None else now) - at)


def _plain(resource: BaseModel | Sequence[BaseModel]) -> object:
    """Plain data; infinities, which JSON does not know, become null."""
    if isinstance(resource, BaseModel):
        return json.loads(resource.model_dump_json())
    return [_plain(each) for each in resource]
