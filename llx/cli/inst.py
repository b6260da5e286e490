"""`llx inst`: instances."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli import dry_run as dry
from llx.cli.completing import complete_unit
from llx.cli.failures import command
from llx.cli.logs import logs
from llx.cli.parameters import (
    ContextOption,
    DeadlineOption,
    DryRunOption,
    OutputOption,
    YesOption,
    parse_duration,
)
from llx.cli.session import Session, confirm

if TYPE_CHECKING:
    from llx.api import GatewayStatus, InstanceStatus

app = typer.Typer(help="Instances: list, look at, cordon, drain, restart.", no_args_is_help=True)

InstanceArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete_unit, show_default=False)
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--deadline",
        parser=parse_duration,
        metavar="DURATION",
        help="Wait so long for what cannot move.",
        show_default="60s",
    ),
]


@app.command("ls")
@command
def ls(output: OutputOption = None, context: ContextOption = None) -> None:
    """List the instances."""
    from llx.cli.render import emit, print_table, table
    from llx.cli.tables import instance_columns

    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
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
    with session.control_to_read() as control:
        _show(session, control.instance(name))


@app.command("cordon")
@command
def cordon(
    name: InstanceArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Give an instance nothing new; what it has goes on."""
    _set_cordon(name, output, context, is_on=True, is_dry_run=dry_run)


@app.command("uncordon")
@command
def uncordon(
    name: InstanceArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Use an instance again."""
    _set_cordon(name, output, context, is_on=False, is_dry_run=dry_run)


@app.command("drain")
@command
def drain(
    name: InstanceArgument,
    deadline: WaitOption = 60.0,
    dry_run: DryRunOption = False,
    context: ContextOption = None,
) -> None:
    """Cordon an instance and move its requests to others; it stays up, empty.

    What cannot move may finish there; nothing is cut. `llx inst uncordon` or a restart uses the
    instance again.
    """
    from llx.cli.drained import report_drain

    session = Session(context_name=context)
    if dry_run:
        dry.drain_instance(session, name, deadline)
        return
    with session.control() as control:
        report = control.drain_instance(name, deadline_s=deadline, user=session.user)
    report_drain(session, name, report)


@app.command("restart")
@command
def restart(
    name: InstanceArgument,
    deadline: DeadlineOption = 60.0,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Stop an instance or a gateway, if it runs, and start it anew.

    The requests of an instance move to others first. What cannot move may finish; so may the
    streams of a gateway.
    """
    session = Session(context_name=context, output_name=output)
    if dry_run:
        dry.restart(session, name, deadline)
        return
    question = f"Restart {name}? What cannot move and has not finished after {deadline:g} s is cut."
    confirm(session, question, is_yes=yes)
    with session.control() as control:
        _show(session, control.restart_instance(name, user=session.user, deadline_s=deadline))


app.command("logs")(logs)


def _set_cordon(
    name: str, output: OutputOption, context: str | None, *, is_on: bool, is_dry_run: bool
) -> None:
    from llx.cli.render import emit, print_table, table
    from llx.cli.tables import instance_columns

    session = Session(context_name=context, output_name=output)
    if is_dry_run:
        dry.cordon_instance(session, name, is_on=is_on)
        return
    with session.control() as control:
        found = control.cordon_instance(name, is_on=is_on, user=session.user)
    emit(
        session.out,
        session.output,
        found,
        [found.name],
        lambda is_wide: print_table(
            session.out, table(instance_columns(shows_host=False), [found], is_wide=is_wide)
        ),
    )


def _show(session: Session, found: "InstanceStatus | GatewayStatus") -> None:
    from llx.cli.render import as_text, emit

    emit(
        session.out,
        session.output,
        found,
        [found.name],
        lambda _: session.out.print(as_text(found), markup=False, soft_wrap=True),
    )
