"""`llx sim plan`: how many instances."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import OutputOption, parse_duration
from llx.cli.session import Session
from llx.cli.sim_options import (
    CvOption,
    HeadroomOption,
    HighOption,
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

if TYPE_CHECKING:
    from llx.cli.render import Column
    from llx.sim.figures import Interval
    from llx.sim.sizing import Size, Target

EXAMPLE = (
    "Example: llx sim plan --workload m-m --rate 7.4 --slo ttft_p99=2s --slo tpot_p99=100ms "
    "--policy infaas --policy llx --seeds 0-2"
)


@command
def plan(
    file: ScenarioArgument = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            "--slo",
            metavar="FIGURE=TIME",
            help="ttft, tpot or e2e, with _mean, _p50, _p90 or _p99, of all requests or of a "
            "class: ttft_p99=2s, high:tpot_mean=80ms. All of them are to be met.",
        ),
    ] = None,
    max_instances: Annotated[
        int, typer.Option("--max-instances", min=1, metavar="N", help="At most so many.")
    ] = 64,
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
    policy: PolicyOption = None,
    seeds: SeedsOption = None,
    profile: ProfileOption = None,
    output: OutputOption = None,
) -> None:
    """Find the fewest instances that meet SLOs, for each policy.

    The search takes for granted that more instances do not make it worse; what it finds has met
    every SLO with every seed. Exit code 8 if no policy has enough.
    """
    from llx.cli.render import emit, print_table, table
    from llx.cli.sim_output import progress
    from llx.errors import CheckError
    from llx.scheduling_settings import installed_policies
    from llx.sim.flags import Flags, planned
    from llx.sim.run import prepare
    from llx.sim.sizing import sizes

    session, policies = Session(output_name=output), installed_policies()
    targets = _targets(slo or [])
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
        policies=tuple(policy) if policy else None,
        seeds=seeds,
        profile=profile,
    )
    wanted = planned(file, flags)
    supply = prepare(wanted, policies)
    say_left_out(session, supply)
    with progress(session.err, None, "runs") as watch:
        found = sizes(wanted, supply, policies, targets, max_instances, watch)

    def show(is_wide: bool) -> None:
        columns = _columns(targets, has_rates=len(wanted.rates) > 1, most=max_instances)
        print_table(session.out, table(columns, found, is_wide=is_wide))
        limits = ", ".join(f"{each.text} at most {_time(each.limit_s)}" for each in targets)
        session.err.print(f"{limits}; with the instances that are enough, means over seeds")

    emit(session.out, session.output, found, [each.policy for each in wanted.variants], show)
    if all(each.instances is None for each in found):
        raise CheckError(f"{max_instances} instances are not enough, whatever the policy")


def _targets(texts: list[str]) -> "list[Target]":
    from llx.sim.sizing import Target

    if not texts:
        raise typer.BadParameter("say what is to be met: --slo ttft_p99=2s")
    targets = []
    for text in texts:
        figure, is_split, limit = text.partition("=")
        if not is_split:
            raise typer.BadParameter(f'"{text}" is no SLO: write ttft_p99=2s')
        targets.append(Target.parse(figure, parse_duration(limit)))
    return targets


def _columns(targets: "list[Target]", *, has_rates: bool, most: int) -> "list[Column[Size]]":
    from llx.cli.render import Column

    def by_seed(size: "Size") -> str:
        return " ".join("-" if each is None else str(each) for each in size.by_seed)

    def reached(index: int) -> "Column[Size]":
        def cell(size: "Size") -> str:
            return _cell(size.reached[index].value) if size.reached else "-"

        return Column(targets[index].text, cell, is_number=True)

    columns: list[Column[Size]] = [
        Column("policy", lambda size: size.policy),
        Column(
            "instances",
            lambda size: f"> {most}" if size.instances is None else str(size.instances),
            is_number=True,
        ),
        *map(reached, range(len(targets))),
        Column("by seed", by_seed),
    ]
    if has_rates:
        columns.insert(0, Column("rate", lambda size: f"{size.rate or 0:g}", is_number=True))
    return columns


def _cell(value: "Interval") -> str:
    if value.high is None:
        return _time(value.mean)
    return f"{_time(value.mean)} ±{_time(value.high - value.mean)}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
