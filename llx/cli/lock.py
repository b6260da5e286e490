"""`llx lock`: who is changing a cluster."""

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, YesOption
from llx.cli.session import Session, confirmed

app = typer.Typer(help="The lock that whoever changes a cluster holds.", no_args_is_help=True)


@app.command("show")
@command
def show(context: ContextOption = None) -> None:
    """Say who holds the cluster's lock."""
    from llx.bootstrap.cluster_dir import lock_holder
    from llx.bootstrap.host_lock import show as shown
    from llx.bootstrap.hosts_world import layout_of

    session = Session(context_name=context)
    head = session.cluster().head_host
    holder: object
    if head is None:
        holder = lock_holder(session.context().state_dir)
    else:
        shell = session.connect(head)
        try:
            holder = shown(shell, layout_of(shell, session.context().name))
        finally:
            shell.close()
    session.out.print(str(holder or "nobody holds the lock"), markup=False, soft_wrap=True)


@app.command("release")
@command
def release(yes: YesOption = False, context: ContextOption = None) -> None:
    """Take the lock from whoever holds it: that llx stops at its next step.

    Only for an llx that is gone or hangs on a machine out of reach.
    """
    from llx.bootstrap.cluster_dir import lock_holder
    from llx.bootstrap.host_lock import release as take_away
    from llx.bootstrap.host_lock import show as shown
    from llx.bootstrap.hosts_world import layout_of
    from llx.errors import ConflictError, LlxError

    session = Session(context_name=context)
    head = session.cluster().head_host
    if head is None:
        holder_here = lock_holder(session.context().state_dir)
        if holder_here:
            raise ConflictError(f"{holder_here}, on this machine", remedy="end that process")
        session.out.print("nobody holds the lock")
        return
    shell = session.connect(head)
    try:
        layout = layout_of(shell, session.context().name)
        holder = shown(shell, layout)
        if holder is None:
            session.out.print("nobody holds the lock")
            return
        session.err.print(f"held by {holder}", markup=False, soft_wrap=True)
        if not confirmed(session, "Take it away?", is_yes=yes):
            raise LlxError("not confirmed: nothing was changed")
        take_away(shell, layout)
    finally:
        shell.close()
    session.out.print(f"released; it was held by {holder}", markup=False, soft_wrap=True)
