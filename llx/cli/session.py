"""What a verb needs to begin with: environment, options, consoles, and the cluster it means."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llx.choices import OutputFormat
from llx.cli.failures import Interruptions

if TYPE_CHECKING:
    from rich.console import Console

    from llx.api import ClusterStatus, GatewayStatus
    from llx.bootstrap.contexts import Context
    from llx.bootstrap.hosts_world import HostsWorld
    from llx.bootstrap.local_ports import LocalPorts
    from llx.bootstrap.remote_control import TunnelTransport
    from llx.bootstrap.shell import Shell
    from llx.bootstrap.ssh import AskHostKey
    from llx.client import Cluster
    from llx.client_options import ClientOptions
    from llx.environment import Environment
    from llx.openai_client import OpenAIClient
    from llx.settings import ClusterSettings, HostSettings


@dataclass
class Session:
    """One run of the command. Flags given here win over ``LLX_*`` and the configuration files."""

    context_name: str | None = None
    output_name: OutputFormat | None = None
    url_flag: str | None = None

    @cached_property
    def environment(self) -> "Environment":
        """The process's environment."""
        from llx.environment import Environment

        return Environment.current()

    @cached_property
    def options(self) -> "ClientOptions":
        """Flags, variables and files, by precedence."""
        from llx.client_options import load_client_options

        return load_client_options(
            self.environment,
            context=self.context_name,
            output=self.output_name,
            url=self.url_flag,
        )

    @property
    def output(self) -> OutputFormat:
        """The output format."""
        return self.options.output or OutputFormat.TABLE

    @cached_property
    def out(self) -> "Console":
        """For results."""
        from llx.cli.render import make_console

        return make_console(self.environment)

    @cached_property
    def err(self) -> "Console":
        """For progress."""
        from llx.cli.render import make_console

        return make_console(self.environment, stderr=True)

    @property
    def user(self) -> str:
        """Who is at work, for the audit trail."""
        from llx.bootstrap.hosts_world import Asker

        return str(Asker.current())

    def context(self) -> "Context":
        """The cluster meant.

        Raises:
            NotFoundError: There is none.
        """
        from llx.bootstrap.contexts import pick_context

        return pick_context(self.environment, self.options.context)

    def cluster(self) -> "ClusterSettings":
        """The settings of the cluster meant.

        Raises:
            NotFoundError: There is no such cluster.
            UnreachableError: It is down.
        """
        from llx.bootstrap.opening import settings_of

        return settings_of(self.context())

    def control(self) -> "Cluster":
        """The control API of the cluster meant.

        Raises:
            NotFoundError: There is no such cluster.
            UnreachableError: It is down, or its head is.
        """
        return self.control_of(self.cluster())

    def control_to_read(self) -> "Cluster":
        """As `control`, for a verb that changes nothing (`llx.bootstrap.opening`)."""
        from llx.bootstrap.opening import open_to_read

        return open_to_read(
            self.context(), self.environment, self.options.ssh_persist, self.connect
        )

    def control_of(self, settings: "ClusterSettings") -> "Cluster":
        """The control API of the cluster of these settings; on hosts through its head's SSH.

        Raises:
            NotFoundError: There is no such cluster here.
            UnreachableError: Its head is not up.
        """
        from llx.bootstrap.opening import control_of

        return control_of(settings, self.environment, self.connect)

    def connect(self, host: "HostSettings", ask: "AskHostKey | None" = None) -> "Shell":
        """SSH to a host; `ask` decides about an unknown key, without it such a host is refused.

        Raises:
            UnreachableError: It cannot be reached.
        """
        from llx.bootstrap.opening import connect_to

        return connect_to(host, self.environment, ask)

    def gateway(self) -> "OpenAIClient":
        """The gateway meant: of ``--url``, else of the cluster."""
        from llx.openai_client import OpenAIClient

        if self.options.url is not None:
            return OpenAIClient(self.options.url, self.environment.api_key)
        with self.control() as control:
            status = control.status()
        gateway = status.first_gateway
        if gateway is None:
            return OpenAIClient(status.url, self.environment.api_key)
        return self.gateway_of(gateway)

    def gateways(self, status: "ClusterStatus", *, timeout_s: float) -> "dict[str, OpenAIClient]":
        """Clients of all gateways, by name; each asks that one alone."""
        return {each.name: self.gateway_of(each, timeout_s=timeout_s) for each in status.gateways}

    def gateway_of(self, gateway: "GatewayStatus", *, timeout_s: float = 120.0) -> "OpenAIClient":
        """A client of one gateway."""
        from llx.openai_client import OpenAIClient
        from llx.pinned_tls import trusting

        return OpenAIClient(
            gateway.url,
            self.environment.api_key,
            timeout_s=timeout_s,
            tls=trusting(gateway.certificate),
            transport=self._tunnel_to(gateway),
        )

    def _tunnel_to(self, gateway: "GatewayStatus") -> "TunnelTransport | None":
        """A way there, if only the gateway's own host can reach it.

        Of two gateways on the loopback of two hosts, the URL is the same: the host tells.
        """
        hosts = {each.name: each for each in self.cluster().hosts}
        if gateway.host not in hosts:
            return None
        from llx.bootstrap.remote_control import needs_tunnel, open_gateway

        if not needs_tunnel(gateway):
            return None
        return open_gateway(self.connect(hosts[gateway.host]), gateway, closes_shell=True)


