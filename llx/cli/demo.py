"""`llx demo`: a cluster of two instances comes up, streams, and goes away again."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llx.choices import Platform
from llx.cli.failures import Interruptions, command, show
from llx.cli.parameters import Engine
from llx.cli.session import Session, local_ports
from llx.errors import DeadlineError, EngineError, ExitCode, LlxError

if TYPE_CHECKING:
    from pathlib import Path

    from llx.bench.verify import Verdict
    from llx.bootstrap.local_ports import LocalPorts
    from llx.bootstrap.plan import Plan
    from llx.cli.checklist import Checklist
    from llx.cli.streams import StreamBoard

_STOP_DEADLINE_S = 5.0
_INSTANCES = 2
_PROMPT_TOKENS = 64
_MOVED_TOKENS = 400
_MOVES = 20
_REMEDY = "`llx up` does the same and leaves everything to be looked at: llx logs NAME"


@command
def demo(
    engine: Annotated[Engine, typer.Option("--engine", help="What answers.")] = Engine.VLLM,
    platform: Annotated[
        Platform, typer.Option("--platform", help="auto: cuda if there are two GPUs.")
    ] = Platform.AUTO,
    requests: Annotated[
        int, typer.Option("--requests", min=2, max=64, metavar="N", help="Streams at once.")
    ] = 6,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Length of each answer.")
    ] = 160,
) -> None:
    """Show llx at work: two instances, one endpoint, requests that move while they run.

    A cluster comes up and streams from both instances at once. Then the same requests run twice,
    the second time moved between the instances all the while, and every token is compared. At the
    end all is gone. The show is on stderr; stdout gets one line of JSON.
    """
    session = Session()
    began = time.monotonic()
    outcome: dict[str, object] = {"instances": 0, "requests": 0, "completed": 0, "output_tokens": 0}
    code = ExitCode.OK
    try:
        outcome = _perform(session, engine, platform, requests=requests, max_tokens=max_tokens)
    except (EngineError, DeadlineError) as error:
        error.remedy = _REMEDY  # the logs are gone with the demo's directory
        show(error)
        code = ExitCode.FAILURE
        outcome["error"] = error.message
    except LlxError as error:
        show(error)
        code = ExitCode.FAILURE
        outcome["error"] = error.message
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        outcome["error"] = "interrupted"
    word = "ok" if code is ExitCode.OK else "failed"
    seconds = round(time.monotonic() - began, 1)
    sys.stdout.write(json.dumps({"demo": word, **outcome, "seconds": seconds}) + "\n")
    sys.stdout.flush()
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def _perform(
    session: Session, engine: Engine, platform: Platform, *, requests: int, max_tokens: int
) -> dict[str, object]:
    """The show, in a state directory of its own, which is gone at the end."""
    import shutil
    import tempfile
    from pathlib import Path

    from llx.cli.checklist import Checklist

    with tempfile.TemporaryDirectory(prefix="llx-demo-") as folder:
        # A shim whose directory is gone ends its process.
        interruptions = Interruptions(
            "left at once; the demo's processes end within seconds",
            lambda: shutil.rmtree(folder, ignore_errors=True),
        )
        ports = local_ports(interruptions)
        plan = _plan(session, Path(folder), engine, platform)
        _say(session, "[bold]llx demo[/]: two instances, one OpenAI endpoint\n")
        with interruptions.installed():
            try:
                board = _stream(session, plan, ports, Checklist(session.err), requests, max_tokens)
                verdict = _move(session, plan.state_dir, requests)
            finally:
                interruptions.acknowledge()
                _take_down(session, plan.state_dir, ports)
        return _outcome(board) | _figures(verdict)


def _plan(session: Session, folder: "Path", engine: Engine, platform: Platform) -> "Plan":
    from llx.bootstrap.facts import list_gpus
    from llx.bootstrap.plan import plan_local
    from llx.environment import Environment
    from llx.specs import EngineKind

    variables = {**session.environment.variables, "XDG_STATE_HOME": str(folder)}
    gpus = list_gpus()
    if platform is Platform.AUTO and len(gpus) < _INSTANCES:
        platform = Platform.CPU
    return plan_local(
        Environment(variables, session.environment.cwd),
        gpus,
        cluster="demo",
        engine=EngineKind(engine),
        instances=_INSTANCES,
        port=_free_port(),
        control_port=0,
        platform=platform,
    )


def _stream(
    session: Session,
    plan: "Plan",
    ports: "LocalPorts",
    checklist: "Checklist",
    requests: int,
    max_tokens: int,
) -> "StreamBoard":
    from llx.bootstrap.local import up
    from llx.cli.streams import run_streams
    from llx.openai_client import OpenAIClient

    with checklist.shown():
        result = up(plan, ports, checklist.observe)
    _say(session, f"\n{requests} chats at once through {result.status.url}/v1\n")
    with OpenAIClient(result.status.url) as gateway:
        return run_streams(
            session.err,
            gateway,
            model=result.status.models[0].name,
            num_streams=requests,
            max_tokens=max_tokens,
        )


def _take_down(session: Session, state_dir: "Path", ports: "LocalPorts") -> None:
    from llx.bootstrap.local_stop import down
    from llx.cli.checklist import Checklist

    _say(session, "")
    checklist = Checklist(session.err)
    with checklist.shown():
        down(state_dir, ports, checklist.observe, deadline_s=_STOP_DEADLINE_S, user="demo")
    _say(session, "")


def _move(session: Session, state_dir: "Path", requests: int) -> "Verdict":
    """The same requests with and without moves, all at once; each samples with its own seed.

    The tiny model's most likely tokens soon repeat themselves and would prove little.
    """
    from llx.bench.verify import Load, verify
    from llx.cli.verify import print_verdict, shown
    from llx.client import Cluster
    from llx.openai_client import OpenAIClient

    _say(session, f"\n{requests} requests, then the same again while they are moved\n")
    with Cluster.for_cluster(state_dir) as control:
        status = control.status()
        load = Load(
            status.models[0].name,
            tuple(_PROMPT_TOKENS * (number % 4 + 1) for number in range(requests)),
            _MOVED_TOKENS,
            at_once=requests,
            temperature=1.0,
            is_checked=True,
            moves=_MOVES,
        )
        with OpenAIClient(status.url) as gateway, shown(session, requests) as observe:
            verdict = verify(gateway, control, load, observe)
    print_verdict(session.err, verdict)
    return verdict


def _figures(verdict: "Verdict") -> dict[str, object]:
    """What moving came to.

    Raises:
        CheckError: A token differed, a request failed, or nothing moved.
    """
    from llx.cli.verify import check

    check(verdict)
    return verdict.model_dump(
        include={
            "migrated",
            "mismatched_tokens",
            "downtime_ms_p50",
            "itl_ms_p50",
            "stall_over_itl_p50",
        }
    )


def _outcome(board: "StreamBoard") -> dict[str, object]:
    """The figures of the streams.

    Raises:
        CheckError: A stream failed, or an instance served none.
    """
    from llx.errors import CheckError

    failed = [f"{each.title}: {each.error}" for each in board.streams if each.error]
    if failed:
        raise CheckError(f"{len(failed)} of {len(board.streams)} streams failed: {failed[0]}")
    instances = {each.instance for each in board.streams}
    if len(instances) < _INSTANCES:
        raise CheckError(f"only {', '.join(sorted(instances))} served: expected both instances")
    return {
        "instances": len(instances),
        "requests": len(board.streams),
        "completed": sum(each.is_done for each in board.streams),
        "output_tokens": sum(each.tokens for each in board.streams),
    }


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(session: Session, text: str) -> None:
    session.err.print(text, soft_wrap=True)
