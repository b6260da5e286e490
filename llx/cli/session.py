"""What a verb needs to begin with: environment, options, consoles, and the cluster it means."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llx.choices import OutputFormat
from llx.cli.failures import Interruptions

if TYPE_CHECKING:
    from rich.console import Console

    from llx.bootstrap.cluster_dir import Context
    from llx.bootstrap.local_ports import LocalPorts
    from llx.client import ControlClient
    from llx.openai_client import OpenAIClient
    from llx.settings import ClientOptions, Environment


@dataclass
class Session:
    """One run of the command. Flags given here win over ``LLX_*`` and the configuration files."""

    context_name: str | None = None
    output_name: OutputFormat | None = None
    url_flag: str | None = None

    @cached_property
    def environment(self) -> "Environment":
        """The process's environment."""
        from llx.settings import Environment

        return Environment.current()

    @cached_property
    def options(self) -> "ClientOptions":
        """Flags, variables and files, by precedence."""
        from llx.settings import load_client_options

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

    def context(self) -> "Context":
        """The cluster meant.

        Raises:
            NotFoundError: There is none.
        """
        from llx.bootstrap.cluster_dir import pick_context

        return pick_context(self.environment, self.options.context)

    def control(self) -> "ControlClient":
        """The control API of the cluster meant.

        Raises:
            NotFoundError: There is no such cluster.
            UnreachableError: It is down, or its head is.
        """
        from llx.client import ControlClient
        from llx.errors import UnreachableError

        context = self.context()
        if not context.is_up:
            raise UnreachableError(f"cluster {context.name} is down", remedy="llx up")
        return ControlClient.for_cluster(context.state_dir)

    def gateway(self) -> "OpenAIClient":
        """The gateway meant: of ``--url``, else of the cluster."""
        from llx.openai_client import OpenAIClient

        url = self.options.url
        if url is None:
            with self.control() as control:
                url = control.status().url
        return OpenAIClient(url, self.environment.api_key)


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