def hosts_world(
    session: Session,
    interruptions: Interruptions | None = None,
    ask: "AskHostKey | None" = None,
) -> "HostsWorld":
    """What verbs on hosts reach out with; `ask` decides about unknown host keys."""
    import time

    from llx.bootstrap.first_token import ask_gateway
    from llx.bootstrap.hosts_world import HostsWorld
    from llx.bootstrap.remote_control import open_control

    return HostsWorld(
        connect=lambda host: session.connect(host, ask),
        control=open_control,
        first_token=ask_gateway,
        sleep=time.sleep if interruptions is None else interruptions.sleep,
    )


def local_ports(
    interruptions: Interruptions | None = None,
) -> "LocalPorts":
    """`up`'s and `down`'s ports of this machine: where `bootstrap` and `cluster` meet."""
    import time

    from llx.bootstrap.local_ports import real_ports
    from llx.cluster.launch import stop_everything

    shield: Callable[[], AbstractContextManager[None]] = nullcontext
    return real_ports(
        _launch_head,
        stop_everything,
        shield=shield if interruptions is None else interruptions.shield,
        sleep=time.sleep if interruptions is None else interruptions.sleep,
    )


def confirmed(session: Session, question: str, *, is_yes: bool) -> bool:
    """Ask on a terminal; ``-y``, or nobody there to ask, means yes."""
    import sys

    import typer

    if is_yes or not (sys.stdin.isatty() and session.err.is_terminal):
        return True
    return typer.confirm(question, err=True)


def confirm(session: Session, question: str, *, is_yes: bool) -> None:
    """Go on only if `confirmed`.

    Raises:
        LlxError: The answer is no.
    """
    from llx.errors import LlxError

    if not confirmed(session, question, is_yes=is_yes):
        raise LlxError("not confirmed: nothing was changed")


def agreed(
    session: Session, changes: Sequence[str], question: str, *, is_dry_run: bool, is_yes: bool
) -> bool:
    """Show what would change, and ask; False: it was to be shown only.

    Raises:
        LlxError: The answer is no.
    """
    for each in changes or ["nothing changes"]:
        session.err.print(each, markup=False, soft_wrap=True)
    if is_dry_run:
        session.err.print("nothing was changed: --dry-run", markup=False)
        return False
    if changes:
        confirm(session, question, is_yes=is_yes)
    return True


def _launch_head(plan: object, python: Path, variables: object) -> object:
    from collections.abc import Mapping

    from llx.bootstrap.plan import Plan
    from llx.cluster.launch import launch_head
    from llx.cluster.state_dir import HeadSpec
    from llx.settings import dump_cluster

    assert isinstance(plan, Plan), "a plan"
    assert isinstance(variables, Mapping), "environment variables"
    spec = HeadSpec(
        cluster=plan.settings.cluster,
        state_dir=str(plan.state_dir),
        python=str(python),
        platform=str(plan.node.platform),
    )
    return launch_head(spec, dump_cluster(plan.settings), variables)
