"""Bars and lines of block characters, and the colours of states: pure."""

import math
from collections.abc import Sequence

from rich.text import Text

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"

STYLES = {
    "ready": "green",
    "running": "green",
    "moved": "green",
    "starting": "yellow",
    "loading": "yellow",
    "stopping": "yellow",
    "draining": "yellow",
    "degraded": "yellow",
    "waiting": "yellow",
    "kept": "yellow",
    "preempted": "magenta",
    "leaving": "cyan",
    "agent_away": "bold red",
    "failed": "bold red",
    "lost": "bold red",
    "unknown": "bold red",
    "stopped": "dim",
    "gone": "dim",
}
"""The colour of a state; the word itself says it where there is no colour."""

_FULL, _NEARLY = 0.95, 0.8
_EXACT_BELOW = 10_000
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def state_text(state: str, more: str = "") -> Text:
    """A state in its colour, and what there is to add."""
    text = Text().append(state, style=STYLES.get(state, ""))
    return text.append(more, style="yellow") if more else text


def bar(share: float, width: int) -> Text:
    """`share` of 1 as a bar of so many characters, in eighths of one."""
    share = min(1.0, max(0.0, share))
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (_EIGHTHS[rest] if rest else "")
    style = "red" if share >= _FULL else "yellow" if share >= _NEARLY else "green"
    return Text().append(drawn, style=style).append("·" * (width - len(drawn)), style="dim")


def sparkline(values: Sequence[float], width: int, *, top: float | None = None) -> Text:
    """The last `width` values, the newest on the right; `top` is full height, else the largest."""
    shown = list(values)[-width:]
    peak = max(shown, default=0.0) if top is None else top
    line = "".join(_level(value, peak) for value in shown)
    return Text(line.rjust(width), style="cyan")


def count_text(value: float) -> str:
    """A count, in five characters at most up to a trillion: ``7``, ``9410``, ``35k``, ``2.1M``."""
    if value < _EXACT_BELOW:
        return f"{value:.0f}"
    size, unit = next((size, unit) for size, unit in _UNITS if value >= size)
    number = value / size
    return f"{number:.0f}{unit}" if number >= 10 else f"{number:.1f}{unit}"


def shortened(text: str, width: int) -> str:
    """At most so many characters; where it is longer, its middle is left out."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _level(value: float, peak: float) -> str:
    if peak <= 0 or value <= 0:
        return _LEVELS[0]
    share = min(1.0, value / peak)
    return _LEVELS[min(len(_LEVELS) - 1, math.ceil(share * len(_LEVELS)) - 1)]
