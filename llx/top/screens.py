"""What lies above the panes for a while: a question, a choice, the keys, one thing in detail."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Label, OptionList, Static
from textual.widgets.option_list import Option

from llx.top.actions import Selected

_KEYS = (
    ("1 … 6, tab", "go to a pane"),
    ("↑ ↓, j k", "move the cursor"),
    ("enter", "everything about what is selected"),
    ("z", "this pane alone, and back"),
    ("s, r", "sort by the next column; reverse"),
    ("/", "show only what contains some text; esc: all"),
    ("m", "migrate a request, or all of an instance"),
    ("d", "drain an instance or a host"),
    ("c", "cordon or uncordon an instance or a host"),
    ("p", "serve a request as of another priority class"),
    ("x", "cancel a request, give up a migration"),
    ("space", "hold the picture still, and go on"),
    ("q", "leave"),
)


class ConfirmScreen(ModalScreen[bool]):
    """A question that only ``y`` answers with yes."""

    BINDINGS = [  # noqa: RUF012 - Textual's own way
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and the keys."""
        with Vertical(classes="box"):
            yield Label(self._question, markup=False)
            yield Label("y: yes   n: no", classes="keys", markup=False)

    def action_answer(self, is_yes: bool) -> None:
        """Leave with it."""
        self.dismiss(is_yes)


class ChooseScreen(ModalScreen[str | None]):
    """One of several words, or none."""

    BINDINGS = [Binding("escape,q", "leave", "none")]  # noqa: RUF012 - Textual's own way

    def __init__(self, question: str, words: Sequence[str]) -> None:
        super().__init__()
        self._question = question
        self._words = list(words)

    def compose(self) -> ComposeResult:
        """The question and the words."""
        with Vertical(classes="box"):
            yield Label(self._question, markup=False)
            yield OptionList(*[Option(word, id=word) for word in self._words], markup=False)
            yield Label("enter: this one   esc: none", classes="keys", markup=False)

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Leave with a word."""
        self.dismiss(event.option.id)

    def action_leave(self) -> None:
        """Leave without one."""
        self.dismiss(None)


class HelpScreen(ModalScreen[None]):
    """What the keys do."""

    BINDINGS = [Binding("escape,q,question_mark", "dismiss", "back")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        """Keys and what they do."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for key, what in _KEYS:
            table.add_row(key, what)
        with Vertical(classes="box"):
            yield Static(table)


class DetailScreen(Screen[None]):
    """Everything about one thing, kept up to date by the application."""

    BINDINGS = [Binding("escape,q,left", "dismiss", "back")]  # noqa: RUF012

    def __init__(self, selected: Selected) -> None:
        super().__init__()
        self.selected = selected
        self._subject = f"{selected.pane.removesuffix('s')} {selected.key}"
        self._title = Label(self._subject, classes="title", markup=False)
        self._body = Static(id="detail")

    def compose(self) -> ComposeResult:
        """Its name and all there is to say."""
        yield self._title
        with VerticalScroll():
            yield self._body
        yield Footer(show_command_palette=False)

    def show(self, content: RenderableType | None) -> None:
        """Say this from now on; None: it is gone, what was said last stays."""
        if content is not None:
            self._body.update(content)
        self._title.update(
            self._subject if content is not None else f"{self._subject}: not there any more"
        )
