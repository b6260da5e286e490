"""`llx host`: the machines of a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llx.cli import dry_run as dry
from llx.cli.completing import complete_host
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DeadlineOption, OutputOption, YesOption
from llx.cli.session import Session, confirm

if TYPE_CHECKING:
    from llx.api import HostStatus
    from llx.settings import ClusterSettings, HostSettings

app = typer.Typer(help="Hosts: list, add, remove, cordon, drain.", no_args_is_help=True)

HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", autocompletion=complete_host, show_default=False)
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check and show the plan; change nothing.")
]


@app.command("ls")
@command
def ls(output: OutputOption = None, context: ContextOption = None) -> None:
    """List the hosts."""
    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        _table(session, control.status().hosts)


@app.command("add")
@command
def add(
    address: Annotated[
        str, typer.Argument(metavar="[USER@]HOST", help="As `ssh` would be given it.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: the address.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="USER")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, metavar="PORT")] = None,
    identity_file: Annotated[
        Path | None, typer.Option("--identity-file", metavar="FILE", help="A private key.")
    ] = None,
    cluster_address: Annotated[
        str | None,
        typer.Option("--cluster-address", metavar="IP", help="Where the other hosts reach it."),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python", metavar="PATH", help="There, with the right vLLM; else llx's own."
        ),
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Add a host to a running cluster: bootstrap it, start its agent, use it."""
    from llx.cli.hosts import converge
    from llx.host_address import parse_host
    from llx.settings import with_hosts

    session = Session(context_name=context)
    settings = _of_hosts(session)
    parsed = parse_host(address)
    given = {
        "name": name or parsed.name,
        "address": parsed.address,
        "user": user or parsed.user,
        "port": port or parsed.port,
        "identity_file": identity_file,
        "cluster_address": cluster_address,
        "python": python,
    }
    hosts = [*map(_plain, settings.hosts), {k: v for k, v in given.items() if v is not None}]
    wanted = with_hosts(settings, hosts, base=session.environment.cwd)
    converge(session, wanted, verb="host add", is_yes=yes, is_dry_run=dry_run)
    if not dry_run:
        note = (
            f"add it to your cluster.yaml, too, or the next `llx up FILE` removes {given['name']}"
        )
        session.err.print(note, markup=False, soft_wrap=True)


@app.command("rm")
@command
def rm(
    host: HostArgument,
    purge: Annotated[
        bool, typer.Option("--purge", help="Leave nothing of llx there; else `down --purge` does.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Give it up if it is out of reach for good.")
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Take a host out of a running cluster: emptied first, then stopped. Its logs stay there."""
    from llx.bootstrap.hosts_stop import Farewell
    from llx.cli.hosts import converge
    from llx.errors import ConflictError
    from llx.settings import with_hosts
    from llx.yaml_reader import no_such

    session = Session(context_name=context)
    settings = _of_hosts(session)
    names = [each.name for each in settings.hosts]
    if host not in names:
        raise no_such("host", host, names)
    head = settings.head_host
    if head is not None and head.name == host:
        raise ConflictError(
            f"{host} is the head: the control plane runs there",
            remedy=f"`llx down` (`--forget {host}` if it is gone for good), then `llx up` with "
            "another `head`",
        )
    kept = [_plain(each) for each in settings.hosts if each.name != host]
    wanted = with_hosts(settings, kept, base=session.environment.cwd)
    farewell = Farewell(is_purge=purge, forget=frozenset([host] if forget else []))
    converge(session, wanted, verb="host rm", is_yes=yes, is_dry_run=dry_run, farewell=farewell)
    if not dry_run:
        note = f"remove it from your cluster.yaml, too, or the next `llx up FILE` adds {host} again"
        session.err.print(note, markup=False, soft_wrap=True)


@app.command("cordon")
@command
def cordon(
    host: HostArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Give a host nothing new; what runs there goes on."""
    _set_cordon(host, output, context, is_on=True, is_dry_run=dry_run)


@app.command("uncordon")
@command
def uncordon(
    host: HostArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Use a host again."""
    _set_cordon(host, output, context, is_on=False, is_dry_run=dry_run)


@app.command("drain")
@command
def drain(
    host: HostArgument,
    deadline: DeadlineOption = 60.0,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Cordon a host, move its requests to other hosts, stop its instances.

    What cannot move may finish; so may the streams of its gateway.
    """
    from llx.cli.drained import report_drain

    session = Session(context_name=context)
    if dry_run:
        dry.drain(session, host, deadline)
        return
    question = f"Drain {host}? What cannot move and has not finished after {deadline:g} s is cut."
    confirm(session, question, is_yes=yes)
    with session.control() as control:
        report = control.drain_host(host, deadline_s=deadline, user=session.user)
    report_drain(session, host, report)


def _set_cordon(
    name: str, output: OutputOption, context: str | None, *, is_on: bool, is_dry_run: bool
) -> None:
    session = Session(context_name=context, output_name=output)
    if is_dry_run:
        dry.cordon(session, name, is_on=is_on)
        return
    with session.control() as control:
        host = control.cordon_host(name, is_on=is_on, user=session.user)
    _table(session, [host])


def _table(session: Session, hosts: "list[HostStatus]") -> None:
    from llx.cli.render import emit, print_table, table
    from llx.cli.tables import host_columns

    emit(
        session.out,
        session.output,
        hosts,
        [each.name for each in hosts],
        lambda is_wide: print_table(session.out, table(host_columns(), hosts, is_wide=is_wide)),
    )


def _of_hosts(session: Session) -> "ClusterSettings":
    from llx.errors import ConflictError

    settings = session.cluster()
    if not settings.hosts:
        raise ConflictError(
            f"cluster {settings.cluster} runs on this machine, not on hosts",
            remedy="llx init --hosts ADDRESS,…; llx up cluster.yaml",
        )
    return settings


def _plain(host: "HostSettings") -> "dict[str, Any]":
    return host.model_dump(mode="json", exclude_none=True)
