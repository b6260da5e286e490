"""`llx req`: requests."""

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session

app = typer.Typer(help="Requests: list.", no_args_is_help=True)


@app.command("ls")
@command
def ls(output: OutputOption = None, context: ContextOption = None) -> None:
    """List the requests that instances have, the oldest first."""
    from llx.cli.move_tables import request_columns
    from llx.cli.render import emit, print_table, table

    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        found = control.requests()
    emit(
        session.out,
        session.output,
        found,
        [each.id for each in found.requests],
        lambda is_wide: print_table(
            session.out, table(request_columns(), found.requests, is_wide=is_wide)
        ),
    )
    for each in found.not_asked:
        session.err.print(f"not known: the requests of {each}", markup=False, soft_wrap=True)
