"""`llx model`: weights on the hosts of a cluster."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption, DryRunOption, FileOption, OutputOption, YesOption
from llx.cli.session import Session, confirm, hosts_world
from llx.cli.trail import note_results

if TYPE_CHECKING:
    from llx.bootstrap.model_hosts import ModelOnHost, Place
    from llx.bootstrap.models import HostModel
    from llx.errors import LlxError
    from llx.settings import ClusterSettings

T = TypeVar("T")

app = typer.Typer(help="Models on hosts: list, copy, pull, remove.", no_args_is_help=True)

HostsOption = Annotated[
    str, typer.Option("--hosts", metavar="HOSTS", help="Names with commas between; * is all.")
]


@app.command("ls")
@command
def ls(
    hosts: HostsOption = "*",
    file: FileOption = None,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """List what the hosts have."""
    from llx.bootstrap.model_hosts import rows_of
    from llx.bootstrap.models import list_models

    session = Session(context_name=context, output_name=output)
    settings = _settings(session, file)
    results = _run(
        session,
        settings,
        hosts,
        lambda at: list_models(at.shell, at.layout),
        lambda found: f"{len(found)} models",
    )
    _show(session, rows_of(results))
    _require_all("listing", results)


@app.command("add")
@command
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called there.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="With a config.json.")],
    hosts: HostsOption = "*",
    dry_run: DryRunOption = False,
    file: FileOption = None,
    context: ContextOption = None,
) -> None:
    """Copy a model's directory to the hosts. Sends what differs; goes on where it was cut."""
    session = Session(context_name=context)
    add_model(session, name, directory, hosts, file, is_dry_run=dry_run)


def add_model(
    session: Session,
    name: str,
    directory: Path,
    hosts: str = "*",
    file: Path | None = None,
    *,
    is_dry_run: bool = False,
) -> None:
    """`llx model add`."""
    from llx.bootstrap.model_files import check_name, scan
    from llx.bootstrap.models import copy_due, ensure_model

    check_name(name)
    scan(directory)
    settings = _settings(session, file)
    if is_dry_run:
        _look(
            session,
            settings,
            hosts,
            lambda at: str(copy_due(at.shell, at.layout, name, directory)),
        )
        return
    results = _run(
        session,
        settings,
        hosts,
        lambda at: ensure_model(at.shell, at.layout, name, directory, at.on_progress),
        lambda is_new: "copied" if is_new else "there already",
    )
    note_results(session, settings, "model add", f"{name} from {directory}", results)
    _require_all(f"copying {name}", results)
    _say_how_to_use(session, name, list(results))


@app.command("pull")
@command
def pull(
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", show_default=False)],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="R", help="Branch, tag or commit; gets a directory of its own."
        ),
    ] = None,
    hosts: HostsOption = "*",
    dry_run: DryRunOption = False,
    file: FileOption = None,
    context: ContextOption = None,
) -> None:
    """Have the hosts fetch a model from the Hugging Face hub.

    HF_TOKEN and HF_ENDPOINT of this shell are used there. Needs the node environment: `llx up`.
    """
    session = Session(context_name=context)
    pull_to_hosts(session, repository, revision, hosts, file, is_dry_run=dry_run)


def pull_to_hosts(
    session: Session,
    repository: str,
    revision: str | None = None,
    hosts: str = "*",
    file: Path | None = None,
    *,
    is_dry_run: bool = False,
) -> None:
    """`llx model pull`."""
    from llx.bootstrap.hub_models import HubAccess, node_python, pull_model
    from llx.bootstrap.model_files import HubModel, size_text
    from llx.secret import Secret

    model = HubModel(repository, revision)
    name = model.name
    settings = _settings(session, file)
    token = session.environment.get("HF_TOKEN")
    endpoint = session.environment.get("HF_ENDPOINT")

    def python_at(at: "Place") -> PurePosixPath:
        return node_python(at.shell, at.layout, at.host.python or settings.runtime.python)

    def look(at: "Place") -> str:
        python_at(at)
        found = _model_at(at, name)
        if found is None:
            return f"to be fetched from {endpoint or 'the hub'}"
        state = "complete" if found.is_complete else "a part of it is there"
        return f"{state} ({size_text(found.size_bytes)}); what the hub has that differs is fetched"

    def work(at: "Place") -> bool:
        access = HubAccess(python_at(at), None if token is None else Secret(token), endpoint)
        return pull_model(at.shell, at.layout, model, access, on_progress=at.on_progress)

    if is_dry_run:
        _look(session, settings, hosts, look)
        return
    results = _run(
        session, settings, hosts, work, lambda is_new: "fetched" if is_new else "there already"
    )
    what = repository if revision is None else f"{repository}@{revision}"
    note_results(session, settings, "model pull", what, results)
    _require_all(f"pulling {repository}", results)
    _say_how_to_use(session, name, list(results))


