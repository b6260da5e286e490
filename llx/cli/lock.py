"""`llx lock`: who is changing a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, FileOption, OutputOption, YesOption
from llx.cli.session import Session, confirm
from llx.cli.trail import note

if TYPE_CHECKING:
    from llx.bootstrap.host_layout import HostLayout
    from llx.bootstrap.shell import Shell
    from llx.settings import ClusterSettings, HostSettings

app = typer.Typer(help="The lock that whoever changes a cluster holds.", no_args_is_help=True)

_NOBODY = "nobody holds the lock"


@app.command("show")
@command
def show(
    file: FileOption = None, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Say who holds the cluster's lock.

    With --file from a machine, too, on which the cluster was not started.
    """
    show_lock(Session(context_name=context, output_name=output), file)


def show_lock(session: Session, file: Path | None) -> None:
    """`llx lock show`."""
    from llx.bootstrap.cluster_dir import lock_holder
    from llx.bootstrap.host_lock import show as shown
    from llx.bootstrap.lock_status import on_host, on_this_machine
    from llx.cli.render import emit

    settings, state_dir = _cluster(session, file)
    head = None if settings is None else settings.head_host
    holder: object
    if settings is None or head is None:
        holder = lock_holder(state_dir)
        found = on_this_machine(state_dir.name, holder)
    else:
        with _on_head(session, settings, head) as (shell, layout):
            holder = shown(shell, layout)
        found = on_host(settings.cluster, head.name, holder)
    emit(
        session.out,
        session.output,
        found,
        [] if found.holder is None else [f"{found.holder.user}@{found.holder.machine}".strip("@")],
        lambda _: session.out.print(str(holder or _NOBODY), markup=False, soft_wrap=True),
    )


@app.command("release")
@command
def release(
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    file: FileOption = None,
    context: ContextOption = None,
) -> None:
    """Take the lock from whoever holds it: that llx stops at its next step.

    Only for an llx that is gone or hangs on a machine out of reach.
    """
    release_lock(Session(context_name=context), file, is_yes=yes, is_dry_run=dry_run)


def release_lock(
    session: Session, file: Path | None, *, is_yes: bool = False, is_dry_run: bool = False
) -> None:
    """`llx lock release`."""
    from llx.bootstrap.cluster_dir import lock_holder
    from llx.bootstrap.host_lock import release as take_away
    from llx.bootstrap.host_lock import show as shown
    from llx.errors import ConflictError

    settings, state_dir = _cluster(session, file)
    head = None if settings is None else settings.head_host
    if settings is None or head is None:
        holder_here = lock_holder(state_dir)
        if holder_here is not None:
            raise ConflictError(f"{holder_here}, on this machine", remedy="end that process")
        session.out.print(_NOBODY)
        return
    with _on_head(session, settings, head) as (shell, layout):
        holder = shown(shell, layout)
        if holder is None:
            session.out.print(_NOBODY)
            return
        if is_dry_run:
            session.out.print(f"to be taken from {holder}", markup=False, soft_wrap=True)
            session.err.print("nothing was changed")
            return
        session.err.print(f"held by {holder}", markup=False, soft_wrap=True)
        confirm(session, "Take it away?", is_yes=is_yes)
        take_away(shell, layout)
    session.out.print(f"released; it was held by {holder}", markup=False, soft_wrap=True)
    note(session, settings, "lock release", f"it was held by {holder}")


def _cluster(session: Session, file: Path | None) -> "tuple[ClusterSettings | None, Path]":
    """What is known of the cluster, up or down, and its directory here, which need not exist."""
    from llx.bootstrap.cluster_dir import remembered_hosts
    from llx.settings import load_cluster

    if file is not None:
        settings = load_cluster(file)
        return settings, session.environment.cluster_dir(settings.cluster)
    state_dir = session.context().state_dir
    return remembered_hosts(state_dir), state_dir


@contextmanager
def _on_head(
    session: Session, settings: "ClusterSettings", head: "HostSettings"
) -> "Iterator[tuple[Shell, HostLayout]]":
    from llx.bootstrap.hosts_world import layout_of
    from llx.cli.checklist import Checklist
    from llx.cli.hosts import host_key_question

    shell = session.connect(head, host_key_question(session, Checklist(session.err)))
    try:
        yield shell, layout_of(shell, settings.cluster)
    finally:
        shell.close()
