"""The Textual application: snapshots come in, panes show them, keys act on what is selected."""

import threading
import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.widgets import DataTable, Footer, Input, Label, Static

from llx.api import Snapshot
from llx.errors import LlxError
from llx.figures import span
from llx.top import actions
from llx.top.actions import Action, Refusal, Selected
from llx.top.detail import describe
from llx.top.headline import cluster_line, totals_line
from llx.top.layout import LEFT, RIGHT, WIDE, plan_layout
from llx.top.messages import Acted, Looked, LookFailed
from llx.top.panes import PANES, Pane, default_sorting, sheet_of
from llx.top.plain import pane_title
from llx.top.screens import ChooseScreen, ConfirmScreen, DetailScreen, HelpScreen
from llx.top.source import Connect, Control, Poller
from llx.top.table import Sorting
from llx.top.trend import Trend
from llx.top.widgets import PaneTable

_CHROME = 3
"""Lines that are no pane: two of totals above, the keys below."""
_LINK_WIDTH = 24
_STALE_S = 4.0
"""Without an answer for so long, and for three looks, nothing is called live any more."""


class TopApp(App[None]):
    """`llx top`.

    Args:
        connect: Makes a connection to the cluster meant; called from other threads.
        interval_s: Time between two looks.
        user: Who is at work, for the audit trail.
    """

    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse", show=False),
        Binding("z", "zoom", "zoom", show=False),
        Binding("m", "migrate", "migrate"),
        Binding("d", "drain", "drain"),
        Binding("c", "cordon", "cordon"),
        Binding("p", "set_priority", "class", show=False),
        Binding("x", "cancel", "cancel"),
        Binding("space", "hold", "hold", show=False),
        Binding("escape", "clear_filter", show=False),
        Binding("q", "quit", "quit"),
        *[
            Binding(str(number), f"go('{pane}')", show=False)
            for number, pane in enumerate(PANES, start=1)
        ],
    ]

    def __init__(self, connect: Connect, *, interval_s: float = 1.0, user: str = "") -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self.title = "llx top"
        self._connect = connect
        self._user = user
        self._poller = Poller(connect, interval_s, self._on_snapshot, self._on_failure)
        self._snapshot: Snapshot | None = None
        self._trend = Trend()
        self._stale_after_s = max(_STALE_S, 3 * interval_s)
        self._looked_at = time.monotonic()
        self._failing_since: float | None = None
        self._failure: LlxError | None = None
        self._sortings: dict[Pane, Sorting] = {each: default_sorting(each) for each in PANES}
        self._focused = Pane.INSTANCES
        self._match = ""
        self._is_zoomed = False
        self._is_held = False

    # ------------------------------------------------------------------ the screen

    def compose(self) -> ComposeResult:
        """Two lines of totals, the panes, a line to filter by, the keys."""
        with Horizontal(id="top"):
            yield Static(id="cluster")
            yield Static(id="link")
        yield Static(id="totals")
        with Container(id="panes"):
            for side, panes in (("left", LEFT), ("right", RIGHT)):
                with Vertical(id=side, classes="column"):
                    for pane in panes:
                        with Vertical(id=f"pane-{pane}", classes="pane"):
                            yield Label(str(pane), classes="title", markup=False)
                            yield PaneTable(pane)
        yield Input(id="filter", placeholder="only what contains …")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin."""
        self._show_link()
        self._arrange()
        self.table(self._focused).focus()
        self.set_interval(1.0, self._show_link)
        self._poller.start()

    def on_unmount(self) -> None:
        """End."""
        self._poller.stop()

    def on_resize(self, _event: events.Resize) -> None:
        """Lay out anew."""
        self.call_after_refresh(self._show)

    def table(self, pane: Pane) -> PaneTable:
        """A pane's table."""
        return self.screen_stack[0].query_one(f"#{pane}", PaneTable)

    # ------------------------------------------------------------------ what comes in

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self.post_message(Looked(snapshot))

    def _on_failure(self, error: LlxError) -> None:
        self.post_message(LookFailed(error))

    def on_looked(self, message: Looked) -> None:
        """Show it, unless the picture is held still."""
        if not self.is_running:  # it came as the application was closing
            return
        self._failing_since = self._failure = None
        self._looked_at = time.monotonic()
        self._trend = self._trend.then(message.snapshot)
        if not self._is_held:
            self._snapshot = message.snapshot
            self._show()
        self._show_link()

    def on_look_failed(self, message: LookFailed) -> None:
        """Keep the last picture, say that it is old."""
        if not self.is_running:
            return
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        self._failure = message.error
        self._show_link()

    def on_acted(self, message: Acted) -> None:
        """Say it, and look what it has changed."""
        self.notify(
            message.words, severity="error" if message.is_error else "information", markup=False
        )
        self._poller.hurry()

    # ------------------------------------------------------------------ showing

    def _show(self) -> None:
        with self.batch_update():  # one repaint, also over a slow line
            self._arrange()
            if self._snapshot is not None:
                self._show_snapshot(self._snapshot)

    def _show_snapshot(self, snapshot: Snapshot) -> None:
        width = self.size.width
        base = self.screen_stack[0]
        base.query_one("#cluster", Static).update(cluster_line(snapshot, width - _LINK_WIDTH))
        base.query_one("#totals", Static).update(totals_line(snapshot, self._trend, width))
        for pane in PANES:
            self._show_pane(pane, snapshot)
        if isinstance(self.screen, DetailScreen):
            self.screen.show(describe(snapshot, self.screen.selected, width))

    def _show_pane(self, pane: Pane, snapshot: Snapshot) -> None:
        sorting, width = self._sortings[pane], self._width_of(pane)
        sheet = sheet_of(pane, snapshot, width=width, sorting=sorting, match=self._match)
        table = self.table(pane)
        table.show(sheet, sorting)
        title = f"{list(PANES).index(pane) + 1} {pane_title(pane, sheet, snapshot)}"
        title += f'   filter "{self._match}"' if self._match else ""
        box = self.screen_stack[0].query_one(f"#pane-{pane}")
        box.query_one(".title", Label).update(Text(title))

    def _width_of(self, pane: Pane) -> int:
        """Characters of a pane; two columns share the screen as the style sheet says."""
        width = self.size.width
        if width < WIDE or self._is_zoomed:
            return width
        return width * (3 if pane in LEFT else 2) // 5

    def _show_link(self) -> None:
        """Whether what is shown is of now."""
        if not self.is_running:
            return
        if self._failing_since is not None and self._failure is not None:
            ago = span(time.monotonic() - self._failing_since)
            text = Text(f"reconnecting, {ago} ", style="bold red")
        elif self._snapshot is None:
            text = Text("connecting ", style="yellow")
        elif (silent_s := time.monotonic() - self._looked_at) > self._stale_after_s:
            text = Text(f"no answer for {span(silent_s)} ", style="bold red")
        elif self._is_held:
            text = Text("held still (space) ", style="yellow")
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(self._snapshot.at))
            text = Text(f"live {clock} ", style="green")
        self.screen_stack[0].query_one("#link", Static).update(text)
        if self._failure is not None and self._snapshot is None:
            self.screen_stack[0].query_one("#totals", Static).update(Text(self._failure.message))

    def _arrange(self) -> None:
        """Give each pane its place and height."""
        width, height = self.size
        base = self.screen_stack[0]
        is_filtering = base.query_one("#filter").has_class("shown")
        rows = {each: self.table(each).row_count for each in PANES}
        if self._snapshot is not None:
            rows = {each: len(PANES[each].rows(self._snapshot)) for each in PANES}
        layout = plan_layout(
            width, height - _CHROME - is_filtering, rows, self._focused, is_zoomed=self._is_zoomed
        )
        base.query_one("#panes").set_class(layout.is_wide, "wide")
        for side, panes in (("#left", LEFT), ("#right", RIGHT)):
            base.query_one(side).display = any(each in layout.heights for each in panes)
        for pane in PANES:
            box = base.query_one(f"#pane-{pane}")
            box.display = pane in layout.heights
            box.set_class(pane is self._focused, "focused")
            box.styles.height = layout.heights.get(pane, 0)

    # ------------------------------------------------------------------ keys about what is seen

    def action_help(self) -> None:
        """What the keys do."""
        self.push_screen(HelpScreen())

    def action_go(self, pane: str) -> None:
        """To a pane, also one that has no room now."""
        self._focused = Pane(pane)
        self._show()
        self.table(self._focused).focus()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """A pane was reached by tab or mouse."""
        if isinstance(event.widget, PaneTable) and event.widget.pane is not self._focused:
            self._focused = event.widget.pane
            self._arrange()

    def action_zoom(self) -> None:
        """The pane alone, or with the others."""
        self._is_zoomed = not self._is_zoomed
        self._show()

    def action_hold(self) -> None:
        """Hold the picture still, or go on."""
        self._is_held = not self._is_held
        self._show_link()
        self._poller.hurry()

    def action_sort(self) -> None:
        """By the next column."""
        titles = self.table(self._focused).titles
        if titles:
            now = self._sortings[self._focused].title
            at = titles.index(now) + 1 if now in titles else 0
            self._sort_by(self._focused, titles[at % len(titles)])

    def action_reverse(self) -> None:
        """The other way round."""
        now = self._sortings[self._focused]
        self._sortings[self._focused] = Sorting(now.title, not now.is_reversed)
        self._show()

    @on(DataTable.HeaderSelected)
    def sort_by_heading(self, event: DataTable.HeaderSelected) -> None:
        """By a heading that was clicked; clicked again, the other way round."""
        if isinstance(event.data_table, PaneTable) and event.column_key.value:
            self._sort_by(event.data_table.pane, event.column_key.value)

    def _sort_by(self, pane: Pane, title: str) -> None:
        """A column of numbers begins with the largest."""
        now = self._sortings[pane]
        is_reversed = not now.is_reversed if now.title == title else False
        self._sortings[pane] = Sorting(title, is_reversed)
        self._show()

    def action_filter(self) -> None:
        """Begin to type a filter."""
        line = self.screen_stack[0].query_one("#filter", Input)
        line.add_class("shown")
        line.focus()
        self._arrange()

    @on(Input.Changed, "#filter")
    def filter_changed(self, event: Input.Changed) -> None:
        """Show what contains it, while it is typed."""
        self._match = self._poller.match = event.value.strip()
        self._poller.hurry()
        self._show()

    @on(Input.Submitted, "#filter")
    def filter_done(self) -> None:
        """Back to the pane; the filter stays."""
        self.screen_stack[0].query_one("#filter").remove_class("shown")
        self.table(self._focused).focus()
        self._arrange()

    def action_clear_filter(self) -> None:
        """Show everything again."""
        self.screen_stack[0].query_one("#filter", Input).value = ""
        self.filter_done()

    @on(DataTable.RowSelected)
    def open_detail(self, event: DataTable.RowSelected) -> None:
        """Everything about a row."""
        key, snapshot = event.row_key.value, self._snapshot
        if isinstance(event.data_table, PaneTable) and key is not None and snapshot is not None:
            screen = DetailScreen(Selected(event.data_table.pane, key))
            screen.show(describe(snapshot, screen.selected, self.size.width))
            self.push_screen(screen)

    # ------------------------------------------------------------------ keys that change something

    def action_migrate(self) -> None:
        """Ask where to, then whether."""
        found = self._selected()
        if found is None:
            return
        snapshot, selected = found
        choice = actions.targets(snapshot, selected)
        if isinstance(choice, Refusal):
            self.notify(choice.why, severity="warning", markup=False)
            return

        def move(target: str | None) -> None:
            if target is not None:
                self._confirm(actions.migrate(snapshot, selected, target, self._user))

        self.push_screen(ChooseScreen("Where to?", choice), move)

    def action_drain(self) -> None:
        """Empty an instance or a host."""
        self._ask(actions.drain)

    def action_cordon(self) -> None:
        """Give it nothing new, or use it again."""
        self._ask(actions.cordon)

    def action_set_priority(self) -> None:
        """Ask which class, then whether."""
        found = self._selected()
        if found is None:
            return
        snapshot, selected = found
        choice = actions.classes(snapshot, selected)
        if isinstance(choice, Refusal):
            self.notify(choice.why, severity="warning", markup=False)
            return

        def reclass(name: str | None) -> None:
            if name is not None:
                self._confirm(actions.set_priority(snapshot, selected, name, self._user))

        self.push_screen(ChooseScreen("Which class?", choice), reclass)

    def action_cancel(self) -> None:
        """Cancel a request, or give a migration up."""
        self._ask(actions.cancel)

    def _ask(self, wish: Callable[[Snapshot, Selected, str], Action | Refusal]) -> None:
        found = self._selected()
        if found is not None:
            self._confirm(wish(*found, self._user))

    def _selected(self) -> tuple[Snapshot, Selected] | None:
        """What is meant, or a word that there is nothing."""
        if isinstance(self.screen, DetailScreen) and self._snapshot is not None:
            return self._snapshot, self.screen.selected
        key = self.table(self._focused).selected_key
        if self._snapshot is None or key is None:
            self.notify("nothing is selected", severity="warning")
            return None
        return self._snapshot, Selected(self._focused, key)

    def _confirm(self, wish: Action | Refusal) -> None:
        if isinstance(wish, Refusal):
            self.notify(wish.why, severity="warning", markup=False)
            return

        def answered(is_yes: bool | None) -> None:
            if is_yes:
                thread = threading.Thread(target=self._perform, args=(wish,), daemon=True)
                thread.start()

        self.push_screen(ConfirmScreen(wish.question), answered)

    def _perform(self, action: Action) -> None:
        """In a thread of its own, as a drain takes its time, and over a connection of its own."""
        control: Control | None = None
        try:
            control = self._connect()
            self.post_message(Acted(action.perform(control)))
        except LlxError as error:
            self.post_message(Acted(error.message, is_error=True))
        finally:
            if control is not None:
                control.close()