@app.command("rm")
@command
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    hosts: HostsOption = "*",
    force: Annotated[bool, typer.Option("--force", help="Also while the cluster uses it.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    file: FileOption = None,
    context: ContextOption = None,
) -> None:
    """Remove a model from the hosts. One that the cluster serves is kept, unless by force."""
    session = Session(context_name=context)
    remove_from_hosts(session, name, hosts, file, is_forced=force, is_yes=yes, is_dry_run=dry_run)


def remove_from_hosts(
    session: Session,
    name: str,
    hosts: str = "*",
    file: Path | None = None,
    *,
    is_forced: bool = False,
    is_yes: bool = False,
    is_dry_run: bool = False,
) -> None:
    """`llx model rm`."""
    from llx.bootstrap.model_files import check_name, hub_name, size_text
    from llx.bootstrap.models import remove_model, users_of
    from llx.errors import ConflictError, NotFoundError

    place = hub_name(name) if "/" in name else check_name(name)
    settings = _settings(session, file)
    users = users_of(place, settings, *_running(session, settings))
    if users and not is_forced:
        raise ConflictError(
            f"{place} is what cluster {settings.cluster} serves as {', '.join(users)}",
            remedy="take it out of cluster.yaml and `llx up` first, or say --force",
        )

    def look(at: "Place") -> str:
        found = _model_at(at, place)
        return "is not there" if found is None else f"to be removed ({size_text(found.size_bytes)})"

    if is_dry_run:
        _look(session, settings, hosts, look)
        return
    confirm(session, f"Remove {place} from the hosts?", is_yes=is_yes)
    results = _run(
        session,
        settings,
        hosts,
        lambda at: remove_model(at.shell, at.layout, place),
        lambda was_there: "removed" if was_there else "was not there",
    )
    note_results(session, settings, "model rm", place, results)
    _require_all(f"removing {place}", results)
    if True not in results.values():
        raise NotFoundError(f"no host has a model {place}", remedy="llx model ls")


def _model_at(at: "Place", name: str) -> "HostModel | None":
    from llx.bootstrap.models import list_models

    return next((each for each in list_models(at.shell, at.layout) if each.name == name), None)


def _look(
    session: Session,
    settings: "ClusterSettings",
    hosts: str,
    look: "Callable[[Place], str]",
) -> None:
    """Say what would be done on each host."""
    results = _run(session, settings, hosts, look, lambda _: "looked")
    for name, found in results.items():
        if isinstance(found, str):
            session.out.print(f"{name}: {found}", markup=False, soft_wrap=True)
    _require_all("looking", results)
    session.err.print("nothing was changed")


def _settings(session: Session, file: Path | None) -> "ClusterSettings":
    from llx.errors import ConfigError
    from llx.settings import load_cluster

    settings = load_cluster(file) if file is not None else session.cluster()
    if not settings.hosts:
        raise ConfigError(
            f"cluster {settings.cluster} has no hosts: on this machine, models are where they are",
            remedy="name the model's directory in cluster.yaml",
        )
    return settings


def _running(session: Session, settings: "ClusterSettings") -> "list[ClusterSettings]":
    """What the cluster runs with, whatever its file says by now."""
    from llx.bootstrap.cluster_dir import running_settings

    found = running_settings(session.environment.cluster_dir(settings.cluster))
    return [] if found is None else [found]


def _run(
    session: Session,
    settings: "ClusterSettings",
    hosts: str,
    work: "Callable[[Place], T]",
    outcome: "Callable[[T], str]",
) -> "dict[str, T | LlxError]":
    from llx.bootstrap.model_hosts import on_hosts
    from llx.bootstrap.play_hosts import chosen_hosts
    from llx.cli.checklist import Checklist
    from llx.cli.hosts import host_key_question

    names = chosen_hosts(settings, hosts)
    interruptions = Interruptions(last_words="left at once; repeat it to go on from here")
    checklist = Checklist(session.err)
    world = hosts_world(session, interruptions, host_key_question(session, checklist))
    with interruptions.installed(), checklist.shown():
        return on_hosts(settings, names, world, checklist.observe, work, outcome)


def _require_all(what: str, results: "dict[str, T | LlxError]") -> None:
    from llx.bootstrap.model_hosts import require_all

    require_all(what, results)


def _show(session: Session, rows: "list[ModelOnHost]") -> None:
    from llx.bootstrap.model_files import size_text
    from llx.cli.render import Column, emit, print_table, table

    columns: list[Column[ModelOnHost]] = [
        Column("host", lambda each: each.host),
        Column("model", lambda each: each.name),
        Column("state", lambda each: "complete" if each.is_complete else "partial"),
        Column("size", lambda each: size_text(each.size_bytes), is_number=True),
        Column("source", lambda each: each.source or "-"),
    ]
    emit(
        session.out,
        session.output,
        rows,
        sorted({each.name for each in rows}),
        lambda is_wide: print_table(session.out, table(columns, rows, is_wide=is_wide)),
    )


def _say_how_to_use(session: Session, name: str, hosts: list[str]) -> None:
    session.out.print(f"{name} is on {', '.join(hosts)}", markup=False, soft_wrap=True)
    session.out.print(f'in cluster.yaml: model: "@models/{name}"', markup=False, soft_wrap=True)
