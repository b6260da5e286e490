"""`llx req`: requests."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import RequestList

app = typer.Typer(help="Requests: list, look at.", no_args_is_help=True)

RequestArgument = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST", help="Any of its ids, also its client's own.", show_default=False
    ),
]


def _only(name: str, metavar: str, words: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar=metavar, help=words)
    return option


@app.command("ls")
@command
def ls(
    match: Annotated[
        str, typer.Argument(metavar="TEXT", help="Part of an id, instance, class or state.")
    ] = "",
    instance: Annotated[str, _only("--instance", "NAME", "Only those there.")] = "",
    model: Annotated[str, _only("--model", "NAME", "Only those of this model.")] = "",
    state: Annotated[
        str, _only("--state", "STATE", "waiting, running, preempted or leaving.")
    ] = "",
    priority_class: Annotated[
        str, _only("--class", "NAME", "Only those of this class; or vLLM's integer.")
    ] = "",
    pinned: Annotated[
        bool | None, typer.Option("--pinned/--movable", help="Only those that cannot move; can.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many.")
    ] = None,
    offset: Annotated[
        int, typer.Option("--offset", min=0, metavar="N", help="Leave out so many first.")
    ] = 0,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """List the requests that instances have, the oldest first.

    Example: llx req ls --state waiting --class urgent --limit 20
    """
    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        found = control.requests(
            match=match,
            instance=instance,
            model=model,
            state=state,
            priority_class=priority_class,
            is_pinned=pinned,
            offset=offset,
            limit=limit,
        )
    _list(session, found)
    shown = len(found.requests)
    if shown and shown < found.num_found:
        first, last = offset + 1, offset + shown
        session.err.print(f"{first} to {last} of {found.num_found}", markup=False, soft_wrap=True)


@app.command("get")
@command
def get(
    request: RequestArgument, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Show one request in full; if it has several generations, each.

    Example: llx req get llx-3f9c24d1a07be655
    """
    from llx.cli.render import as_yaml, emit

    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        found = control.request(request)
    emit(
        session.out,
        session.output,
        found,
        [each.id for each in found.requests],
        lambda _: session.out.print(
            "\n\n".join(as_yaml(each) for each in found.requests), markup=False, soft_wrap=True
        ),
    )


def _list(session: Session, found: "RequestList") -> None:
    from llx.cli.move_tables import request_columns
    from llx.cli.render import emit, print_table, table

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
