"""`llx play`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption, FileOption, YesOption
from llx.cli.session import Session, confirm, hosts_world
from llx.cli.trail import note_results

if TYPE_CHECKING:
    from llx.bootstrap.play import PlayResult
    from llx.bootstrap.playbook import Playbook


def complete_playbook(incomplete: str) -> list[str]:
    """Names of the playbooks that come with llx, for the shell."""
    from llx.bootstrap.playbook import playbook_names

    return [name for name in playbook_names() if name.startswith(incomplete)]


@command
def play(
    playbook: Annotated[
        str,
        typer.Argument(
            metavar="PLAYBOOK",
            help="One that comes with llx (firewall, collect-logs, …), or a file.",
            autocompletion=complete_playbook,
        ),
    ],
    hosts: Annotated[
        str, typer.Option("--hosts", metavar="HOSTS", help="Names with commas between; * is all.")
    ] = "*",
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter's value; =@FILE: a file's content, kept secret.",
        ),
    ] = None,
    file: FileOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look, and show the exact commands; change nothing.")
    ] = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Bring hosts into the shape a playbook describes; doing it twice changes nothing more."""
    perform(
        Session(context_name=context),
        playbook,
        hosts,
        values or [],
        file,
        is_yes=yes,
        is_dry_run=dry_run,
    )


def perform(
    session: Session,
    playbook: str,
    hosts: str = "*",
    values: Sequence[str] = (),
    file: Path | None = None,
    *,
    is_yes: bool = False,
    is_dry_run: bool = False,
) -> None:
    """`llx play`."""
    from llx.bootstrap.play_hosts import (
        Performance,
        chosen_hosts,
        parse_values,
        play_on_hosts,
        require_all,
    )
    from llx.cli.checklist import Checklist
    from llx.cli.hosts import host_key_question
    from llx.errors import LlxError
    from llx.settings import load_cluster

    book = _read(playbook)
    settings = load_cluster(file) if file is not None else session.cluster()
    performance = Performance(
        playbook=book,
        settings=settings,
        hosts=chosen_hosts(settings, hosts),
        given=parse_values(book, values),
        log_dir=session.environment.cluster_dir(settings.cluster) / "hosts",
        dry_run=is_dry_run,
    )
    if not is_dry_run:
        session.err.print(f"{book.name}: {book.description}", markup=False, soft_wrap=True)
        question = f"Play it on {', '.join(performance.hosts)}?"
        confirm(session, question, is_yes=is_yes)
    interruptions = Interruptions(last_words="left at once; playing it again goes on from here")
    checklist = Checklist(session.err)
    world = hosts_world(session, interruptions, host_key_question(session, checklist))
    with interruptions.installed(), checklist.shown():
        results = play_on_hosts(performance, world, checklist.observe)
    for name, result in results.items():
        if not isinstance(result, LlxError):
            _show(session, name, result, is_dry_run=is_dry_run)
    if not is_dry_run:
        changes = {
            name: result if isinstance(result, LlxError) else bool(result.changed)
            for name, result in results.items()
        }
        note_results(session, settings, "play", book.name, changes)
    require_all(book, results)


def _read(name: str) -> "Playbook":
    from llx.bootstrap.playbook import load_playbook, read_playbook

    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    return read_playbook(Path(name)) if is_file else load_playbook(name)


def _show(session: Session, name: str, result: "PlayResult", *, is_dry_run: bool) -> None:
    lines: list[str] = []
    if is_dry_run:
        for step in result.commands:
            lines += [f"{name}: {step.step}", *(f"    {line}" for line in step.lines)]
        if not result.commands:
            lines.append(f"{name}: nothing to do")
    else:
        done = {"changed": result.changed, "fetched": result.fetched}
        notes = [f"{how}: {', '.join(what)}" for how, what in done.items() if what]
        lines.append(f"{name}: {'; '.join(notes) or 'nothing changed'}")
    for line in lines:
        session.out.print(line, markup=False, soft_wrap=True)
