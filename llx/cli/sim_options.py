"""Options that the verbs of `llx sim` share, and what follows from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.sim.supply import Supply

ScenarioArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE", help="A scenario (.yaml) or a trace; without, the paper's cluster."
    ),
]
WorkloadOption = Annotated[
    str | None,
    typer.Option(
        "--workload",
        metavar="MIX",
        help="Lengths: s-s, m-l, …, sharegpt-like or burstgpt-like. [m-m]",
    ),
]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Requests of a file instead.")
]
TraceFormatOption = Annotated[
    str | None,
    typer.Option(
        "--trace-format",
        metavar="NAME",
        help="azure, mooncake, burstgpt, sharegpt, timed, vllm-log, counts, vidur or recording; "
        "default: as the file looks.",
    ),
]
OutputsOption = Annotated[
    str | None,
    typer.Option(
        "--outputs",
        metavar="N|s|m|l",
        help="Tokens of the outputs of a recording, which does not say; s, m, l as the paper's.",
    ),
]
ScaleRateOption = Annotated[
    float | None,
    typer.Option("--scale-rate", metavar="X", help="The trace, so many times as fast."),
]
RateOption = Annotated[
    list[float] | None,
    typer.Option(
        "--rate",
        metavar="R",
        help="Requests a second, drawn; several are run one after the other. [7.4; a trace: its "
        "own times]",
    ),
]
CvOption = Annotated[
    float | None, typer.Option("--cv", help="Variation of drawn gaps; 1 is Poisson. [1]")
]
RequestsOption = Annotated[
    int | None,
    typer.Option("--requests", min=1, metavar="N", help="So many. [1000; all of a trace]"),
]
HighOption = Annotated[
    float | None, typer.Option("--high", min=0.0, max=1.0, help="Share of the class high.")
]
HeadroomOption = Annotated[
    int | None, typer.Option("--headroom", min=0, metavar="BLOCKS", help="Of the class high.")
]
InstancesOption = Annotated[
    int | None, typer.Option("--instances", min=1, metavar="N", help="How many. [16]")
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="round-robin, infaas, llumnix, llumnix-10, llx, or of the scenario; several may be "
        "given, the first is what the others are compared to.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="Engine and link as `llx calibrate` has measured them, instead of the scenario's.",
    ),
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", metavar="A-B", help="A run for each. [0]")
]


def say_left_out(session: Session, supply: "Supply") -> None:
    """Whether a trace has requests that cannot be simulated."""
    if supply.num_left_out:
        session.err.print(
            f"left out: {supply.num_left_out} requests that are longer than the engine takes; "
            f"{supply.count} are run"
        )
