"""`llx explain`: why a request is where it is."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_request
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import Explanation


@command
def explain(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="Any of its ids: `llx req ls`, the client's own.",
            show_default=False,
            autocompletion=complete_request,
        ),
    ],
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Say what the scheduler decided about a request, and why: placement, waiting, moves."""
    from llx.cli.render import emit

    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        found = control.explain(request)
    emit(
        session.out,
        session.output,
        found,
        [each.request for each in found.requests],
        lambda _: _show(session, found),
    )


def _show(session: Session, found: "Explanation") -> None:
    from llx.cli.scheduling_tables import explained_lines

    for each in found.requests:
        for line in explained_lines(each):
            session.out.print(line, markup=False, soft_wrap=True, highlight=False)
