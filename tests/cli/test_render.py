"""Tables are, to the byte, what rich makes of them, on terminals and elsewhere."""

from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.table import Table

from llx.cli.render import Grid, print_table, styled

TEXTS = st.one_of(st.text("ab 7-…é", max_size=12), st.sampled_from(["ready", "failed", "漢", "\t"]))
ROWS = st.lists(st.lists(TEXTS, min_size=3, max_size=3), max_size=4)
TITLES = ["NAME", "N", "DETAIL"]


def by_rich(grid: Grid) -> Table:
    """The table as rich lays it out."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, (title, is_number) in enumerate(zip(grid.titles, grid.are_numbers, strict=True)):
        widest = max(len(text) for text in (title, *(row[index] for row in grid.rows)))
        table.add_column(
            title,
            justify="right" if is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=widest if index < len(grid.titles) - 1 else None,
        )
    for row in grid.rows:
        table.add_row(*map(styled, row))
    return table


def console_of(width: int, *, is_terminal: bool) -> Console:
    colours = "standard" if is_terminal else None
    return Console(
        file=StringIO(), width=width, force_terminal=is_terminal, color_system=colours,
        highlight=False, legacy_windows=False,
    )  # fmt: skip


def written(grid: RenderableType, width: int, *, is_terminal: bool) -> str:
    console = console_of(width, is_terminal=is_terminal)
    print_table(console, grid)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([20, 400]))
def test_a_table_is_what_rich_makes_of_it(
    is_terminal: bool, rows: list[list[str]], width: int
) -> None:
    grid = Grid(TITLES, [False, True, False], rows)
    expected = written(by_rich(grid), width, is_terminal=is_terminal)
    assert written(grid, width, is_terminal=is_terminal) == expected


@pytest.mark.parametrize(
    ("text", "width", "is_padded"),
    [("tiny-0", 13, True), ("tiny-0", 12, False), ("漢", 80, False), ("a\tb", 80, False),
     ("a\nb", 80, False), ("e\u0301", 80, False)],
)  # fmt: skip
def test_rich_lays_out_only_what_padding_would_not_do_for(
    text: str, width: int, is_padded: bool
) -> None:
    """Else a thousand rows take half a second."""
    console = console_of(width, is_terminal=True)
    made = list(Grid(["NAME", "STATE"], [False, False], [[text, "ready"]]).__rich_console__(
        console, console.options
    ))  # fmt: skip
    assert all(isinstance(each, Segment) for each in made) is is_padded
