"""`llx debug`: what to send along when something is wrong."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.bootstrap.bundle import Sources
    from llx.bootstrap.bundle_file import BundleFile
    from llx.settings import ClusterSettings, HostSettings

app = typer.Typer(help="What to look at when something is wrong.", no_args_is_help=True)

_GATEWAY_S = 10.0
_MIB = 1 << 20
_ANSWERS = (
    "status, settings, snapshot, events, queues, policies, rollouts, decisions, metrics of the "
    "head; metrics of each gateway"
)


@app.command("bundle")
@command
def bundle(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Default: llx-debug-CLUSTER-TIME.tar.gz here. What is there is not overwritten.",
            show_default=False,
        ),
    ] = None,
    log_mib: Annotated[
        int, typer.Option("--log-mib", min=1, max=32, metavar="N", help="Of each log, its end.")
    ] = 4,
    with_prompts: Annotated[
        bool, typer.Option("--with-prompts", help="Leave in what looks like a prompt.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be taken; write nothing.")
    ] = False,
    context: ContextOption = None,
) -> None:
    """Put what can be had of a cluster into one file, to be looked at elsewhere.

    Settings, status, events, decisions, the last recording, metrics, and the logs of all processes
    on all hosts. Works without the head and without some hosts, also of a cluster that is down, and
    says what it could not get (exit code 6). Secrets are masked, prompts left out.
    """
    session = Session(context_name=context)
    if dry_run:
        show_plan(session, log_mib * _MIB)
    else:
        with Interruptions("left at once; the file is not whole").installed():
            write_bundle(session, output, log_mib * _MIB, with_prompts=with_prompts)


def show_plan(session: Session, log_bytes: int) -> None:
    """`llx debug bundle --dry-run`."""
    from llx.bootstrap.bundle import planned
    from llx.errors import LlxError

    errors: dict[str, LlxError] = {}
    with _sources(session) as sources:
        if sources.open_head is not None:
            session.out.print(_ANSWERS, markup=False, soft_wrap=True)
        for host, found in planned(sources, log_bytes).items():
            if isinstance(found, LlxError):
                errors[host] = found
                continue
            for each in found:
                end = f" (of {each.size_bytes})" if each.is_tail else ""
                line = f"{each.taken_bytes:>10}{end}  hosts/{host}/{each.name}"
                session.out.print(line, markup=False, soft_wrap=True)
    _raise_partial({f"host {name}": each.message for name, each in errors.items()})


def write_bundle(
    session: Session, output: Path | None, log_bytes: int, *, with_prompts: bool = False
) -> None:
    """`llx debug bundle`."""
    from llx.bootstrap.bundle import collect
    from llx.bootstrap.bundle_file import BundleFile
    from llx.errors import LlxError

    name = f"llx-debug-{session.context().name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = output if output is not None else Path(f"{name}.tar.gz")

    def observe(line: str) -> None:
        session.err.print(line, markup=False, soft_wrap=True)

    try:
        with BundleFile(path, name) as made, _sources(session) as sources:
            collect(sources, made, log_bytes, observe, with_prompts=with_prompts)
    except OSError as error:
        raise LlxError(f"{path}: not written: {error.strerror or error}") from None
    session.out.print(str(path), markup=False, soft_wrap=True)
    observe(_summary(made))
    expected = set() if sources.open_head is not None else {"head"}
    _raise_partial({key: why for key, why in made.not_taken.items() if key not in expected})


@contextmanager
def _sources(session: Session) -> "Iterator[Sources]":
    """The cluster meant, its hosts connected."""
    from llx.bootstrap.bundle import Sources
    from llx.bootstrap.bundle_host import HostSource, run_here, run_there
    from llx.bootstrap.cluster_dir import remembered_hosts
    from llx.bootstrap.hosts_world import connect_all

    context, environment = session.context(), session.environment
    settings = remembered_hosts(context.state_dir)
    hosts = _hosts(session, settings) if settings is not None else []
    crew = connect_all(hosts, context.name, session.connect)
    try:
        sources = [
            HostSource(
                name,
                run_there(shell),
                str(crew.layouts[name].state),
                str(crew.layouts[name].ray_tmp),
            )
            for name, shell in crew.shells.items()
        ]
        if settings is None:  # on this machine, without Ray
            here = str(context.state_dir)
            sources = [HostSource("local", run_here, here, f"{here}/ray")]
        own = (environment.get("LLX_API_KEY"), environment.get("HF_TOKEN"))
        yield Sources(
            cluster=context.name,
            here=context.state_dir,
            hosts=sources,
            errors=crew.errors,
            open_head=session.control if context.is_up else None,
            open_gateway=lambda gateway: session.gateway_of(gateway, timeout_s=_GATEWAY_S),
            secrets=frozenset(each for each in own if each),
        )
    finally:
        crew.close()


def _hosts(session: Session, settings: "ClusterSettings") -> "list[HostSettings]":
    """Those that this machine knows, and those that the head knows besides."""
    from llx.bootstrap.hosts_world import settings_of
    from llx.errors import LlxError

    known = {each.name: each for each in settings.hosts}
    if session.context().is_up:
        try:
            with session.control_of(settings) as control:
                known = {each.name: each for each in settings_of(control).hosts} | known
        except LlxError:
            pass  # it is tried again, and said then
    return list(known.values())


def _summary(made: "BundleFile") -> str:
    files, size = len(made.entries), made.path.stat().st_size
    words = "secrets are masked by name, look and value: look it through before you give it away"
    return f"{files} files, {size / _MIB:.1f} MiB; {words}"


def _raise_partial(not_taken: "dict[str, str]") -> None:
    from llx.errors import ExitCode, LlxError

    if not_taken:
        error = LlxError(
            f"not taken: {', '.join(not_taken)}",
            detail="\n".join(f"{what}: {why}" for what, why in not_taken.items()),
        )
        error.exit_code = ExitCode.PARTIAL
        raise error
