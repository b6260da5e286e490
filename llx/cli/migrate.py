"""`llx migrate`: move running requests to another instance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_instance, complete_request
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, OutputOption
from llx.cli.session import Session
from llx.core.request_choice import CHOICES

if TYPE_CHECKING:
    from llx.api import MigrateReport, MigrateRequest, MigrationStatus
    from llx.client import Cluster
    from llx.errors import ExitCode


@command
def migrate(
    request: Annotated[
        str | None,
        typer.Argument(
            metavar="REQUEST",
            help="Any of its ids: `llx req ls`, the client's own.",
            show_default=False,
            autocompletion=complete_request,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--to", metavar="INSTANCE", help="Where to.", autocompletion=complete_instance
        ),
    ] = "",
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="INSTANCE",
            help="Instead of a request: some of this instance.",
            autocompletion=complete_instance,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, metavar="N", help="With --from: so many. Default: 1."),
    ] = None,
    is_all: Annotated[bool, typer.Option("--all", help="With --from: all of them.")] = False,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="CHOICE",
            help=f"With --from: which; {', '.join(CHOICES)}. Default: shortest.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the copied KV at both ends before going on.")
    ] = False,
    blocking: Annotated[
        bool,
        typer.Option("--blocking", help="Stop the request before copying, to compare downtimes."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show how it gets on, until it is over.")
    ] = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Move running requests to another instance, KV cache and all; their streams go on."""
    from llx.api import MigrateRequest

    _check_words(request, target, source, count, by, is_all=is_all)
    session = Session(context_name=context, output_name=output)
    ask = MigrateRequest(
        request=request or "",
        source=source or "",
        count=None if is_all or request else count or 1,
        by=by or "shortest",
        target=target,
        is_dry_run=dry_run,
        is_checked=check,
        is_blocking=blocking,
        user=session.user,
    )
    with session.control() as control:
        report = control.migrate(ask)
        if dry_run:
            _show_plan(session, report)
        elif wait and report.migrations:
            report = _follow(session, control, report)
        else:
            _show_begun(session, report)
    _end(session, ask, report, is_over=wait and not dry_run)


def _check_words(
    request: str | None,
    target: str,
    source: str | None,
    count: int | None,
    by: str | None,
    *,
    is_all: bool,
) -> None:
    from llx.errors import ConfigError

    if not target:
        raise ConfigError("where to? --to INSTANCE", remedy="llx inst ls")
    if (request is None) is (source is None):
        raise ConfigError(
            "name either a request or --from INSTANCE", remedy="llx req ls; llx migrate --help"
        )
    if request is not None and (is_all or count is not None or by is not None):
        raise ConfigError("--count, --all and --by go with --from")
    if is_all and count is not None:
        raise ConfigError("--count or --all, not both")
    if by is not None and by not in CHOICES:
        raise ConfigError(f'--by: no choice "{by}"', remedy=f"there are: {', '.join(CHOICES)}")


def _follow(session: Session, control: "Cluster", report: "MigrateReport") -> "MigrateReport":
    from llx.cli.move_progress import follow

    ended = follow(session.err, control.migrations, report.migrations)
    _show_moves(session, report.model_copy(update={"migrations": ended}), ended)
    return report.model_copy(update={"migrations": ended})


def _show_plan(session: Session, report: "MigrateReport") -> None:
    from llx.cli.move_tables import planned_columns
    from llx.cli.render import emit, print_table, table

    emit(
        session.out,
        session.output,
        report,
        [each.request.name or each.request.id for each in report.planned],
        lambda is_wide: print_table(
            session.out, table(planned_columns(), report.planned, is_wide=is_wide)
        ),
    )
    if report.planned:
        session.err.print(_expected_downtime(report), markup=False, soft_wrap=True)
    session.err.print("nothing was changed")


def _expected_downtime(report: "MigrateReport") -> str:
    from llx.figures import milliseconds

    downtime_ms = report.planned[0].downtime_ms
    if downtime_ms is None:
        return "downtime of each: about one decode step (no move was measured yet)"
    moves = f"the last {report.num_seen} moves" if report.num_seen > 1 else "the last move"
    return f"downtime of each: about {milliseconds(downtime_ms)}, as of {moves}"


def _show_begun(session: Session, report: "MigrateReport") -> None:
    _show_moves(session, report, report.migrations)


def _show_moves(
    session: Session, report: "MigrateReport", moves: Sequence["MigrationStatus"]
) -> None:
    """Their ids and what they are; nothing in a table if there are none."""
    from llx.cli.move_tables import migration_columns, progress_text
    from llx.cli.render import emit, print_table, table

    def show(is_wide: bool) -> None:
        if is_wide and moves:
            print_table(session.out, table(migration_columns(), moves, is_wide=True))
            return
        for each in moves:
            line = f"{each.id} {each.name or each.request} {each.source} → {each.target}"
            text = line if each.outcome is None else progress_text(each)
            session.out.print(text, markup=False, soft_wrap=True)

    emit(session.out, session.output, report, [each.id for each in moves], show)


def _end(
    session: Session, ask: "MigrateRequest", report: "MigrateReport", *, is_over: bool
) -> None:
    """Say what does not move, and leave with the code for it."""
    from llx.cli.move_tables import left_out_text
    from llx.errors import ExitCode

    for each in report.left_out:
        line = f"does not move: {left_out_text(each)}"
        session.err.print(line, markup=False, soft_wrap=True)
    code = _exit_code(ask, report, is_over=is_over)
    is_nothing = not (report.migrations or report.planned or report.left_out)
    if is_nothing:
        session.err.print(f"{ask.source} has no requests", markup=False, soft_wrap=True)
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def _exit_code(ask: "MigrateRequest", report: "MigrateReport", *, is_over: bool) -> "ExitCode":
    """0: all that was meant moves; 6: some of it; 1: none.

    A request that ends before it could move is no failure beside others that moved. To move all of
    an instance that has none is done.
    """
    from llx.api import MoveOutcome
    from llx.errors import ExitCode

    good = [each for each in report.migrations if not is_over or each.outcome is MoveOutcome.MOVED]
    num_good = len(good) + len(report.planned)
    gone = [each for each in report.migrations if each.outcome is MoveOutcome.GONE]
    num_bad = len(report.migrations) - len(good) - len(gone) + len(report.left_out)
    missing = 0 if ask.count is None else ask.count - num_good - len(gone)
    if not num_good:
        is_done = bool(ask.source) and ask.count is None and not num_bad
        return ExitCode.OK if is_done else ExitCode.FAILURE
    return ExitCode.PARTIAL if num_bad or missing > 0 else ExitCode.OK
