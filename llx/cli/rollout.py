"""`llx rollout`: a model's instances replaced by such that are started with something else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_model
from llx.cli.failures import command
from llx.cli.parameters import (
    ContextOption,
    DryRunOption,
    OutputOption,
    YesOption,
    parse_duration,
)
from llx.cli.rollout_request import make_request
from llx.cli.session import Session, agreed, confirm

if TYPE_CHECKING:
    from llx.api import RolloutRequest, RolloutStatus
    from llx.client import Cluster

_POLL_S = 0.5


@command
def rollout(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Default: show all.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Such as max_num_seqs=64, sim.step_base_ms=9; null: the default. Repeatable.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Other weights: directory or Hugging Face id.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="As this cluster.yaml says of the model."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Replace the instances though nothing differs.")
    ] = False,
    apart: Annotated[
        bool,
        typer.Option("--apart", help="As a generation of its own: no request moves to it."),
    ] = False,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            parser=parse_duration,
            metavar="DURATION",
            help="So long a replaced instance may have requests; then they are cut.",
            show_default="10m",
        ),
    ] = 600.0,
    steady: Annotated[
        float,
        typer.Option(
            "--steady",
            parser=parse_duration,
            metavar="DURATION",
            help="So long a new instance must serve before the next step.",
            show_default="3s",
        ),
    ] = 3.0,
    pause: Annotated[bool, typer.Option("--pause", help="Replace no more for now.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on; what has failed is started anew.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Go back to what was before.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is over.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Change engine arguments or weights of MODEL while it serves; without a change, show it.

    Instances are replaced one by one, their requests move off first. Where requests cannot move to
    the new ones (other weights, another layout), these are a generation of their own beside the
    former: it gets all new requests, and what runs may finish until the deadline. An instance that
    does not come up stops it; the former ones go on.
    """
    session = Session(context_name=context, output_name=output)
    has_change = bool(changes or weights or file or again or apart)
    verb = _verb(model, pause=pause, resume=resume, abort=abort, has_change=has_change)
    if wait and model is None:
        _refuse_without_model()
    if model is None or not (verb or has_change):
        _list(session, model, is_waiting=wait)
    elif verb:
        _steer(session, model, verb, is_dry_run=dry_run, is_yes=yes, is_waiting=wait)
    else:
        request = make_request(session, model, changes or [], weights, file)
        request = request.model_copy(
            update={
                "is_again": again,
                "is_apart": apart,
                "deadline_s": deadline,
                "steady_s": steady,
            }
        )
        _begin(session, model, request, is_dry_run=dry_run, is_yes=yes, is_waiting=wait)


def _verb(
    model: str | None, *, pause: bool, resume: bool, abort: bool, has_change: bool
) -> str | None:
    from llx.errors import ConfigError

    verbs = {"pause": pause, "resume": resume, "abort": abort}
    asked = [name for name, is_asked in verbs.items() if is_asked]
    if len(asked) + has_change > 1:
        raise ConfigError("one at a time: --pause, --resume, --abort, or a change")
    if model is None and (asked or has_change):
        _refuse_without_model()
    return asked[0] if asked else None


def _refuse_without_model() -> None:
    from llx.errors import ConfigError

    raise ConfigError("that is of a MODEL", remedy="llx rollout --help")


def _begin(
    session: Session,
    model: str,
    request: "RolloutRequest",
    *,
    is_dry_run: bool,
    is_yes: bool,
    is_waiting: bool,
) -> None:

    with session.control() as control:
        plan = control.rollout(model, request.model_copy(update={"is_dry_run": True}))
        question = f"Roll out {model}?"
        if not agreed(session, plan.changes, question, is_dry_run=is_dry_run, is_yes=is_yes):
            return
        if not plan.changes:
            _show(session, [plan.rollout])
            return
        found = control.rollout(model, request).rollout
        _end(session, control, found, is_waiting=is_waiting)


def _steer(
    session: Session, model: str, verb: str, *, is_dry_run: bool, is_yes: bool, is_waiting: bool
) -> None:
    from llx.errors import ConflictError

    with session.control() as control:
        if is_dry_run:
            found = _of(control, model)
            if found.state in ("", "done"):
                raise ConflictError(f"no rollout of {model} is under way")
            session.err.print("nothing was changed: --dry-run", markup=False)
            _show(session, [found])
            return
        question = f"Go back to what {model} was before?"
        if verb == "abort":
            confirm(session, question, is_yes=is_yes)
        found = control.steer_rollout(model, verb, user=session.user).rollout
        _end(session, control, found, is_waiting=is_waiting and verb != "pause")


def _end(session: Session, control: "Cluster", found: "RolloutStatus", *, is_waiting: bool) -> None:
    """Show it; first wait for its end if that is wanted."""
    from llx.errors import LlxError

    if is_waiting:
        found = _wait(session, control, found)
    _show(session, [found])
    if is_waiting and found.state in ("failed", "paused"):
        raise LlxError(
            f"the rollout of {found.model} is {found.state}: {found.reason or 'as asked for'}",
            remedy=f"llx rollout {found.model} --resume, or --abort",
        )


def _wait(session: Session, control: "Cluster", found: "RolloutStatus") -> "RolloutStatus":
    import time

    from llx.cli.scheduling_tables import rollout_text
    from llx.errors import ConflictError

    told = ""
    begun = found
    while found.state == "running":
        text = rollout_text(found)
        if text != told:
            session.err.print(text, markup=False, soft_wrap=True)
        told = text
        time.sleep(_POLL_S)
        found = _of(control, found.model)
        if found.begun_at != begun.begun_at:
            how = "gone back on" if found.is_back is not begun.is_back else "followed by another"
            raise ConflictError(
                f"the rollout of {found.model} was {how} by {found.user or 'somebody'}",
                remedy=f"llx rollout {found.model}",
            )
    return found


def _of(control: "Cluster", model: str) -> "RolloutStatus":
    from llx.yaml_reader import no_such

    found = {each.model: each for each in control.rollouts()}
    if model not in found:
        raise no_such("model", model, found)
    return found[model]


def _list(session: Session, model: str | None, *, is_waiting: bool) -> None:
    with session.control() as control:
        if model is None:
            _show(session, control.rollouts())
        else:
            _end(session, control, _of(control, model), is_waiting=is_waiting)


def _show(session: Session, found: "list[RolloutStatus]") -> None:
    from llx.cli.render import emit, print_table, table
    from llx.cli.scheduling_tables import rollout_columns

    emit(
        session.out,
        session.output,
        found,
        [each.model for each in found],
        lambda is_wide: print_table(session.out, table(rollout_columns(), found, is_wide=is_wide)),
    )
