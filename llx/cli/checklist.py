"""The checklist of `up`, `down` and `demo`: live on a terminal, timestamped lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llx.bootstrap.local_ports import StepEvent, StepState

_MARKS = {
    StepState.DONE: Text("✓", style="green"),
    StepState.FAILED: Text("✗", style="bold red"),
    StepState.SKIPPED: Text("-", style="dim"),
}
_REFRESH_PER_S = 8.0


@dataclass(slots=True)
class _Row:
    state: StepState
    detail: str
    began: float
    ended: float | None = None
    spinner: Spinner | None = None


class Checklist:
    """Shows each step with its state, latest word and elapsed time. Feed it with `observe`."""

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._console = console
        self._clock = clock
        self._wall = wall
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to a question for a while."""
        live = self._live
        if live is None:
            yield
            return
        live.stop()
        try:
            yield
        finally:
            live.start()

    @contextmanager
    def shown(self) -> Iterator["Checklist"]:
        """Show it for a while; on a terminal it stays as it was last, and is not shown again."""
        if not self._console.is_terminal:
            yield self
            return
        live = Live(
            get_renderable=self.render,
            console=self._console,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live = live
        try:
            with live:
                yield self
        finally:
            self._live = None
            self._rows = {name: row for name, row in self._rows.items() if row.ended is None}

    def observe(self, event: StepEvent) -> None:
        """Take in one piece of news."""
        now = self._clock()
        row = self._rows.get(event.step)
        if row is None or (row.ended is not None and event.state is StepState.RUNNING):
            row = self._rows[event.step] = _Row(event.state, event.detail, now)
        is_news = row.detail != event.detail or row.state is not event.state or row.began == now
        row.state, row.detail = event.state, event.detail or row.detail
        row.ended = None if event.state is StepState.RUNNING else now
        if is_news and not self._console.is_terminal:
            self._print(event, now - row.began)

    def render(self) -> Table:
        """The checklist as it stands."""
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True, width=2)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right", style="dim")
        grid.add_column(style="dim")  # where room is short, this column alone gives way
        now = self._clock()
        for name, row in list(self._rows.items()):
            elapsed = (now if row.ended is None else row.ended) - row.began
            mark = _MARKS.get(row.state) or self._spinner(row)
            detail = row.detail.splitlines()[0] if row.detail else ""
            shown = Text(detail, no_wrap=True, overflow="ellipsis")
            grid.add_row(mark, name, f"{elapsed:.1f} s", shown)
        return grid

    def _spinner(self, row: _Row) -> Spinner:
        if row.spinner is None:
            row.spinner = Spinner("dots", style="cyan")
        return row.spinner

    def _print(self, event: StepEvent, elapsed: float) -> None:
        at = time.strftime("%H:%M:%S", time.localtime(self._wall()))
        match event.state:
            case StepState.RUNNING:
                word = ""
            case StepState.SKIPPED:
                word = " skipped"
            case _:
                word = f" {event.state} ({elapsed:.1f} s)"
        detail = f": {event.detail}" if event.detail else ""
        self._console.file.write(f"{at} {event.step}{word}{detail}\n")
        self._console.file.flush()
