"""A verdict of `llx chaos` as a table."""

from rich.console import Console
from rich.table import Table

from llx.chaos.verdict import ChaosVerdict
from llx.cli.render import print_table


def print_verdict(console: Console, verdict: ChaosVerdict) -> None:
    """The verdict as a table."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    by = ", ".join(f"{what} {count}" for what, count in verdict.faults_by.items())
    ended = f"{verdict.excused} ended with their gateway, {verdict.failed} failed"
    flaws = (
        f"lost {verdict.lost}, doubled {verdict.doubled}, reordered {verdict.reordered}, "
        f"wrong {verdict.wrong}, miscounted {verdict.miscounted}"
    )
    streams = f"{verdict.streams}: {verdict.complete} complete, {ended}, {verdict.silent} hung"
    for title, value in (
        ("verdict", "passed" if verdict.is_passed else "failed"),
        ("faults", f"{verdict.faults}, {verdict.skipped} not done" + (f" ({by})" if by else "")),
        ("streams", streams),
        ("on what was hit", f"{verdict.hit}, {verdict.hit_complete} complete"),
        ("tokens", f"{verdict.tokens}; streams with {flaws}"),
        ("left behind", "; ".join(verdict.leaks) or "nothing"),
        ("recovery", _two(verdict.recovery_p50_s, verdict.recovery_max_s)),
        ("longest pause", _two(verdict.pause_p50_s, verdict.pause_max_s)),
    ):
        grid.add_row(title, value)
    print_table(console, grid)


def _two(median: float | None, most: float | None) -> str:
    return "-" if median is None else f"p50 {median:.2f} s, max {most:.2f} s"
