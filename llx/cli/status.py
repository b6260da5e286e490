"""`llx status`."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import ClusterStatus

_WATCH_S = 1.0


@command
def status(
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Go on; as JSON, a line per change.")
    ] = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Show the cluster: gateways, models, instances and their load."""
    show_status(Session(context_name=context, output_name=output), is_watching=watch)


def show_status(session: Session, *, is_watching: bool = False) -> None:
    """`llx status`."""
    with session.control_to_read() as control:
        if not is_watching:
            _show_once(session, control.status())
        else:
            _watch(session, control.status)


def _show_once(session: Session, found: "ClusterStatus") -> None:
    from llx.cli.render import emit
    from llx.cli.tables import print_cluster

    emit(
        session.out,
        session.output,
        found,
        [found.cluster],
        lambda is_wide: print_cluster(session.out, found, is_wide=is_wide),
    )


def _watch(session: Session, ask: "Ask") -> None:
    from llx.choices import OutputFormat

    tables = (OutputFormat.TABLE, OutputFormat.WIDE)
    if session.output in tables and session.out.is_terminal:
        _watch_live(session, ask)
    elif session.output in tables:
        _watch_changes(session, ask, is_json=False)
    else:
        _watch_changes(session, ask, is_json=True)


def _watch_live(session: Session, ask: "Ask") -> None:
    import time

    from rich.live import Live

    from llx.choices import OutputFormat
    from llx.cli.tables import cluster_view

    is_wide = session.output is OutputFormat.WIDE
    with Live(console=session.out, screen=False, auto_refresh=False) as live:
        while True:
            live.update(cluster_view(ask(), is_wide=is_wide), refresh=True)
            time.sleep(_WATCH_S)


def _watch_changes(session: Session, ask: "Ask", *, is_json: bool) -> None:
    """A line (or table) each time something other than ages has changed."""
    import time

    from llx.cli.render import as_json
    from llx.cli.tables import without_ages

    before = None
    while True:
        found = ask()
        key = without_ages(found)
        if key != before:
            before = key
            if is_json:
                session.out.file.write(as_json(found, is_line=True) + "\n")
            else:
                _show_once(session, found)
            session.out.file.flush()
        time.sleep(_WATCH_S)


if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[], ClusterStatus]
