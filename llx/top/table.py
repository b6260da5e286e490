"""Rows and columns, sorted, filtered, and fitted to a width. Pure, and of whatever rows.

A column is shown where there is room for it, and where some row has something to say in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.text import Text

from llx.figures import span
from llx.top.drawing import count_text

T = TypeVar("T")
Order = tuple[float | str, ...]
"""What rows are sorted by; of one column all of one shape."""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column: its heading, what it says of a row, and by what it sorts.

    `width_from`: the pane has so many characters, or the column is left out.
    """

    title: str
    text: Callable[[T], str | Text]
    order: Callable[[T], Order]
    width_from: int = 0
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Sorting:
    """By which column, and whether the largest comes first."""

    title: str
    is_reversed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a pane; `key` names what it is about."""

    key: str
    cells: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A pane's content. `num_all`: rows before the filter."""

    titles: tuple[str, ...]
    numbers: tuple[bool, ...]
    rows: tuple[Row, ...]
    num_all: int


def make_sheet(
    rows: Sequence[T],
    columns: Sequence[Column[T]],
    key: Callable[[T], str],
    *,
    width: int,
    sorting: Sorting,
    match: str = "",
) -> Sheet:
    """Rows, sorted and filtered: `match` is part of some cell, letters great or small."""
    order = next((each.order for each in columns if each.title == sorting.title), columns[0].order)
    ordered = sorted(rows, key=order, reverse=sorting.is_reversed)
    cells = {id(row): [_as_text(each.text(row)) for each in columns] for row in ordered}
    shown = [row for row in ordered if match.lower() in _plain(cells[id(row)])]
    kept = [
        index
        for index, each in enumerate(columns)
        if each.width_from <= width
        and _says_something(each, [cells[id(row)][index] for row in shown])
    ]
    return Sheet(
        titles=tuple(columns[index].title for index in kept),
        numbers=tuple(columns[index].is_number for index in kept),
        rows=tuple(Row(key(row), tuple(cells[id(row)][index] for index in kept)) for row in shown),
        num_all=len(rows),
    )


def number(title: str, value: Callable[[T], float], width_from: int = 0) -> Column[T]:
    """A column of counts."""
    return Column(
        title, lambda each: count_text(value(each)), lambda each: (value(each),), width_from, True
    )


def word(title: str, value: Callable[[T], str], width_from: int = 0) -> Column[T]:
    """A column of words."""
    return Column(title, value, lambda each: (value(each),), width_from)


def since(title: str, at: Callable[[T], float | None], now: float, width_from: int) -> Column[T]:
    """An age; what has none sorts first."""

    def text(each: T) -> str:
        begun = at(each)
        return "" if begun is None else span(now - begun)

    return Column(title, text, lambda each: (now - (at(each) or now),), width_from, True)


def _says_something(column: Column[T], cells: Sequence[Text]) -> bool:
    """A column that is shown on narrow screens as well always is; others not if empty."""
    return not column.width_from or any(each.plain for each in cells)


def _plain(cells: Sequence[Text]) -> str:
    return "\n".join(each.plain for each in cells).lower()


def _as_text(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(value)
