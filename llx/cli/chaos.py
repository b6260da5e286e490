"""`llx chaos`: faults on purpose, streams beside them, and a verdict."""

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from llx.choices import OutputFormat
from llx.cli.failures import command
from llx.cli.generate import the_model
from llx.cli.grounds import grounds_of
from llx.cli.parameters import (
    ContextOption,
    DryRunOption,
    ModelOption,
    OutputOption,
    YesOption,
    complete_process,
    parse_duration,
)
from llx.cli.session import Session, confirm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llx.chaos.plan import ChaosPlan
    from llx.chaos.run import Observe, Progress

app = typer.Typer(
    help="Break your own cluster on purpose, and see what becomes of its streams.",
    no_args_is_help=True,
)

E = TypeVar("E", bound=StrEnum)

_KINDS = "kill,freeze"
_TARGETS = "instance"

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="instance, gateway, head, agent, shim, ray; or the name of an instance or gateway.",
        autocompletion=complete_process,
    ),
]
HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="host, for any; or the name of one.")
]
UnitArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="instance or gateway; or the name of one.",
        autocompletion=complete_process,
    ),
]
ForOption = Annotated[
    float | None,
    typer.Option("--for", parser=parse_duration, metavar="DURATION", help="How long."),
]
StreamsOption = Annotated[
    int, typer.Option("--streams", min=1, max=256, metavar="N", help="Streams at a time beside it.")
]
CountOnlyOption = Annotated[
    bool,
    typer.Option(
        "--count-only", help="Count tokens only: for models that answer differently each time."
    ),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Also the last instance of a model, or the only gateway.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="For what is kept; default: chaos-DATE in this directory."
    ),
]


@app.callback()
def _root() -> None:
    """One fault, or a plan of many."""


