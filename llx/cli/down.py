"""`llx down`."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli import dry_run as dry
from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption, DryRunOption, YesOption, parse_duration
from llx.cli.session import Session, confirm, local_ports

if TYPE_CHECKING:
    from llx.bootstrap.hosts_stop import Farewell
    from llx.settings import ClusterSettings


@command
def down(
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            parser=parse_duration,
            metavar="DURATION",
            help="Streams may go on so long; then they are cut.",
            show_default="60s",
        ),
    ] = 60.0,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also remove logs, the node environment and the tiny model llx made."
        ),
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            "--forget", metavar="HOST", help="Give a host up if it is out of reach for good."
        ),
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Take a cluster down; streams may finish first. Clears whatever is left, safe to repeat."""
    from llx.bootstrap.cluster_dir import hosts_to_visit
    from llx.bootstrap.hosts_stop import Farewell
    from llx.bootstrap.local_stop import DownResult, down_and_purge, purge_list
    from llx.bootstrap.local_stop import down as take_down
    from llx.cli.checklist import Checklist
    from llx.errors import NotFoundError

    session = Session(context_name=context)
    name = session.options.context
    try:
        state_dir = session.context().state_dir
    except NotFoundError:
        if name is not None:
            raise
        state_dir = session.environment.cluster_dir("local")
    settings = hosts_to_visit(state_dir, is_purge=purge)
    if settings is not None and dry_run:
        dry.down_on_hosts(session, settings, deadline, is_purge=purge)
        return
    if settings is not None:
        farewell = Farewell(is_purge=purge, forget=frozenset(forget or ()))
        _down_hosts(session, settings, deadline, farewell, is_yes=yes)
        return
    doomed = [state_dir, *purge_list(state_dir, session.environment)] if purge else []
    if dry_run:
        dry.down_here(session, state_dir, doomed, deadline)
        return
    if doomed:
        for each in doomed:
            session.err.print(f"will be removed: {each}", markup=False, soft_wrap=True)
        confirm(session, "Remove them?", is_yes=yes)
    interruptions = Interruptions()
    ports = local_ports(interruptions)
    checklist = Checklist(session.err)
    user = session.environment.get("USER") or ""
    result: DownResult
    with interruptions.installed(), checklist.shown():
        if purge:
            result = down_and_purge(
                state_dir,
                session.environment,
                ports,
                checklist.observe,
                deadline_s=deadline,
                user=user,
            )
        else:
            result = take_down(state_dir, ports, checklist.observe, deadline_s=deadline, user=user)
    if result.was_running:
        session.out.print(f"cluster {state_dir.name} is down")
    else:
        session.out.print(f"cluster {state_dir.name} was not running: nothing to stop")


def _down_hosts(
    session: Session,
    settings: "ClusterSettings",
    deadline_s: float,
    farewell: "Farewell",
    *,
    is_yes: bool,
) -> None:
    from llx.bootstrap.hosts_stop import down as take_down
    from llx.cli.checklist import Checklist
    from llx.cli.session import hosts_world

    state_dir = session.context().state_dir
    names = ", ".join(each.name for each in settings.hosts)
    what = f"cluster {settings.cluster} on {names}"
    extra = ", with all that llx put there" if farewell.is_purge else ""
    confirm(session, f"Take down {what}{extra}?", is_yes=is_yes)
    interruptions = Interruptions(last_words="left at once; `llx down` again goes on from here")
    checklist = Checklist(session.err)
    with interruptions.installed(), checklist.shown():
        result = take_down(
            settings,
            state_dir,
            hosts_world(session, interruptions),
            checklist.observe,
            deadline_s=deadline_s,
            farewell=farewell,
        )
    done = f"cluster {settings.cluster} on {', '.join(result.hosts)} is down"
    session.out.print(done, markup=False, soft_wrap=True)
    for each in result.forgotten:
        note = f"{each}: out of reach, forgotten; what runs there goes on"
        session.err.print(note, markup=False, soft_wrap=True)
