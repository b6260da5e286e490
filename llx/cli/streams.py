"""Several chats at once, and a view of them: a row per stream on a terminal, lines elsewhere."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llx.errors import LlxError
from llx.openai_client import ChatRequest, Message, OpenAIClient

QUESTIONS = (
    "Tell me a story about a river.",
    "What does the wind say at night?",
    "Describe a garden in winter.",
    "Why do ships come home?",
    "What is behind the green door?",
    "How does a quiet morning begin?",
    "Who walks over the bridge?",
    "What did the old tree remember?",
)

_INSTANCE_STYLES = ("cyan", "magenta", "yellow", "blue", "green", "red")
_BAR_WIDTH = 16
_REFRESH_S = 0.1


@dataclass(slots=True)
class StreamRow:
    """One chat. Written by its own thread, read by the view."""

    title: str
    limit: int
    instance: str = ""
    text: str = ""
    tokens: int = 0
    began: float = 0.0
    first_token: float | None = None
    ended: float | None = None
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it ended well."""
        return self.ended is not None and not self.error

    def tokens_per_s(self, now: float) -> float:
        """Tokens after the first, per second."""
        if self.first_token is None or self.tokens < 2:
            return 0.0
        took = (self.ended or now) - self.first_token
        return (self.tokens - 1) / took if took > 0 else 0.0


@dataclass(slots=True)
class StreamBoard:
    """All chats of one show."""

    streams: list[StreamRow]
    clock: Callable[[], float] = field(default=time.monotonic)

    @property
    def instances(self) -> list[str]:
        """Who has answered so far, by name."""
        return sorted({each.instance for each in self.streams if each.instance})

    def render(self, width: int) -> Group:
        """The board as it stands, in `width` columns."""
        now = self.clock()
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        for _ in range(5):
            grid.add_column(no_wrap=True)
        room = max(10, width - _BAR_WIDTH - 34)
        for each in self.streams:
            style = self.style(each.instance)
            grid.add_row(
                _mark(each),
                Text(each.instance or "…", style=style),
                _bar(each, style),
                Text(f"{each.tokens_per_s(now):5.0f} tok/s", style="dim"),
                Text(each.error or _tail(each.text, room), style="red" if each.error else ""),
            )
        return Group(grid)

    def style(self, instance: str) -> str:
        """Each instance has its colour."""
        if instance not in self.instances:
            return "dim"
        return _INSTANCE_STYLES[self.instances.index(instance) % len(_INSTANCE_STYLES)]

    def summary(self) -> Table:
        """Who served what."""
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for title in ("INSTANCE", "STREAMS", "TOKENS", "TOK/S", "FIRST TOKEN"):
            grid.add_column(title, justify="left" if title == "INSTANCE" else "right")
        for name in self.instances:
            rows = [each for each in self.streams if each.instance == name]
            grid.add_row(Text(name, style=self.style(name)), *_figures(rows))
        grid.add_row(Text("all", style="bold"), *_figures(self.streams))
        return grid


def run_streams(
    console: Console, client: OpenAIClient, *, model: str, num_streams: int, max_tokens: int
) -> StreamBoard:
    """Ask `num_streams` questions at once, show the answers as they come, then who gave them."""
    titles = [QUESTIONS[index % len(QUESTIONS)] for index in range(num_streams)]
    board = StreamBoard([StreamRow(title, max_tokens) for title in titles])
    threads = [
        threading.Thread(target=_follow, args=(client, model, row, board.clock), daemon=True)
        for row in board.streams
    ]
    for thread in threads:
        thread.start()
    if console.is_terminal:
        _show_live(console, board, threads)
    else:
        _show_lines(console, board, threads)
    console.print()
    console.print(board.summary())
    return board


def _follow(client: OpenAIClient, model: str, row: StreamRow, clock: Callable[[], float]) -> None:
    """One chat, to its end. Expected failures are noted in its row."""
    row.began = clock()
    request = ChatRequest(
        model, (Message("user", row.title),), max_tokens=row.limit, temperature=0.7
    )
    try:
        with client.stream_chat(request) as stream:
            row.instance = stream.instance
            for chunk in stream.chunks:
                if chunk.output_tokens and row.first_token is None:
                    row.first_token = clock()
                row.text += chunk.text
                row.tokens = chunk.output_tokens
    except LlxError as error:
        row.error = error.message
    row.ended = clock()


def _show_live(console: Console, board: StreamBoard, threads: list[threading.Thread]) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while any(thread.is_alive() for thread in threads):
            live.update(board.render(console.width), refresh=True)
            time.sleep(_REFRESH_S)
        live.update(board.render(console.width), refresh=True)


def _show_lines(console: Console, board: StreamBoard, threads: list[threading.Thread]) -> None:
    pending = list(enumerate(zip(board.streams, threads, strict=True), start=1))
    greeted: set[int] = set()
    while pending:
        for number, (row, thread) in list(pending):
            if row.instance and number not in greeted:
                greeted.add(number)
                console.file.write(f"stream {number} from {row.instance}: {row.title}\n")
            if not thread.is_alive():
                pending.remove((number, (row, thread)))
                console.file.write(f"stream {number} {_ending(row)}\n")
        console.file.flush()
        time.sleep(_REFRESH_S)


def _ending(row: StreamRow) -> str:
    if row.error:
        return f"failed: {row.error}"
    rate = row.tokens_per_s(row.ended or 0.0)
    return f"done: {row.tokens} tokens, {rate:.0f} tok/s: {_tail(row.text, 60)}"


def _mark(row: StreamRow) -> Text:
    if row.error:
        return Text("✗", style="bold red")
    return Text("✓", style="green") if row.is_done else Text("▸", style="cyan")


def _bar(row: StreamRow, style: str) -> Text:
    filled = min(_BAR_WIDTH, _BAR_WIDTH * row.tokens // max(1, row.limit))
    bar = Text("█" * filled, style=style)
    return bar.append("░" * (_BAR_WIDTH - filled), style="dim").append(f" {row.tokens:>4}")


def _tail(text: str, room: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= room else "…" + flat[-(room - 1) :]


def _figures(rows: list[StreamRow]) -> list[str]:
    firsts = [each.first_token - each.began for each in rows if each.first_token is not None]
    tokens = sum(each.tokens for each in rows)
    ends = [each.ended for each in rows if each.ended is not None]
    took = max(ends) - min(each.began for each in rows) if ends else 0.0
    return [
        str(len(rows)),
        str(tokens),
        f"{tokens / took:.0f}" if took > 0 else "-",
        f"{1000 * sum(firsts) / len(firsts):.0f} ms" if firsts else "-",
    ]