@app.command("kill")
@command
def kill(
    target: TargetArgument = "instance",
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """SIGKILL a process while streams run; exit code 8 if any is not what it should be.

    Example: llx chaos kill instance-0
    """
    session = Session(context_name=context, output_name=output)
    plan = _one("kill", target, None, streams, count_only=count_only, hits_last=hits_last)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


@app.command("freeze")
@command
def freeze(
    target: TargetArgument = "instance",
    for_s: ForOption = None,
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """SIGSTOP a process, and SIGCONT after a while (15 s).

    It is continued by its own host, whatever becomes of this command.
    """
    session = Session(context_name=context, output_name=output)
    plan = _one("freeze", target, for_s, streams, count_only=count_only, hits_last=hits_last)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


@app.command("slow")
@command
def slow(
    target: TargetArgument = "instance",
    for_s: ForOption = None,
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Let a process run a quarter of the time, for a while (10 s)."""
    session = Session(context_name=context, output_name=output)
    plan = _one("slow", target, for_s, streams, count_only=count_only, hits_last=hits_last)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


@app.command("partition")
@command
def partition(
    host: HostArgument = "host",
    for_s: ForOption = None,
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Cut a host off from the cluster's other hosts for a while (15 s).

    Takes nftables there, and root or sudo without a password. SSH from elsewhere goes on.
    """
    session = Session(context_name=context, output_name=output)
    plan = _one("partition", host, for_s, streams, count_only=count_only, hits_last=hits_last)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


@app.command("restart")
@command
def restart(
    target: UnitArgument = "instance",
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Restart an instance or a gateway as `llx inst restart` does.

    No stream on an instance may fail by it.
    """
    session = Session(context_name=context, output_name=output)
    plan = _one("restart", target, None, streams, count_only=count_only, hits_last=hits_last)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


@app.command("run")
@command
def run(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A plan; default: one that is drawn from the seed."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of a drawn plan.")] = 1,
    faults: Annotated[
        int, typer.Option("--faults", min=1, max=10_000, metavar="N", help="Of a drawn plan.")
    ] = 10,
    kinds: Annotated[
        str,
        typer.Option("--kinds", metavar="KIND,…", help="kill, freeze, slow, partition, restart"),
    ] = _KINDS,
    targets: Annotated[
        str,
        typer.Option(
            "--targets",
            metavar="ROLE,…",
            help="instance, gateway, head, agent, shim, ray, host",
        ),
    ] = _TARGETS,
    streams: StreamsOption = 4,
    count_only: CountOnlyOption = False,
    hits_last: AllOption = False,
    model: ModelOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Do many faults, one after another, and judge what became of all streams.

    Example: llx chaos run --seed 7 --faults 20 --kinds kill,freeze,slow

    Each fault waits until the cluster has recovered from the one before. With an --out that has a
    plan already, goes on where that was interrupted. Exit code 8 if the verdict is not good.
    """
    from llx.chaos.plan import ChaosPlan, FaultKind, Role, Traffic, draw_faults, load_plan
    from llx.chaos.record import RunDirectory

    session = Session(context_name=context, output_name=output)
    if file is not None:
        plan = load_plan(file)
    elif out is not None and RunDirectory(out).has_begun:
        plan = RunDirectory(out).plan()
    else:
        drawn = draw_faults(
            seed, faults, _words(FaultKind, kinds, "--kinds"), _words(Role, targets, "--targets")
        )
        traffic = Traffic(streams=streams, compares_tokens=not count_only)
        plan = ChaosPlan(seed=seed, hits_last=hits_last, traffic=traffic, faults=drawn)
    _go(session, plan, model, out, is_dry_run=dry_run, is_yes=yes)


def _words(kind: type[E], text: str, option: str) -> list[E]:
    try:
        return [kind(each.strip()) for each in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _one(
    kind: str,
    target: str,
    for_s: float | None,
    streams: int,
    *,
    count_only: bool,
    hits_last: bool,
) -> "ChaosPlan":
    """A plan of one fault.

    Raises:
        ConfigError: It cannot be done.
    """
    from pydantic import ValidationError

    from llx.chaos.plan import ChaosPlan, Fault, FaultKind, Traffic
    from llx.errors import ConfigError

    try:
        fault = Fault(kind=FaultKind(kind), target=target, for_s=for_s)
    except ValidationError as error:
        words = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{kind} {target}: {words}") from None
    traffic = Traffic(streams=streams, compares_tokens=not count_only)
    return ChaosPlan(hits_last=hits_last, traffic=traffic, faults=[fault])


def _go(
    session: Session,
    plan: "ChaosPlan",
    model: str | None,
    out: Path | None,
    *,
    is_dry_run: bool,
    is_yes: bool,
) -> None:
    """Ask, do, show, judge."""
    import time

    from llx.chaos.preflight import check_partitions
    from llx.chaos.record import RunDirectory
    from llx.chaos.run import run_plan
    from llx.chaos.victims import check_possible, choose
    from llx.cli.chaos_tables import print_verdict
    from llx.cli.render import emit
    from llx.errors import CheckError

    with session.control() as control:
        status = control.status()
    on_hosts = bool(session.cluster().hosts)
    for fault in plan.faults:
        check_possible(fault, on_hosts=on_hosts)
    if len(plan.faults) == 1:  # with more of them, who is there then is known then
        choose(plan.faults[0], status, model or "", hits_last=plan.hits_last, on_hosts=on_hosts)
    if is_dry_run:
        _show_plan(session, plan, status.cluster)
        return
    what = f"{len(plan.faults)} faults" if len(plan.faults) > 1 else str(plan.faults[0].kind)
    question = f"{what} on {status.cluster}: streams of others may end. Go on?"
    confirm(session, question, is_yes=is_yes)
    directory = RunDirectory(out or Path(f"chaos-{time.strftime('%Y%m%d-%H%M%S')}"))
    with contextlib.ExitStack() as stack:
        grounds = grounds_of(session, stack)
        check_partitions(plan, {name: place.hand for name, place in grounds.places.items()})
        gateways = session.gateways(status, timeout_s=plan.traffic.silence_s)
        for each in gateways.values():
            stack.enter_context(each)
        name = the_model(next(iter(gateways.values())), model)
        directory.begin(plan)
        session.err.print(f"kept in: {directory.path}", soft_wrap=True)
        with shown(session) as observe:
            verdict = run_plan(grounds, gateways, name, directory, observe)
    emit(
        session.out,
        session.output,
        verdict,
        ["passed" if verdict.is_passed else "failed"],
        lambda _: print_verdict(session.out, verdict),
    )
    if not verdict.is_passed:
        raise CheckError(
            f"{len(verdict.problems)} problems: {verdict.problems[0]}",
            detail="\n".join(verdict.problems[1:10]),
        )


def _show_plan(session: Session, plan: "ChaosPlan", cluster: str) -> None:
    if session.output is OutputFormat.JSON:
        session.out.file.write(plan.model_dump_json(indent=2) + "\n")
    else:
        for number, each in enumerate(plan.faults, 1):
            lasts = f" for {each.lasts_s:g} s" if each.lasts_s else ""
            beside = f" beside {each.burst} streams more" if each.burst else ""
            line = f"{number}  after {each.after_s:g} s: {each.kind} {each.target}{lasts}{beside}"
            session.out.print(line, markup=False, soft_wrap=True)
    session.err.print(f"nothing was changed on {cluster}")


@contextlib.contextmanager
def shown(session: Session) -> "Iterator[Observe]":
    """A line that says how far it is; where there is no terminal, one for each fault."""
    if not session.err.is_terminal:
        said: set[tuple[int, str]] = set()

        def say(progress: "Progress") -> None:
            if (progress.number, progress.doing) not in said:
                said.add((progress.number, progress.doing))
                session.err.print(_where(progress), markup=False, soft_wrap=True)

        yield say
        return
    with session.err.status("starting") as line:
        yield lambda progress: line.update(_where(progress))


def _where(progress: "Progress") -> str:
    fault = f"fault {progress.number} of {progress.total}, " if progress.number else ""
    return (
        f"{fault}{progress.doing}: "
        f"{progress.streams} streams ended, {progress.failed} of them early"
    )
