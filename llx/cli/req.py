"""`llx req`: requests."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_request
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, OutputOption, YesOption
from llx.cli.session import Session, confirm

if TYPE_CHECKING:
    from llx.api import NotChanged, RequestChangeReport, RequestList, RequestStatus
    from llx.errors import ExitCode

app = typer.Typer(help="Requests: list, look at, cancel, reclass, pin.", no_args_is_help=True)

RequestArgument = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST",
        help="Any of its ids, also its client's own.",
        show_default=False,
        autocompletion=complete_request,
    ),
]
RequestsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="REQUEST",
        help="Any of its ids, also its client's own.",
        show_default=False,
        autocompletion=complete_request,
    ),
]


_LISTED = 1000
"""Requests that are listed unless more are asked for."""


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
        str, _only("--state", "STATE", "queued, waiting, running, preempted or leaving.")
    ] = "",
    priority_class: Annotated[
        str, _only("--class", "NAME", "Only those of this class; or vLLM's integer.")
    ] = "",
    pinned: Annotated[
        bool | None, typer.Option("--pinned/--movable", help="Only those that cannot move; can.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", min=0, metavar="N", help="At most so many; 0: all there are."),
    ] = _LISTED,
    offset: Annotated[
        int, typer.Option("--offset", min=0, metavar="N", help="Leave out so many first.")
    ] = 0,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """List the requests that instances have and those in the central queues, the oldest first.

    Example: llx req ls --state waiting --class urgent --limit 20
    """
    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        found = control.requests(
            match=match,
            instance=instance,
            model=model,
            state=state,
            priority_class=priority_class,
            is_pinned=pinned,
            offset=offset,
            limit=limit or None,
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
    with session.control_to_read() as control:
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


@app.command("cancel")
@command
def cancel(
    requests: RequestsArgument,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """End requests, wherever they are; their clients get an error that says so.

    A stream that has begun ends with an error object in it, any other answer with HTTP 499.

    Example: llx req cancel llx-3f9c24d1a07be655
    """
    session = Session(context_name=context, output_name=output)
    one = len(requests) == 1
    what = requests[0] if one else f"{len(requests)} requests"
    question = f"Cancel {what}? {'Its client gets' if one else 'Their clients get'} an error."
    if not dry_run:
        confirm(session, question, is_yes=yes)
    _change(session, "cancel", requests, lambda _: "cancelled", is_dry_run=dry_run)


@app.command("set-priority")
@command
def set_priority(
    requests: RequestsArgument,
    priority_class: Annotated[
        str, typer.Argument(metavar="CLASS", help="One of cluster.yaml.", show_default=False)
    ],
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Serve requests as of another priority class, from now on and wherever they come to be.

    One that waits keeps its age in the queue that it goes over to.

    Example: llx req set-priority llx-3f9c24d1a07be655 urgent
    """
    session = Session(context_name=context, output_name=output)
    _change(
        session, "set-priority", requests, lambda _: f"of class {priority_class}",
        is_dry_run=dry_run, priority_class=priority_class,
    )  # fmt: skip


@app.command("pin")
@command
def pin(
    requests: RequestsArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Keep requests on their instances: neither rules, nor `llx migrate`, nor drains move them.

    A drain reports them as not moved; what it cuts at its deadline it cuts all the same.

    Example: llx req pin llx-3f9c24d1a07be655
    """
    session = Session(context_name=context, output_name=output)
    _change(session, "pin", requests, lambda _: "pinned", is_dry_run=dry_run)


@app.command("unpin")
@command
def unpin(
    requests: RequestsArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Let requests be moved again that were pinned."""

    def done(each: "RequestStatus") -> str:
        is_fixed = bool(each.pinned) and not dry_run
        return f"not pinned by anybody, yet cannot move: {each.pinned}" if is_fixed else "movable"

    session = Session(context_name=context, output_name=output)
    _change(session, "unpin", requests, done, is_dry_run=dry_run)


def _change(
    session: Session,
    verb: str,
    requests: Sequence[str],
    done: "Callable[[RequestStatus], str]",
    *,
    is_dry_run: bool,
    priority_class: str = "",
) -> None:
    """Have the head do it, show to which requests it was done, and leave with the code for it."""
    from llx.api import RequestChange, RequestVerb
    from llx.cli.render import emit

    ask = RequestChange(
        ids=list(requests),
        priority_class=priority_class,
        is_dry_run=is_dry_run,
        user=session.user,
    )
    with session.control() as control:
        report = control.change_requests(RequestVerb(verb), ask)
    is_now = "would be" if is_dry_run else "is"

    def show(_is_wide: bool) -> None:
        lines = [f"{_where(each)} {is_now} {done(each)}" for each in report.changed]
        for line in dict.fromkeys(lines):  # the same of several generations
            session.out.print(line, markup=False, soft_wrap=True)

    emit(session.out, session.output, report, [each.id for each in report.changed], show)
    for refused in report.not_changed:
        session.err.print(_refused(refused), markup=False, soft_wrap=True)
    if is_dry_run:
        session.err.print("nothing was changed")
    if code := _exit_code(report):
        raise typer.Exit(int(code))


def _where(each: "RequestStatus") -> str:
    label = each.name or each.id
    return f"{label} ({each.state} on {each.instance})" if each.instance else f"{label} (queued)"


def _refused(each: "NotChanged") -> str:
    return f"error: {each.reason}" + (f"\nremedy: {each.remedy}" if each.remedy else "")


def _exit_code(report: "RequestChangeReport") -> "ExitCode":
    """0: done to all that were meant; 6: to some; else for what stood in the way first."""
    from llx.errors import ExitCode

    if not report.not_changed:
        return ExitCode.OK
    if report.changed:
        return ExitCode.PARTIAL
    return {
        "not_found": ExitCode.NOT_FOUND,
        "conflict": ExitCode.CONFLICT,
        "unreachable": ExitCode.UNREACHABLE,
    }[report.not_changed[0].error]


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
