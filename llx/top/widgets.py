"""The table of one pane: shows a `Sheet`, and changes only what is another than before."""

from rich.text import Text
from textual.binding import Binding
from textual.widgets import DataTable

from llx.top.panes import Pane
from llx.top.table import Sheet, Sorting


class PaneTable(DataTable[Text]):
    """A `DataTable` that is given whole sheets and keeps its cursor on the same thing."""

    BINDINGS = [  # noqa: RUF012 - Textual's own way
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    def __init__(self, pane: Pane) -> None:
        super().__init__(id=f"{pane}", cursor_type="row", show_cursor=False)
        self.pane = pane
        self._sheet: Sheet | None = None
        self._sorting: Sorting | None = None
        self._widths: tuple[int, ...] = ()

    @property
    def titles(self) -> tuple[str, ...]:
        """The columns that are shown."""
        return () if self._sheet is None else self._sheet.titles

    @property
    def selected_key(self) -> str | None:
        """What the cursor is on."""
        if self._sheet is None or not 0 <= self.cursor_row < len(self._sheet.rows):
            return None
        return self._sheet.rows[self.cursor_row].key

    def on_focus(self) -> None:
        """Only the pane that the keys are about shows a cursor."""
        self.show_cursor = True

    def on_blur(self) -> None:
        """The cursor stays where it is, unseen."""
        self.show_cursor = False

    def show(self, sheet: Sheet, sorting: Sorting) -> None:
        """Be this sheet."""
        before, sorting_before, widths_before = self._sheet, self._sorting, self._widths
        if before == sheet and sorting_before == sorting:
            return
        key = self.selected_key
        self._sheet, self._sorting = sheet, sorting
        is_same = before is not None and before.titles == sheet.titles
        self._widths = _widths(sheet, sorting, widths_before if is_same else ())
        if before is None or sorting_before != sorting or widths_before != self._widths:
            self.clear(columns=True)
            self._add_columns(sheet, sorting)
            self._fill(sheet, key)
        elif [row.key for row in before.rows] != [row.key for row in sheet.rows]:
            self.clear()
            self._fill(sheet, key)
        else:
            self._update(before, sheet)

    def _add_columns(self, sheet: Sheet, sorting: Sorting) -> None:
        for title, is_number, width in zip(sheet.titles, sheet.numbers, self._widths, strict=True):
            mark = ("▼" if sorting.is_reversed else "▲") if title == sorting.title else ""
            label = Text(title + mark, justify="right" if is_number else "left")
            self.add_column(label, key=title, width=width)

    def _fill(self, sheet: Sheet, key: str | None) -> None:
        """All rows anew; the cursor goes to `key`, or stays about where it was."""
        row_before, scroll = self.cursor_row, self.scroll_y
        for row in sheet.rows:
            self.add_row(*_justified(row.cells, sheet.numbers), key=row.key)
        keys = [row.key for row in sheet.rows]
        if keys:
            at = keys.index(key) if key in keys else min(row_before, len(keys) - 1)
            self.move_cursor(row=max(0, at), scroll=False)
            self.scroll_to(y=scroll, animate=False)

    def _update(self, before: Sheet, sheet: Sheet) -> None:
        for old, new in zip(before.rows, sheet.rows, strict=True):
            if old == new:
                continue
            cells = _justified(new.cells, sheet.numbers)
            for title, was, cell in zip(sheet.titles, old.cells, cells, strict=True):
                if was != cell:
                    self.update_cell(new.key, title, cell)


def _widths(sheet: Sheet, sorting: Sorting, before: tuple[int, ...]) -> tuple[int, ...]:
    """Of the columns, with room for the mark; while they stay the same, none gets narrower."""
    needed = [
        max(
            [
                len(title) + (title == sorting.title),
                *(row.cells[index].cell_len for row in sheet.rows),
            ]
        )
        for index, title in enumerate(sheet.titles)
    ]
    return tuple(map(max, needed, before)) if before else tuple(needed)


def _justified(cells: tuple[Text, ...], numbers: tuple[bool, ...]) -> list[Text]:
    shown = []
    for cell, is_number in zip(cells, numbers, strict=True):
        shown.append(cell.copy())
        shown[-1].justify = "right" if is_number else "left"
    return shown
