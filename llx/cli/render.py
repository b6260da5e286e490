"""Resources as text: one function per format, tables from columns. Pure but for the console."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from llx.choices import OutputFormat
from llx.figures import span

if TYPE_CHECKING:
    from llx.environment import Environment

R = TypeVar("R", bound=BaseModel)

_PIPE_WIDTH = 400
"""Columns where there is no terminal: nothing is cut."""

_GAP = 2
"""Blanks between columns."""

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


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text, for rich consoles.

    rich takes half a second to lay out a thousand rows. Where there is room for all columns and no
    character that is wider than others, the same comes of padding.
    """

    titles: list[str]
    are_numbers: list[bool]
    rows: list[list[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [max(map(len, column)) for column in zip(self.titles, *self.rows, strict=True)]
        is_room = sum(widths) + _GAP * (len(widths) - 1) <= options.max_width
        if not (is_room and self._is_plain()):
            yield self._laid_out(widths)
            return
        bold, plain = Style(bold=True), Style()
        styles = {name: console.get_style(style) for name, style in _STYLES.items()}
        yield from self._line(self.titles, widths, [bold] * len(widths), bold)
        for row in self.rows:
            yield from self._line(row, widths, [styles.get(text, plain) for text in row], plain)

    def _is_plain(self) -> bool:
        used = set().union(*self.titles, *map("".join, self.rows))
        return all(each.isprintable() and cell_len(each) == 1 for each in used)

    def _line(
        self, texts: Sequence[str], widths: Sequence[int], styles: Sequence[Style], gap: Style
    ) -> Iterator[Segment]:
        for index, (text, width) in enumerate(zip(texts, widths, strict=True)):
            if index:
                yield Segment(" " * _GAP, gap)
            is_number = self.are_numbers[index]
            padded = text.rstrip().rjust(width) if is_number else text.ljust(width)
            yield Segment(padded, styles[index])
        yield Segment.line()

    def _laid_out(self, widths: Sequence[int]) -> Table:
        grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        last = len(widths) - 1
        for index, (title, is_number) in enumerate(zip(self.titles, self.are_numbers, strict=True)):
            grid.add_column(
                title,
                justify="right" if is_number else "left",
                no_wrap=True,
                overflow="ellipsis",
                # Where room is short, it is the last column that gives way.
                min_width=widths[index] if index < last else None,
            )
        for row in self.rows:
            grid.add_row(*(styled(text) for text in row))
        return grid


def table(columns: Sequence[Column[R]], rows: Sequence[R], *, is_wide: bool = False) -> Grid:
    """Rows under UPPERCASE headings."""
    shown = [each for each in columns if is_wide or not each.is_wide_only]
    return Grid(
        [each.title.upper() for each in shown],
        [each.is_number for each in shown],
        [[each.value(row) for each in shown] for row in rows],
    )


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
    if is_line:
        return json.dumps(_plain(resource), ensure_ascii=False)
    # By way of `json` it takes six times as long.
    text = to_json(resource, indent=2, ensure_ascii=True, inf_nan_mode="null", by_alias=False)
    return text.decode().replace("\x7f", "\\u007f")  # the one control character that it leaves


def as_yaml(resource: BaseModel | Sequence[BaseModel]) -> str:
    """YAML of the same data as the JSON."""
    return _yaml(_plain(resource))


def as_text(resource: BaseModel) -> str:
    """As `as_yaml`, for people: moments (``…_at``) by this machine's clock, and how long ago."""
    values = _plain(resource)
    assert isinstance(values, dict), "one resource"
    told = {key: _moment(key, value) for key, value in values.items()}
    return _yaml(told)


def _yaml(data: object) -> str:
    """By libyaml, if it is there: three times as fast."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(data, Dumper=dumper, sort_keys=False)
    return text.rstrip()


def _moment(key: str, value: object) -> object:
    if not key.endswith("_at") or not isinstance(value, float):
        return value
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return f"{clock} ({span(max(0.0, time.time() - value))} ago)"


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
