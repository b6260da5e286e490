"""`llx doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session, hosts_world, local_ports

if TYPE_CHECKING:
    from llx.api import ClusterStatus
    from llx.bootstrap.host_checks import Check, DoctorReport
    from llx.settings import ClusterSettings

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@command
def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A cluster.yaml. None: the cluster that is up."),
    ] = None,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Look for what stands in the way of FILE's cluster, or how the one that is up is doing.

    Looks at connections, disk, memory, ports, clocks, Pythons, GPUs and who uses them, whether
    hosts reach each other, and what is open to others. Changes nothing. Ends with 8 when a check
    failed, with 3 when all that failed is out of reach.
    """
    from llx.settings import load_cluster

    session = Session(context_name=context, output_name=output)
    interruptions = Interruptions(last_words="left at once; nothing was changed")
    with interruptions.installed():
        if file is None:
            found = _live(session, interruptions)
        else:
            found = _planned(session, interruptions, load_cluster(file))
    _emit(session, found)
    if not found.is_healthy:
        raise typer.Exit(found.exit_code)


def _planned(
    session: Session, interruptions: Interruptions, settings: "ClusterSettings"
) -> "DoctorReport":
    from llx.bootstrap.doctor import examine_plan
    from llx.bootstrap.local_doctor import examine_local_plan
    from llx.bootstrap.plan import make_plan
    from llx.cli.checklist import Checklist
    from llx.cli.hosts import host_key_question

    if not settings.hosts:
        return examine_local_plan(make_plan(settings, session.environment), local_ports())
    checklist = Checklist(session.err)
    world = hosts_world(session, interruptions, host_key_question(session, checklist))
    with checklist.shown():
        return examine_plan(settings, session.environment, world, checklist.observe)


def _live(session: Session, interruptions: Interruptions) -> "DoctorReport":
    from llx.bootstrap.doctor import examine_cluster
    from llx.bootstrap.local_doctor import examine_local_cluster
    from llx.cli.checklist import Checklist

    settings = session.cluster()

    def ask_gateway(status: "ClusterStatus") -> str:
        from llx.errors import ConfigError

        with session.gateway() as gateway:
            try:
                return f"{status.url}/v1 serves {', '.join(gateway.models())}"
            except ConfigError:
                return f"{status.url}/v1 answers, and wants an API key"

    if not settings.hosts:
        return examine_local_cluster(
            settings, session.context().state_dir, session.control, ask_gateway
        )
    checklist = Checklist(session.err)
    world = hosts_world(session, interruptions)
    with checklist.shown():
        return examine_cluster(settings, world, checklist.observe, ask_gateway)


def _emit(session: Session, found: "DoctorReport") -> None:
    from llx.cli.render import emit

    failing = dict.fromkeys(each.host for each in found.checks if each.state == "fail")
    emit(session.out, session.output, found, list(failing), lambda _: _print(session, found))


def _print(session: Session, found: "DoctorReport") -> None:
    """By host, a line per check; what to do below what is wrong."""
    width = max((len(each.subject) for each in found.checks), default=0)
    for host in dict.fromkeys(each.host for each in found.checks):
        session.out.print(host, style="bold", markup=False)
        for check in found.checks:
            if check.host == host:
                _print_check(session, check, width)
    counts = [
        f"{sum(each.state == state for each in found.checks)} {word}"
        for state, word in (("ok", "ok"), ("warn", "warnings"), ("fail", "failed"))
    ]
    session.out.print(f"{found.cluster}: {', '.join(counts)}", markup=False)


def _print_check(session: Session, check: "Check", width: int) -> None:
    from rich.text import Text

    state = str(check.state)
    line = Text.assemble(
        "  ", (f"{state:<4}", _STYLES[state]), f"  {check.subject:<{width}}  {check.detail}"
    )
    session.out.print(line, soft_wrap=True)
    indent = " " * (width + 10)
    for text in check.evidence.splitlines():
        session.out.print(f"{indent}| {text}", markup=False, soft_wrap=True)
    if check.remedy and state != "ok":
        session.out.print(f"{indent}remedy: {check.remedy}", markup=False, soft_wrap=True)
