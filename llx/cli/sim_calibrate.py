"""`llx sim calibrate`: a device and a model that nobody has run yet, from measured kernels."""

from pathlib import Path
from typing import Annotated

import typer

from llx.cli.failures import command
from llx.cli.session import Session

EXAMPLE = (
    "Example: llx sim calibrate dense.csv attention.csv per_sequence.csv --layers 32 "
    "--out engine.yaml && llx sim run engine.yaml --workload l-l --rate 5"
)

_FILE = {"exists": True, "dir_okay": False, "show_default": False}


@command
def calibrate(
    dense: Annotated[
        Path,
        typer.Argument(metavar="DENSE", help="CSV: layer, tokens, time_us.", **_FILE),
    ],
    attention: Annotated[
        Path,
        typer.Argument(
            metavar="ATTENTION",
            help="CSV: prefill_chunk, kv_prefill, n_decode, kv_decode, time_us.",
            **_FILE,
        ),
    ],
    per_sequence: Annotated[
        Path,
        typer.Argument(metavar="PER_SEQUENCE", help="CSV: layer, sequences, time_us.", **_FILE),
    ],
    layers: Annotated[
        int, typer.Option("--layers", metavar="N", min=1, help="Decoder layers of the model.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the scenario here, not to stdout."),
    ] = None,
) -> None:
    """Fit an engine's step times to kernel profiles, and write them as a scenario's engine.

    The tables are those of LLMServingSim's profiler (plain or gzipped), times in microseconds. A
    step's time is taken for that of its kernels: what a real engine does besides (scheduling,
    launches) is not in them.
    """
    import yaml

    from llx.cli.out_file import write_result
    from llx.sim.calibration import fit_step_time
    from llx.sim.kernel_profiles import kernel_samples
    from llx.sim.scenario import StepPart

    session = Session()
    fit = fit_step_time(kernel_samples(dense, attention, per_sequence, layers))
    step = StepPart.of(fit.step_time).model_dump(exclude_defaults=True)
    text = yaml.safe_dump({"engine": {"prefill_first": False, "step": step}}, sort_keys=False)
    if out is None:
        session.out.print(text, end="", highlight=False, markup=False, soft_wrap=True)
    else:
        write_result(out, text)
    session.err.print(
        f"{fit.num_samples} steps; half of them are within {fit.error:.1%} of what was measured, "
        f"95% within {fit.error_p95:.0%}"
    )
