"""One look at everything, as text that scrolls: `llx top --once`. Pure."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llx.api import Snapshot
from llx.top.headline import cluster_line, totals_line
from llx.top.panes import PANES, Pane, sheet_of
from llx.top.table import Sheet
from llx.top.trend import Trend

_GAP = 2


def plain_parts(snapshot: Snapshot, trend: Trend, width: int) -> list[RenderableType]:
    """Headline, totals, and every pane that has rows under its name."""
    parts: list[RenderableType] = [
        cluster_line(snapshot, width),
        totals_line(snapshot, trend, width),
    ]
    for pane in PANES:
        sheet = sheet_of(pane, snapshot, width=width)
        if sheet.rows:
            parts += [
                Text(""),
                Text(pane_title(pane, sheet, snapshot), style="bold"),
                grid_of(sheet),
            ]
    return parts


def pane_title(pane: Pane, sheet: Sheet, snapshot: Snapshot) -> str:
    """Its name, how many rows there are, and how many of them are not shown."""
    num_all = sheet.num_all
    if pane is Pane.REQUESTS:
        num_all = max(num_all, snapshot.requests.num_found)
    shown = len(sheet.rows)
    title = f"{pane} {shown}" if shown == num_all else f"{pane} {shown} of {num_all}"
    if pane is Pane.REQUESTS and snapshot.requests.not_asked:
        silent = [each.partition(":")[0] for each in snapshot.requests.not_asked]
        title += f" (not known: those of {', '.join(silent)})"
    return title


def grid_of(sheet: Sheet) -> Table:
    """A pane's rows under their headings."""
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    last = len(sheet.titles) - 1
    for index, (title, is_number) in enumerate(zip(sheet.titles, sheet.numbers, strict=True)):
        widest = max([len(title), *(row.cells[index].cell_len for row in sheet.rows)])
        grid.add_column(
            title,
            justify="right" if is_number else "left",
            no_wrap=True,
            # Where room is short, it is the last column that gives way.
            min_width=None if index == last else widest,
        )
    for row in sheet.rows:
        grid.add_row(*row.cells)
    return grid
