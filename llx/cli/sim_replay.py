"""`llx sim replay`: a recording through the scheduler."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from llx.core.scheduler.config import PoolConfig
    from llx.recording import Recording
    from llx.sim.replay import Choice, Compared, Replayed

EXAMPLE = "Example: llx sim replay --from-cluster --policy llumnix"


@command
def replay(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A recording; may be gzipped.")
    ] = None,
    is_from_cluster: Annotated[
        bool,
        typer.Option("--from-cluster", help="The recording of a running cluster's scheduler."),
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME", help="Ask this policy instead, and compare."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Ask by these rules, as a scenario has them."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="Policies expect of a step what `llx calibrate` has measured.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg|png", help="Draw the course of the recording."),
    ] = None,
    context: ContextOption = None,
    output: OutputOption = None,
) -> None:
    """Feed a recording to the scheduler: the same commands, byte for byte, or exit code 8.

    Of a running cluster it is what its head keeps: from its beginning on, up to 64 MiB.

    With --policy, --config or --profile: which dispatches would have been others. That is no
    simulation: the events, loads among them, stay those that followed from what was recorded;
    another policy would have met others. Moves and instances that only the other policy wants do
    not come about. `llx sim run` tells what would have become of the requests.
    """
    from llx.cli.out_file import check_writable
    from llx.sim.report import pictures

    if (file is None) is not is_from_cluster:
        raise typer.BadParameter("give a FILE, or --from-cluster")
    if context is not None and not is_from_cluster:
        raise typer.BadParameter("--context belongs to --from-cluster")
    session = Session(context, output)
    rules = _rules(policy, config, profile, plot)
    if plot is not None:
        pictures().kind_of(plot)
        check_writable(plot)
    if file is not None:
        _replay(session, file, rules, plot)
        return
    with TemporaryDirectory(prefix="llx-") as folder:
        path = Path(folder) / f"{session.context().name}.jsonl"
        with session.control_to_read() as control, path.open("wb") as into:
            control.recording(None, into)
        _replay(session, path, rules, plot)


def _replay(
    session: Session,
    file: Path,
    rules: "Callable[[PoolConfig], PoolConfig] | None",
    plot: Path | None,
) -> None:
    """Ask the scheduler as it is, or by other rules, and show what comes of it."""
    from llx.cli.sim_output import progress
    from llx.recording import Recording
    from llx.scheduling_settings import installed_policies
    from llx.sim.replay import Compared, compare
    from llx.sim.replay import replay as replayed
    from llx.sim.report import pictures
    from llx.sim.timeline import Timeline

    policies, recording, timeline = installed_policies(), Recording(file), Timeline()
    with progress(session.err, None, "events") as bar:
        watch = partial(bar, file.name)
        seen = (
            replayed(recording, policies, watch, timeline.observe if plot else None)
            if rules is None
            else compare(recording, policies, rules, watch)
        )
    if plot is not None:
        pictures().save(plot, [pictures().timeline_drawing(timeline, file.name)])
    if isinstance(seen, Compared):
        _emit_compared(session, recording, seen)
    else:
        _emit_replayed(session, recording, seen)


def _rules(
    policy: str | None, config: Path | None, profile: Path | None, plot: Path | None
) -> "Callable[[PoolConfig], PoolConfig] | None":
    """What is to be asked instead of what was recorded; None: nothing."""
    from dataclasses import replace

    from llx.sim.overrides import PolicyRules
    from llx.sim.profile import load_profile
    from llx.yaml_reader import read_yaml

    is_other = policy is not None or config is not None or profile is not None
    if (policy is not None and config is not None) or (plot is not None and is_other):
        raise typer.BadParameter("one of --policy, --config and --plot can be given")
    if not is_other:
        return None
    rules = PolicyRules.model_validate({"from": policy})
    if config is not None:
        rules = read_yaml(config, PolicyRules)
    if profile is None:
        return rules.instead
    expected = load_profile(profile).step_time.value()
    return lambda pool: replace(rules.instead(pool), step_time=expected)


def _emit_replayed(session: Session, recording: "Recording", seen: "Replayed") -> None:
    from llx.cli.render import emit
    from llx.errors import CheckError

    def show(_is_wide: bool) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in seen.commands.items())
        result = "the same commands" if seen.difference is None else "the same commands so far"
        session.out.print(
            f"{seen.events} events of {seen.duration_s:.1f} s, recorded by {seen.origin} of llx "
            f"{seen.llx_version}: {result} ({counts or 'none'})"
        )

    emit(session.out, session.output, seen, [str(recording.path)], show)
    if seen.stopped is not None:
        session.err.print(f"the recording ends early: {seen.stopped}")
    if seen.difference is not None:
        each = seen.difference
        raise CheckError(
            f"{recording.path}:{each.line}: {each.event} at {each.at_s:.6f} s has other commands",
            detail=f"expected {each.expected}\ngot      {each.got}",
        )


def _emit_compared(session: Session, recording: "Recording", seen: "Compared") -> None:
    from llx.cli.render import Column, emit, print_table, table

    def show(_is_wide: bool) -> None:
        session.out.print(
            f"{seen.requests} requests: {seen.same} to the same instance, {seen.elsewhere} "
            f"elsewhere, {seen.only_recorded} only as recorded, {seen.only_other} only otherwise"
        )
        for title, counts in (
            ("recorded", seen.recorded_commands),
            ("otherwise", seen.other_commands),
        ):
            words = ", ".join(f"{count} {name}" for name, count in counts.items())
            session.out.print(f"{title + ':':11}{words or 'no command'}")
        if seen.first:
            columns: list[Column[Choice]] = [
                Column("request", lambda row: row.request),
                Column("at s", lambda row: f"{row.at_s:.3f}", is_number=True),
                Column("recorded", lambda row: row.recorded),
                Column("otherwise", lambda row: row.other),
            ]
            print_table(session.out, table(columns, seen.first))

    emit(session.out, session.output, seen, [str(recording.path)], show)
