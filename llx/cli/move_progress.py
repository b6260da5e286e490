"""Following migrations until they are over: live on a terminal, a line per change elsewhere."""

import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from llx.api import MigrationStatus, MoveOutcome
from llx.cli.move_tables import progress_text

_POLL_S = 0.15
_LATE_S = 1.5
"""So long after the end a gateway may still tell what it saw of it."""
_MAX_SHOWN = 20

Ask = Callable[[Sequence[str]], list[MigrationStatus]]


def follow(
    console: Console,
    ask: Ask,
    begun: Sequence[MigrationStatus],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[MigrationStatus]:
    """Show migrations on `console` until all are over and measured; returns how they ended.

    Args:
        console: For stderr.
        ask: What is so about the migrations of these ids.
        begun: As they began.
        clock: Seconds.
        sleep: Waits.
    """
    found = {each.id: each for each in begun}
    told: dict[str, str] = {}
    late_at: float | None = None
    is_last = False
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not is_last:
            found |= _news(ask, found)
            if late_at is None and all(each.outcome is not None for each in found.values()):
                late_at = clock() + _LATE_S
            is_late = late_at is not None and clock() > late_at
            is_last = is_late or not _unfinished(found.values())
            if console.is_terminal:
                live.update(_picture(list(found.values())), refresh=True)
            else:
                _print_news(console, list(found.values()), told, is_last=is_last)
            if not is_last:
                sleep(_POLL_S)
    return list(found.values())


def _news(ask: Ask, known: dict[str, MigrationStatus]) -> dict[str, MigrationStatus]:
    """What is so now; a head that has come anew does not know how an earlier one's moves end."""
    asked = _unfinished(known.values())
    news = {each.id: each for each in ask(asked)}
    lost = {"outcome": MoveOutcome.UNKNOWN, "reason": "the head has no record of it any more"}
    for each in asked:
        if each not in news and known[each].outcome is None:
            news[each] = known[each].model_copy(update=lost)
    return news


def _unfinished(moves: Iterable[MigrationStatus]) -> list[str]:
    """Those of which something is still to be heard."""
    return [each.id for each in moves if _is_unfinished(each)]


def _is_unfinished(move: MigrationStatus) -> bool:
    return move.outcome is None or (move.outcome is MoveOutcome.MOVED and move.downtime_ms is None)


def _picture(moves: list[MigrationStatus]) -> Group:
    open_moves = [each for each in moves if each.outcome is None]
    lines = [progress_text(each) for each in open_moves[:_MAX_SHOWN]]
    over = len(moves) - len(open_moves)
    lines.append(f"{over} of {len(moves)} over")
    return Group(*(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))


def _print_news(
    console: Console, moves: list[MigrationStatus], told: dict[str, str], *, is_last: bool
) -> None:
    """A line for each new state or stage, and one for the end, which tells the downtime."""
    for each in moves:
        if each.outcome is not None and _is_unfinished(each) and not is_last:
            continue
        key = f"{each.outcome or each.state} {each.stage}"
        if told.get(each.id) != key:
            told[each.id] = key
            console.file.write(progress_text(each) + "\n")
    console.file.flush()
