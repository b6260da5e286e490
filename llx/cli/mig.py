"""`llx mig`: migrations."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import MigrationStatus

app = typer.Typer(help="Migrations: list, look at, cancel.", no_args_is_help=True)

MigrationArgument = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


@app.command("ls")
@command
def ls(
    is_open: Annotated[bool, typer.Option("--open", help="Only those under way.")] = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """List the migrations under way and the last that are over, the newest last."""
    from llx.cli.move_tables import migration_columns
    from llx.cli.render import emit, print_table, table

    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        found = control.migrations()
    if is_open:
        found = [each for each in found if each.outcome is None]
    emit(
        session.out,
        session.output,
        found,
        [each.id for each in found],
        lambda is_wide: print_table(
            session.out, table(migration_columns(), found, is_wide=is_wide)
        ),
    )


@app.command("get")
@command
def get(
    migration: MigrationArgument, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Show one migration in full."""
    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        _show(session, control.migration(migration))


@app.command("cancel")
@command
def cancel(
    migration: MigrationArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Ask for a migration to be given up; the request goes on where it is."""
    from llx.cli.move_tables import progress_text
    from llx.errors import ConflictError

    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        if not dry_run:
            _show(session, control.cancel_migration(migration, user=session.user))
            return
        found = control.migration(migration)
    if found.outcome is not None:
        raise ConflictError(f"{migration} is over: {found.outcome}")
    session.out.print(progress_text(found), markup=False, soft_wrap=True)
    session.out.print("would be given up, unless it is over by then")
    session.err.print("nothing was changed")


def _show(session: Session, found: "MigrationStatus") -> None:
    from llx.cli.render import as_yaml, emit

    emit(
        session.out,
        session.output,
        found,
        [found.id],
        lambda _: session.out.print(as_yaml(found), markup=False, soft_wrap=True),
    )
