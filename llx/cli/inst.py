"""`llx inst`: instances."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli import dry_run as dry
from llx.cli.failures import command
from llx.cli.logs import logs
from llx.cli.parameters import (
    ContextOption,
    DryRunOption,
    OutputOption,
    YesOption,
    complete_process,
)
from llx.cli.session import Session, confirmed

if TYPE_CHECKING:
    from llx.api import GatewayStatus, InstanceStatus

app = typer.Typer(help="Instances: list, look at, restart.", no_args_is_help=True)

InstanceArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete_process, show_default=False)
]


@app.command("ls")
@command
def ls(output: OutputOption = None, context: ContextOption = None) -> None:
    """List the instances."""
    from llx.cli.render import emit, print_table, table
    from llx.cli.tables import instance_columns

    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        found = control.status().instances
    columns = instance_columns(shows_host=len({each.host for each in found}) > 1)
    emit(
        session.out,
        session.output,
        found,
        [each.name for each in found],
        lambda is_wide: print_table(session.out, table(columns, found, is_wide=is_wide)),
    )


@app.command("get")
@command
def get(name: InstanceArgument, output: OutputOption = None, context: ContextOption = None) -> None:
    """Show one instance in full."""
    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        _show(session, control.instance(name))


@app.command("restart")
@command
def restart(
    name: InstanceArgument,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Stop an instance or a gateway, if it runs, and start it anew. An instance's streams end."""
    from llx.errors import LlxError

    session = Session(context_name=context, output_name=output)
    if dry_run:
        dry.restart(session, name)
        return
    if not confirmed(session, f"Restart {name}? Its streams end.", is_yes=yes):
        raise LlxError("not confirmed: nothing was changed")
    with session.control() as control:
        _show(session, control.restart_instance(name, user=session.user))


app.command("logs")(logs)


def _show(session: Session, found: "InstanceStatus | GatewayStatus") -> None:
    from llx.cli.render import as_yaml, emit

    emit(
        session.out,
        session.output,
        found,
        [found.name],
        lambda _: session.out.print(as_yaml(found), markup=False, soft_wrap=True),
    )
