"""`llx node`: the environment that engines run in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from llx.choices import Platform
from llx.cli.failures import Interruptions, command
from llx.cli.session import Session

app = typer.Typer(help="The node environment: Ray, vLLM and llx.", no_args_is_help=True)


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

    from llx.bootstrap.node_env import NodePlatform, default_prefix, detect_platform
    from llx.bootstrap.node_env import install as make

    session = Session()
    environment = session.environment
    kind = detect_platform() if platform is Platform.AUTO else NodePlatform(platform)
    place = prefix or environment.node_prefix or default_prefix(kind, environment.xdg_data_home)
    with _step(session, "node environment") as report:
        report(str(place))
        made = make(
            place,
            kind,
            report=report,
            python=python or sys.executable,
            wheelhouse=wheelhouse,
        )
    typer.echo(str(made.python))


@app.command("download")
@command
def download(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Filled, or added to.", show_default=False)
    ],
    platform: Annotated[
        Platform, typer.Option("--platform", help="auto: cuda if there is a GPU here, else cpu.")
    ] = Platform.AUTO,
    python_version: Annotated[
        str | None,
        typer.Option("--python-version", metavar="X.Y", help="The hosts' Python; default: ours."),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", metavar="NAME", help="x86_64 or aarch64; default: ours."),
    ] = None,
) -> None:
    """Fetch all packages of a node environment, for hosts without internet.

    Name the folder as runtime.wheelhouse in cluster.yaml, or give it to `llx node install`.
    """
    from llx.bootstrap.node_probe import NodePlatform, detect_platform
    from llx.bootstrap.wheelhouse import Target
    from llx.bootstrap.wheelhouse import download as fill

    kind = detect_platform() if platform is Platform.AUTO else NodePlatform(platform)
    asked = {"python": python_version, "machine": machine}
    target = Target(kind, **{name: each for name, each in asked.items() if each is not None})
    with _step(Session(), "wheelhouse") as report:
        fill(folder, target, report=report)
    typer.echo(str(folder))


@contextmanager
def _step(session: Session, name: str) -> Iterator[Callable[[str], None]]:
    """A checklist of one step, and how to tell it what goes on."""
    from llx.bootstrap.local_ports import StepEvent, StepState
    from llx.cli.checklist import Checklist

    checklist = Checklist(session.err)
    with Interruptions().installed(), checklist.shown():
        try:
            yield lambda line: checklist.observe(StepEvent(name, StepState.RUNNING, line))
        except BaseException:
            checklist.observe(StepEvent(name, StepState.FAILED))
            raise
        checklist.observe(StepEvent(name, StepState.DONE))
