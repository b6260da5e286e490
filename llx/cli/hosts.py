"""What `up`, `down` and `host` share for clusters on hosts: questions, look, confirm, apply."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from llx.cli.checklist import Checklist
from llx.cli.failures import Interruptions
from llx.cli.session import Session, confirm, hosts_world

if TYPE_CHECKING:
    from llx.bootstrap.hosts_look import Outlook
    from llx.bootstrap.hosts_plan import HostsPlan
    from llx.bootstrap.hosts_result import HostsResult
    from llx.bootstrap.hosts_stop import Farewell
    from llx.settings import ClusterSettings

LAST_WORDS = "left at once; the same command goes on from here, `llx down` clears what is left"


def converge(
    session: Session,
    settings: "ClusterSettings",
    *,
    verb: str,
    is_yes: bool,
    is_dry_run: bool = False,
    farewell: "Farewell | None" = None,
    moves_head: bool = False,
    keeps_settings: bool = False,
    rotates: bool = False,
    upgrade_deadline_s: float | None = None,
) -> None:
    """Make the cluster on hosts match `settings`; shows the plan first, and asks.

    `farewell` is how hosts are left that are not in `settings` any more. With `moves_head` the head
    may be elsewhere so far; settings that do not say where it is leave it there. With
    `keeps_settings` a running cluster keeps those it has. `rotates`, `upgrade_deadline_s`: see
    `HostsPlan`.

    Raises:
        LlxError: As `hosts_look.look` and `hosts_up.apply` say.
    """
    from llx.bootstrap.cluster_dir import running_settings
    from llx.bootstrap.hosts_look import look
    from llx.bootstrap.hosts_plan import make_hosts_plan
    from llx.bootstrap.hosts_stop import Farewell
    from llx.errors import ConflictError

    state_dir = session.environment.cluster_dir(settings.cluster)
    before = running_settings(state_dir)
    if before is not None and settings.head is None and before.head in _names(settings):
        settings = settings.model_copy(update={"head": before.head})
    made = make_hosts_plan(settings, session.environment, keeps_certificate=keeps_settings)
    plan = replace(made, rotates=rotates, upgrade_deadline_s=upgrade_deadline_s)
    interruptions = Interruptions(last_words=LAST_WORDS)
    checklist = Checklist(session.err)
    world = hosts_world(session, interruptions, host_key_question(session, checklist))
    if before is not None and not before.hosts:
        raise ConflictError(
            f"cluster {settings.cluster} is up on this machine, without hosts",
            remedy=f"give this one another name (`cluster:`), or llx down --context "
            f"{settings.cluster}",
        )
    with interruptions.installed():
        with checklist.shown():
            outlook = look(
                plan,
                before,
                world,
                checklist.observe,
                verb,
                moves_head=moves_head,
                keeps_settings=keeps_settings,
            )
        try:
            _show(session, outlook, is_result=is_dry_run)
            if is_dry_run:
                session.err.print("nothing stands in the way; nothing was changed")
                return
            _confirm(session, is_yes=is_yes)
            _apply(session, outlook, farewell or Farewell(), interruptions, checklist)
        finally:
            outlook.close()


def _names(settings: "ClusterSettings") -> set[str]:
    return {each.name for each in settings.hosts}


def host_key_question(session: Session, checklist: Checklist) -> Callable[[str, str, str], bool]:
    """Asks whether an unknown host key is right; nobody there to ask: no."""
    one_at_a_time = threading.Lock()

    def ask(host: str, kind: str, fingerprint: str) -> bool:
        import sys

        import typer

        if not (sys.stdin.isatty() and session.err.is_terminal):
            return False
        with one_at_a_time, checklist.paused():
            session.err.print(f"{host} shows a key not seen before:\n  {kind} {fingerprint}")
            return typer.confirm("Is it the host's own?", err=True)

    return ask


def _show(session: Session, outlook: "Outlook", *, is_result: bool) -> None:
    from llx.bootstrap.hosts_look import describe

    if is_result or session.err.is_terminal:
        rows = describe(outlook)
        width = max(len(what) for what, _ in rows)
        console = session.out if is_result else session.err
        for what, how in rows:
            console.print(f"{what:<{width}}  {how}", markup=False, soft_wrap=True)
    for each in outlook.warnings:
        session.err.print(f"warning: {each}", markup=False, soft_wrap=True)
        session.err.print(f"  remedy: {each.remedy}", markup=False, soft_wrap=True)


def _confirm(session: Session, *, is_yes: bool) -> None:

    confirm(session, "Go ahead?", is_yes=is_yes)


def _apply(
    session: Session,
    outlook: "Outlook",
    farewell: "Farewell",
    interruptions: Interruptions,
    checklist: Checklist,
) -> None:
    from llx.bootstrap.hosts_up import apply

    world = hosts_world(session, interruptions)
    with checklist.shown():
        result = apply(outlook, world, checklist.observe, farewell)
    _summary(session, outlook.plan, result)


def _summary(session: Session, plan: "HostsPlan", result: "HostsResult") -> None:
    from llx.bootstrap.gateway_tls import AUTHORITY_FILE
    from llx.bootstrap.remote_control import needs_tunnel

    status = result.status
    ready = sum(model.instances_ready for model in status.models)
    if result.was_running and not result.changes:
        verb = "is up already, nothing to change"
    else:
        verb = "is up, changed" if result.was_running else "is up"
    lines = [f"cluster {status.cluster} {verb}: {len(status.hosts)} hosts, {ready} instances"]
    lines += [f"  {each}" for each in result.changes if result.was_running]
    for gateway in status.gateways:
        lines.append(f"  OpenAI API  {gateway.url}/v1 ({gateway.name} on {gateway.host})")
        if needs_tunnel(gateway):
            port = gateway.url.rpartition(":")[2]
            address = {each.name: each.address for each in plan.settings.hosts}[gateway.host]
            lines.append(f"              through ssh -N -L {port}:127.0.0.1:{port} {address}")
    authority = plan.state_dir / AUTHORITY_FILE
    if authority.exists():
        lines.append(f"              trusted with curl --cacert {authority}")
    lines.append(f"  models      {', '.join(model.name for model in status.models)}")
    lines.append('  next        llx generate "Hello" · llx status · llx logs NAME -f · llx down')
    for line in lines:
        session.out.print(line, markup=False, soft_wrap=True)
