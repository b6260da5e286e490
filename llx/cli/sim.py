"""`llx sim`: the scheduler in virtual time."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from rich.table import Table

    from llx.sim.run import Figure, Row

app = typer.Typer(help="Simulate a cluster under its real scheduler.", no_args_is_help=True)

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")


@app.callback()
def _root() -> None:
    """Several things can be simulated; so far one is."""


@app.command("run")
@command
def run(
    workload: Annotated[
        str, typer.Option("--workload", metavar="MIX", help="Lengths: s-s, m-m, l-l, s-l, l-s, …")
    ] = "m-m",
    rate: Annotated[float, typer.Option("--rate", metavar="R", help="Requests a second.")] = 7.4,
    cv: Annotated[float, typer.Option("--cv", help="Variation of gaps; 1 is Poisson.")] = 1.0,
    requests: Annotated[int, typer.Option("--requests", min=1, metavar="N")] = 1000,
    high: Annotated[
        float, typer.Option("--high", min=0.0, max=1.0, help="Share of urgent requests.")
    ] = 0.0,
    headroom: Annotated[
        int, typer.Option("--headroom", min=0, metavar="BLOCKS", help="Of the urgent class.")
    ] = 0,
    instances: Annotated[int, typer.Option("--instances", min=1, metavar="N")] = 16,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="round-robin, infaas, llumnix, llumnix-10 or llx; several may be given.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="A-B", help="Of the arrivals.")] = "0",
    output: OutputOption = None,
) -> None:
    """Run a workload of the Llumnix paper on simulated A10s with LLaMA-7B, policy by policy."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from llx.cli.render import emit, print_table
    from llx.sim.run import Plan, simulate

    session = Session(output_name=output)
    plan = Plan(
        workload=workload,
        rate=rate,
        num_requests=requests,
        num_instances=instances,
        policies=tuple(policy or ["llx"]),
        seeds=_seeds(seeds),
        cv=cv,
        high_share=high,
        headroom=headroom,
    )
    bars = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = requests * len(plan.policies) * len(plan.seeds)
    with Progress(*bars, console=session.err, transient=True) as progress:
        bar = progress.add_task("requests", total=total)
        rows = simulate(plan, lambda count: progress.update(bar, completed=count))
    emit(
        session.out,
        session.output,
        rows,
        plan.policies,
        lambda is_wide: print_table(session.out, _table(rows, is_wide=is_wide)),
    )


def _table(rows: "list[Row]", *, is_wide: bool) -> "Table":
    from llx.cli.render import Column, table

    def column(
        title: str, name: str, *, digits: int = 2, is_wide_only: bool = False
    ) -> "Column[Row]":
        def cell(row: "Row") -> str:
            figure: Figure = getattr(row, name)
            return f"{figure.mean:.{digits}f} ±{figure.error:.{digits}f}"

        return Column(title, cell, is_wide_only, is_number=True)

    columns: list[Column[Row]] = [
        Column("policy", lambda row: row.policy),
        column("request", "request_mean_s"),
        column("request p99", "request_p99_s", is_wide_only=True),
        column("prefill", "prefill_mean_s"),
        column("prefill p99", "prefill_p99_s"),
        column("decode", "decode_mean_s", digits=4),
        column("decode p99", "decode_p99_s", digits=4),
        column("loss", "preemption_loss_s", digits=3),
        column("moves", "moves", digits=0),
        column("instances", "instances", is_wide_only=True),
    ]
    return table(columns, rows, is_wide=is_wide)


def _seeds(text: str) -> tuple[int, ...]:
    match = _SEEDS.fullmatch(text)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise typer.BadParameter(f'"{text}" names no seeds: write 3 or 0-4')
    return tuple(range(int(match[1]), int(match[2] or match[1]) + 1))
