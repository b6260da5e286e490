"""`llx node`: the environment that engines run in."""

from pathlib import Path
from typing import Annotated

import typer

from llx.choices import Platform
from llx.cli.failures import Interruptions, command
from llx.cli.session import Session

app = typer.Typer(help="The node environment: Ray, vLLM and llx.", no_args_is_help=True)


@app.callback()
def _noun() -> None:
    """Keep `install` a verb of its own, though it is the only one."""


@app.command("install")
@command
def install(
    prefix: Annotated[
        Path | None,
        typer.Option("--prefix", metavar="DIR", help="Where to; default: llx's own place."),
    ] = None,
    platform: Annotated[
        Platform, typer.Option("--platform", help="auto: cuda if there is a GPU, else cpu.")
    ] = Platform.AUTO,
    wheelhouse: Annotated[
        Path | None,
        typer.Option("--wheelhouse", metavar="DIR", help="Take every package from here."),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="Interpreter to base it on."),
    ] = None,
) -> None:
    """Make the node environment, or see that it is right. Prints the path of its Python."""
    import sys

    from llx.bootstrap.local_ports import StepEvent, StepState
    from llx.bootstrap.node_env import NodePlatform, default_prefix, detect_platform
    from llx.bootstrap.node_env import install as make
    from llx.cli.checklist import Checklist
    from llx.errors import LlxError

    session = Session()
    environment = session.environment
    kind = detect_platform() if platform is Platform.AUTO else NodePlatform(platform)
    place = prefix or environment.node_prefix or default_prefix(kind, environment.xdg_data_home)
    checklist = Checklist(session.err)
    step = "node environment"

    def report(line: str) -> None:
        checklist.observe(StepEvent(step, StepState.RUNNING, line))

    with Interruptions().installed(), checklist.shown():
        report(str(place))
        try:
            made = make(
                place,
                kind,
                report=report,
                python=python or sys.executable,
                wheelhouse=wheelhouse,
            )
        except LlxError:
            checklist.observe(StepEvent(step, StepState.FAILED))
            raise
        checklist.observe(StepEvent(step, StepState.DONE))
    typer.echo(str(made.python))
