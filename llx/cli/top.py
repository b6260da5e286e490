"""`llx top`: the cluster live, full screen."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption, parse_duration
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import Snapshot
    from llx.client import Cluster

_MAX_REQUESTS = 1000
_MAX_OVER = 1000


@command
def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one look at it all and leave.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            parser=parse_duration,
            metavar="DURATION",
            help="Time between two looks.",
            show_default="1s",
        ),
    ] = 1.0,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Show the cluster live: instances, requests, migrations; ? lists the keys.

    From there requests are moved, instances and hosts cordoned and drained. Where
    there is no terminal, and with -o other than table, it is `--once`, with
    1000 requests at most and how many there are; `llx req ls` pages through all.

    Example: llx top --once -o json
    """
    from llx.choices import OutputFormat

    session = Session(context_name=context, output_name=output)
    interval = max(interval, 0.1)
    is_table = session.output is OutputFormat.TABLE
    if once or not is_table or not session.out.is_terminal:
        with session.control_to_read() as control:
            _once(session, control, interval)
        return
    from llx.top.app import TopApp

    session.cluster()  # none, or down: said here, not on a screen of its own
    TopApp(session.control, interval_s=interval, user=session.user).run()


def _once(session: Session, control: "Cluster", interval_s: float) -> None:
    """Of rates the tables need two looks; scripts have counters."""
    from llx.choices import OutputFormat
    from llx.cli.render import emit
    from llx.top.trend import Trend

    found, trend = _look(control), Trend()
    if session.output in {OutputFormat.TABLE, OutputFormat.WIDE}:
        time.sleep(interval_s)
        trend = trend.then(found)
        found = _look(control)

    def show(_is_wide: bool) -> None:
        from llx.cli.render import print_table
        from llx.top.plain import plain_parts

        for part in plain_parts(found, trend.then(found), session.out.width):
            print_table(session.out, part)

    emit(session.out, session.output, found, [found.status.cluster], show)


def _look(control: "Cluster") -> "Snapshot":
    return control.snapshot(max_requests=_MAX_REQUESTS, max_over=_MAX_OVER)
