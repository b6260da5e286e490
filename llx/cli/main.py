"""The `llx` command: its verbs, and the way in."""

import os
import sys
from types import ModuleType
from typing import Annotated, cast

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from llx import __version__
from llx.cli import (
    bench,
    calibrate,
    chaos,
    chat,
    completion,
    context,
    debug,
    demo,
    doctor,
    down,
    events,
    explain,
    generate,
    host,
    init,
    inst,
    lock,
    logs,
    metrics,
    mig,
    migrate,
    model,
    node,
    play,
    policy,
    queue,
    req,
    rollout,
    scale,
    sim,
    status,
    top,
    up,
    upgrade,
    verify,
)
from llx.cli.examples import add_examples
from llx.errors import ExitCode
from llx.garbage import collect_seldom

EPILOG = (
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 unreachable, 4 not found, 5 conflict or locked, "
    "6 partial success, 7 timeout, 8 check failed, 130 interrupted."
)

app = typer.Typer(
    name="llx",
    help="Serve LLMs with vLLM: one command up, one OpenAI endpoint, every instance in your hand.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from llx.pins import RAY_VERSION, VLLM_VERSION

        typer.echo(f"llx {__version__} (vLLM {VLLM_VERSION}, Ray {RAY_VERSION})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    """Options before the verb."""


app.command("init")(init.init)
app.command("up")(up.up)
app.command("down")(down.down)
app.command("doctor")(doctor.doctor)
app.command("status")(status.status)
app.command("top")(top.top)
app.add_typer(host.app, name="host")
app.add_typer(inst.app, name="inst")
app.add_typer(req.app, name="req")
app.command("migrate")(migrate.migrate)
app.command("queue")(queue.queue)
app.command("explain")(explain.explain)
app.command("scale")(scale.scale)
app.command("rollout")(rollout.rollout)
app.command("upgrade", epilog=upgrade.EXAMPLE)(upgrade.upgrade)
app.add_typer(policy.app, name="policy")
app.add_typer(mig.app, name="mig")
app.command("events")(events.events)
app.command("logs")(logs.logs)
app.command("metrics")(metrics.metrics)
app.command("play")(play.play)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.add_typer(node.app, name="node")
app.add_typer(model.app, name="model")
app.add_typer(verify.app, name="verify")
app.add_typer(chaos.app, name="chaos")
app.add_typer(bench.app, name="bench")
app.add_typer(sim.app, name="sim")
app.command("calibrate", epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.add_typer(context.app, name="context")
app.add_typer(lock.app, name="lock")
app.add_typer(debug.app, name="debug")
app.command("completion")(completion.completion)
add_examples(app)


def _start_sooner() -> None:
    """Spare verbs that only read a fifth of what they take.

    Imports alone would cause dozens of collections, which find nothing. And httpx comes with a
    command line of its own, with pygments and progress bars, unless that cannot be imported.
    """
    collect_seldom()
    sys.modules.setdefault("httpx._main", cast(ModuleType, None))


def run() -> None:
    """Entry point of the ``llx`` script."""
    _start_sooner()
    # `llx completion` takes the place of typer's own options, which would do this.
    completion_init()
    try:
        app(prog_name="llx")
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    else:
        code = int(ExitCode.OK)
    if code == ExitCode.INTERRUPTED:
        # CPython remembers an interrupt that passed through an exec() (dataclasses use it) and
        # would end by SIGINT instead of with this code, however well it was handled.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
