"""What a drain did, in words: `llx host drain` and `llx inst drain`."""

from typing import TYPE_CHECKING

import typer

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import StopReport


def report_drain(session: Session, name: str, report: "StopReport") -> None:
    """Say it, and leave with `ExitCode.PARTIAL` if not all could be emptied."""
    from llx.errors import ExitCode

    figures = f"{report.moved} requests moved, {report.finished} finished, {report.cut} cut"
    is_empty = not report.not_stopped and not report.remaining
    if report.not_stopped:
        left = ", ".join(report.not_stopped)
        text = f"{name} is not empty: {left} may still run there; {figures}"
    elif report.remaining:
        text = f"{name} is not empty: {report.remaining} requests go on there; {figures}"
    else:
        text = f"{name} is empty: {figures}"
    session.out.print(text, markup=False, soft_wrap=True)
    for each in report.not_moved:
        session.err.print(f"could not move: {each}", markup=False, soft_wrap=True)
    if not is_empty:
        raise typer.Exit(int(ExitCode.PARTIAL))
