"""`llx up`."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.choices import Platform
from llx.cli.failures import Interruptions, command
from llx.cli.parameters import Engine, YesOption
from llx.cli.session import Session, confirm, local_ports
from llx.cli.trail import note

if TYPE_CHECKING:
    from llx.bootstrap.local import UpResult
    from llx.bootstrap.plan import Plan

_ROTATED = "the control API's token and the keys of the cluster's sockets were replaced"


@command
def up(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="A cluster.yaml. None: the local cluster, ./cluster.yaml or not."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the plan; change nothing.")
    ] = False,
    yes: YesOption = False,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="HOST",
            help="Move the control plane to that host; what serves goes on.",
        ),
    ] = None,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate",
            help="Replace the control API's token, the keys of the cluster's own sockets, "
            "gateways' certificates of llx's making and, on hosts, Ray's token and certificates: "
            "control is away for about half a minute. No stream is cut.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Local cluster: directory or Hugging Face id.", metavar="M"),
    ] = None,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="Local cluster: how many.", metavar="N")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option("--engine", help="Local cluster: default vllm.")
    ] = None,
    platform: Annotated[
        Platform | None, typer.Option("--platform", help="Local cluster: default auto.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, metavar="PORT", help="Local cluster: gateway; 8000."
        ),
    ] = None,
    control_port: Annotated[
        int | None,
        typer.Option(
            "--control-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Local cluster: control API; 8900.",
        ),
    ] = None,
) -> None:
    """Bring a cluster up: FILE's, on its hosts or on this machine; or a local one.

    On hosts: checks them all, shows what will be done, asks; then installs what is missing, starts
    agents, gateways and instances. Safe to repeat and to interrupt; a cluster that is up is changed
    to what FILE says, and what fits is left alone.

    Without FILE: two instances on this machine, on its GPUs if it has some, else on the CPU; of
    --model, or of a tiny model that llx makes itself. On a cluster that is up already: sees that it
    runs as asked, and starts again what has failed. Ctrl-C takes away what was started.

    --head HOST takes over on HOST when the head's host is lost, or moves the control plane there in
    good order; without FILE, of the cluster meant. Streams go on, and so does all that serves.
    """
    from llx.bootstrap.facts import list_gpus
    from llx.bootstrap.plan import make_plan, plan_local
    from llx.settings import load_cluster
    from llx.specs import EngineKind

    session = Session()
    if head is not None:
        _refuse_local_flags(model, instances, engine, platform, port, control_port)
        _move_head(session, head, file, is_yes=yes, is_dry_run=dry_run, rotates=rotate)
        return
    if file is not None:
        _refuse_local_flags(model, instances, engine, platform, port, control_port)
        settings = load_cluster(file)
        if settings.hosts:
            from llx.cli.hosts import converge

            converge(session, settings, verb="up", is_yes=yes, is_dry_run=dry_run, rotates=rotate)
            return
        plan = make_plan(settings, session.environment)
    else:
        plan = plan_local(
            session.environment,
            list_gpus(),
            model=model,
            instances=instances,
            engine=EngineKind(engine or Engine.VLLM),
            platform=platform or Platform.AUTO,
            port=port,
            control_port=control_port,
        )
    plan = replace(plan, rotates=rotate)
    if dry_run:
        _dry_run(session, plan)
    else:
        _bring_up(session, plan, is_yes=yes)


def _move_head(
    session: Session,
    head: str,
    file: Path | None,
    *,
    is_yes: bool,
    is_dry_run: bool,
    rotates: bool,
) -> None:
    from llx.cli.hosts import converge
    from llx.errors import ConfigError, NotFoundError
    from llx.settings import load_cluster

    settings = load_cluster(file) if file is not None else session.cluster()
    if not settings.hosts:
        raise ConfigError(f"cluster {settings.cluster} has no hosts: its head is this machine")
    names = [each.name for each in settings.hosts]
    if head not in names:
        raise NotFoundError(f'no host "{head}"', remedy=f"there are: {', '.join(names)}")
    settings = settings.model_copy(update={"head": head})
    converge(
        session,
        settings,
        verb="up",
        is_yes=is_yes,
        is_dry_run=is_dry_run,
        moves_head=True,
        keeps_settings=file is None,
        rotates=rotates,
    )


def _refuse_local_flags(*values: object) -> None:
    from llx.errors import ConfigError

    if any(value is not None for value in values):
        raise ConfigError(
            "--model, --instances, --engine, --platform, --port and --control-port shape the "
            "local cluster; FILE says it all itself, and --head is of clusters on hosts",
            remedy="leave them out, or leave FILE and --head out",
        )


def _dry_run(session: Session, plan: "Plan") -> None:
    from llx.bootstrap.local import check

    _show_plan(session, plan, is_result=True)
    check(plan, local_ports())
    session.err.print("nothing stands in the way; nothing was changed")


def _show_plan(session: Session, plan: "Plan", *, is_result: bool) -> None:
    from llx.bootstrap.facts import node_fact
    from llx.bootstrap.plan import describe

    is_installed = node_fact(plan.node.python, plan.node.prefix).is_installed
    rows = describe(plan, is_installed=is_installed)
    width = max(len(what) for what, _ in rows)
    console = session.out if is_result else session.err
    for what, how in rows:
        console.print(f"{what:<{width}}  {how}", markup=False, soft_wrap=True)


def _bring_up(session: Session, plan: "Plan", *, is_yes: bool) -> None:
    from llx.bootstrap.local import up as bring_up
    from llx.cli.checklist import Checklist

    if session.err.is_terminal and not is_yes:
        _show_plan(session, plan, is_result=False)
        confirm(session, "Go ahead?", is_yes=is_yes)
    interruptions = Interruptions()
    checklist = Checklist(session.err)
    with interruptions.installed(), checklist.shown():
        result = bring_up(plan, local_ports(interruptions), checklist.observe)
    if plan.rotates:
        note(session, plan.settings, "up --rotate", _ROTATED)
    _summary(session, plan, result)


def _summary(session: Session, plan: "Plan", result: "UpResult") -> None:
    from llx.bootstrap.gateway_tls import AUTHORITY_FILE

    status = result.status
    names = [model.name for model in status.models]
    key = "" if not plan.settings.gateway.api_keys else " -H 'Authorization: Bearer '$LLX_API_KEY"
    body = (
        f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}], '
        '"max_tokens": 32}'
    )
    ready = sum(model.instances_ready for model in status.models)
    verb = "is up already" if result.was_running else "is up"
    headers = f"{key} -H 'Content-Type: application/json'"
    authority = plan.state_dir / AUTHORITY_FILE
    trust = f" --cacert {shlex.quote(str(authority))}" if authority.exists() else ""
    lines = [
        f"cluster {status.cluster} {verb}: {ready} instances",
        f"  OpenAI API  {status.url}/v1",
        f"  models      {', '.join(names)}",
        f"  try         curl{trust} {status.url}/v1/chat/completions{headers} -d '{body}'",
        "  next        llx status · llx chat · llx logs NAME -f · llx down",
    ]
    for line in lines:
        session.out.print(line, markup=False, soft_wrap=True)
