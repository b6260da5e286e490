"""`llx sim`: the scheduler in virtual time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli import sim_calibrate, sim_plan, sim_replay
from llx.cli.failures import command
from llx.cli.session import Session
from llx.cli.sim_options import (
    CvOption,
    HeadroomOption,
    HighOption,
    InstancesOption,
    OutputsOption,
    PolicyOption,
    ProfileOption,
    RateOption,
    RequestsOption,
    ScaleRateOption,
    ScenarioArgument,
    SeedsOption,
    TraceFormatOption,
    TraceOption,
    WorkloadOption,
    say_left_out,
)
from llx.cli.sim_output import SimOutput, SimOutputOption

if TYPE_CHECKING:
    from llx.sim.figures import Row
    from llx.sim.plan import Plan

app = typer.Typer(help="Simulate a cluster under its real scheduler.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Several things can be done in virtual time."""


@app.command(
    "run",
    epilog="Example: llx sim run --workload m-m --rate 7.4 --policy infaas --policy llx "
    "--seeds 0-4 --report report.html",
)
@command
def run(
    scenario: ScenarioArgument = None,
    workload: WorkloadOption = None,
    trace: TraceOption = None,
    trace_format: TraceFormatOption = None,
    scale_rate: ScaleRateOption = None,
    outputs: OutputsOption = None,
    rate: RateOption = None,
    cv: CvOption = None,
    requests: RequestsOption = None,
    high: HighOption = None,
    headroom: HeadroomOption = None,
    instances: InstancesOption = None,
    policy: PolicyOption = None,
    seeds: SeedsOption = None,
    profile: ProfileOption = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, metavar="N", help="So many runs at a time.")
    ] = 1,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE|DIR", help="Record the scheduler, to be replayed."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="A page with figures and pictures."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg|png", help="The pictures alone."),
    ] = None,
    output: SimOutputOption = None,
) -> None:
    """Simulate a workload or a trace, policy by policy.

    Every policy gets the same requests. Without a scenario the cluster is the Llumnix paper's:
    LLaMA-7B, an A10 for each instance. Flags override what the scenario says.
    """
    from llx.cli.sim_output import progress
    from llx.scheduling_settings import installed_policies
    from llx.sim.figures import rows_of
    from llx.sim.flags import Flags, planned
    from llx.sim.onlookers import Wishes
    from llx.sim.report import pictures, write_report
    from llx.sim.run import prepare, simulate, simulate_on

    session, policies = _session(output), installed_policies()
    flags = Flags(
        mix=workload,
        trace=trace,
        trace_format=trace_format,
        scale_rate=scale_rate,
        outputs=outputs,
        rates=tuple(rate) if rate else None,
        cv=cv,
        requests=requests,
        high=high,
        headroom=headroom,
        instances=instances,
        policies=tuple(policy) if policy else None,
        seeds=seeds,
        profile=profile,
    )
    plan = planned(scenario, flags)
    has_pictures = _can_draw(report, plot)
    supply = prepare(plan, policies)
    say_left_out(session, supply)
    wishes = Wishes(record, has_timelines=has_pictures)
    with progress(session.err, supply.count * plan.num_runs, "requests") as watch:
        done = (
            list(simulate(plan, supply, policies, wishes, watch))
            if jobs == 1
            else simulate_on(jobs, plan, supply, wishes, watch)
        )
    for failure in filter(None, (each.failure for each in done)):
        session.err.print(f"warning: not all is recorded: {failure}")
    runs = [each.run for each in done]
    rows = rows_of(runs)
    if has_pictures:
        timelines = {each.run.policy: each.timeline for each in done if each.timeline}
        drawings = pictures().drawings(runs, rows, timelines)
        if plot is not None:
            pictures().save(plot, drawings)
        if report is not None:
            drawn = [pictures().as_svg(each) for each in drawings]
            write_report(report, plan, supply, rows, drawn)
    _emit(session, output, plan, rows)


def _can_draw(report: Path | None, plot: Path | None) -> bool:
    """Whether pictures are wanted. Whether they can be drawn and written is told at once."""
    from llx.cli.out_file import check_writable
    from llx.sim.report import pictures

    if plot is not None:
        pictures().kind_of(plot)
    elif report is not None:
        pictures()
    for path in filter(None, (plot, report)):
        check_writable(path)
    return report is not None or plot is not None


def _session(output: SimOutput | None) -> Session:
    """CSV is this noun's own; all else every verb knows."""
    from llx.choices import OutputFormat

    is_shared = output is not None and output is not SimOutput.CSV
    return Session(output_name=OutputFormat(str(output)) if is_shared else None)


def _emit(session: Session, output: SimOutput | None, plan: "Plan", rows: "list[Row]") -> None:
    from llx.cli.render import emit, print_table
    from llx.cli.sim_output import legend, rows_table, write_csv

    if output is SimOutput.CSV:
        write_csv(session.out.file, rows)
        return

    def show(is_wide: bool) -> None:
        print_table(session.out, rows_table(rows, is_wide=is_wide))
        session.err.print(legend(rows))

    emit(session.out, session.output, rows, [each.policy for each in plan.variants], show)


app.command("replay", epilog=sim_replay.EXAMPLE)(sim_replay.replay)
app.command("plan", epilog=sim_plan.EXAMPLE)(sim_plan.plan)
app.command("calibrate", epilog=sim_calibrate.EXAMPLE)(sim_calibrate.calibrate)
