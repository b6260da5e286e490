"""`llx calibrate`: what steps and moves of a running cluster cost, as a profile."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_model
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption, YesOption, parse_duration
from llx.cli.session import Session, confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llx.bench.calibrate import Calibrated
    from llx.bench.step_watch import StepWatch
    from llx.client import Cluster
    from llx.sim.profile import Profile

EXAMPLE = (
    "Example: llx calibrate --load --apply -y --out profile.yaml && "
    "llx sim run --profile profile.yaml --rate 2 --instances 4"
)
_LOAD_S = 60.0


@command
def calibrate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Default: the only one there is.", autocompletion=complete_model
        ),
    ] = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load/--passive",
            help="Drive a load made for this through the gateway; or see what others ask for.",
        ),
    ] = False,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            parser=parse_duration,
            metavar="DURATION",
            help="Of the load, 60s; or watch so long, besides what instances remember.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The profile; default: with the cluster's state."
        ),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Have the cluster's policies expect these step times."),
    ] = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Measure what steps and moves of a model's instances cost, for simulator and scheduler.

    Instances remember their last steps. What those do not cover is not fitted but named, exit code
    8; --load covers it: prompts of all lengths, alone and many at a time, in the least urgent
    class, and moves to and fro where there are two instances. Errors are of steps held out.
    """
    from llx.bench.calibrate import fit, watch_for
    from llx.bench.step_watch import StepWatch
    from llx.cli.out_file import check_writable, write_result
    from llx.cli.render import emit

    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        name = _the_model(control, model)
        path = out or session.context().state_dir / f"profile-{name}.yaml"
        watch = StepWatch(control, name)
        check_writable(path)
        with _shown(session) as observe:
            if load:
                seconds = _LOAD_S if duration is None else duration
                question = (
                    f"put {len(watch.instances)} instances of {name} under load for {seconds:g} s?"
                )
                if not confirmed(session, question, is_yes=yes):
                    raise typer.Abort
                session.err.print(
                    f"load for {seconds:g} s on {', '.join(watch.instances)}", markup=False
                )
                _drive(session, control, watch, seconds, observe)
            else:
                watch_for(watch, duration or 0.0, observe)
        found = fit(watch)
        write_result(path, found.profile.text())
        if apply:
            _apply(session, control, found.profile)
    emit(session.out, session.output, found.profile, [str(path)], lambda _: _print(session, found))
    _remark(session, found, path, is_applied=apply)


def _the_model(control: "Cluster", name: str | None) -> str:
    from llx.errors import ConfigError

    if name is not None:
        return name
    models = [each.name for each in control.status().models]
    if len(models) != 1:
        raise ConfigError(
            f"which model? there are: {', '.join(models)}", remedy="llx calibrate MODEL"
        )
    return models[0]


def _drive(
    session: Session,
    control: "Cluster",
    watch: "StepWatch",
    seconds: float,
    observe: "Callable[[float, int], None]",
) -> None:
    import asyncio

    from llx.bench.calibration_load import CalibrationLoad
    from llx.bench.generator import Target
    from llx.cli.bench import gateway_of

    classes = session.cluster().priority_classes
    least = max(classes, key=lambda each: each.priority).name if classes else ""
    url, tls = gateway_of(session, control)
    key = session.environment.api_key
    target = Target(url, watch.size.model, key, silence_s=60 + seconds, tls=tls)
    driven = CalibrationLoad(target, control, watch, seconds, least, session.user)
    asyncio.run(driven.run(observe))


def _apply(session: Session, control: "Cluster", profile: "Profile") -> None:
    from llx.api import PolicyUpdate
    from llx.bench.calibrate import changes_of

    changes = changes_of(profile.step_time)
    control.update_policies(PolicyUpdate(model=profile.model, changes=changes, user=session.user))


@contextlib.contextmanager
def _shown(session: Session) -> "Iterator[Callable[[float, int], None]]":
    """A line that says how far it is, on a terminal."""
    if not session.err.is_terminal:
        yield lambda _gone, _steps: None
        return
    with session.err.status("starting") as line:
        yield lambda gone, steps: line.update(f"{gone:.0f} s, {steps} steps")


def _print(session: Session, found: "Calibrated") -> None:
    from rich.table import Table

    from llx.cli.render import print_table

    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, value in _lines(found):
        grid.add_row(title, value)
    print_table(session.out, grid)


def _lines(found: "Calibrated") -> "Iterator[tuple[str, str]]":
    """What is printed, a title and its words each."""
    profile = found.profile
    yield "model", profile.model
    yield from _fit_lines(profile)
    yield from _coverage_lines(profile)
    if profile.link.gateway_ms is not None:
        yield "gateway", f"{profile.link.gateway_ms:.3g} ms to the first token, beyond steps"
    for transport, link in profile.links.items():
        speed = f"{link.gb_per_s:.3g} GB/s, {link.overhead_ms:.3g} ms a copy"
        yield f"link {transport}", f"{speed}; {link.moves} moves, half within {link.error_p50:.1%}"
    for each in found.no_link:
        yield "link not fitted", each
    if len(found.by_instance) > 1:
        words = ", ".join(f"{name} {error:.1%}" for name, error in found.by_instance.items())
        yield "error by instance", words


def _fit_lines(profile: "Profile") -> "Iterator[tuple[str, str]]":
    fit, expects, step = profile.fit, profile.step_time, profile.engine.step
    assert step is not None, "it was fitted"
    yield "steps", f"{fit.steps}, of which {fit.held_out} were held out"
    for key, value in step.model_dump(exclude_defaults=True).items():
        name, _, unit = key.rpartition("_")
        yield f"  {name.replace('_', ' ')}", f"{value:.4g} {unit.replace('us', 'µs')}"
    yield "error", f"half within {fit.error_p50:.1%}, 95% within {fit.error_p95:.1%}"
    terms = (
        f"{expects.base_ms:.4g} ms + {expects.per_prefill_token_us:.4g} µs a prompt token + "
        f"{expects.per_request_us:.4g} µs a request + {expects.per_block_us:.4g} µs a block"
    )
    yield "policies expect", f"{terms}; half within {fit.prediction_error_p50:.1%}"
    yield "stalls left out", f"{fit.stalls} steps, {fit.stall_time_share:.1%} of the time"


def _coverage_lines(profile: "Profile") -> "Iterator[tuple[str, str]]":
    fit = profile.fit
    (low, high), (few, many) = fit.prompt_tokens, fit.requests_at_a_time
    short, long = fit.context_tokens
    yield "prompts in a step", f"{low:.0f} to {high:.0f} tokens"
    yield (
        "decoding at a time",
        f"{few:.0f} to {many:.0f} requests of {short:.0f} to {long:.0f} tokens",
    )
    yield "prompts beside decodes", f"{fit.prompts_beside_decodes or 'too few'} steps"


def _remark(session: Session, found: "Calibrated", path: Path, *, is_applied: bool) -> None:
    if found.unlike:
        session.err.print(
            f"warning: one model does not fit {', '.join(found.unlike)}: instances are not alike",
            markup=False,
        )
    session.err.print(f"profile: {path}", markup=False, soft_wrap=True)
    if is_applied:
        session.err.print(
            "policies expect these step times from now on; `llx policy revert` takes it back",
            markup=False,
        )
