"""`llx queue`: what waits for an instance."""

from typing import Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session


@command
def queue(
    priority_class: Annotated[
        str | None,
        typer.Argument(metavar="CLASS", help="Only of this priority class.", show_default=False),
    ] = None,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Show the central queues: what waits until an instance has room, by model and class."""
    from llx.cli.render import emit, print_table, table
    from llx.cli.scheduling_tables import queue_columns
    from llx.yaml_reader import no_such

    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        found = control.queues()
    queues = [each for each in found.queues if priority_class in (None, each.priority_class)]
    if priority_class is not None and not queues:
        known = dict.fromkeys(each.priority_class for each in found.queues)
        raise no_such("priority class", priority_class, known)
    emit(
        session.out,
        session.output,
        found.model_copy(update={"queues": queues}),
        [f"{each.model}/{each.priority_class}" for each in queues],
        lambda is_wide: print_table(session.out, table(queue_columns(), queues, is_wide=is_wide)),
    )
