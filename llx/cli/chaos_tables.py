"""A verdict of `llx chaos` as a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from llx.chaos.by_kind import KindRow
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
    if verdict.by_kind:
        console.print()
        print_by_kind(console, verdict.by_kind)


def print_by_kind(console: Console, rows: Sequence[KindRow]) -> None:
    """What each kind of fault has cost."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("FAULT")
    for title in ("DONE", "BESIDE", "HIT", "COMPLETE", "ERRORS", "EXCUSED", "FLAWED", "P50", "MAX"):
        table.add_column(title, justify="right")
    for row in rows:
        counts = (
            row.faults, row.beside, row.hit, row.hit_complete, row.errors, row.excused, row.flawed
        )  # fmt: skip
        times = (row.recovery_p50_s, row.recovery_max_s)
        table.add_row(
            row.fault,
            *(str(each) for each in counts),
            *("-" if each is None else f"{each:.1f} s" for each in times),
        )
    print_table(console, table)


def _two(median: float | None, most: float | None) -> str:
    return "-" if median is None else f"p50 {median:.2f} s, max {most:.2f} s"
