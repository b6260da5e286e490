"""`llx scale`: how many instances a model has."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.completing import complete_model
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, OutputOption, YesOption
from llx.cli.session import Session, agreed

if TYPE_CHECKING:
    from llx.api import ModelStatus, ScaleRequest


@command
def scale(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Default: show all.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="So many from now on.", show_default=False)
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", metavar="A", help="Never fewer.", show_default=False)
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--max", metavar="B", help="Never more; the load decides between the two."),
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Change how many instances a model has; without a number, show it.

    A number fixes it; --min and --max have the scheduler choose. What is one too many is emptied by
    moving its requests, then ended. It holds until the next `llx up FILE` that says otherwise.
    """
    from llx.api import ScaleRequest
    from llx.errors import ConfigError

    session = Session(context_name=context, output_name=output)
    is_range = least is not None or most is not None
    if number is not None and is_range:
        raise ConfigError("a number, or --min and --max; not both", remedy="llx scale --help")
    if model is None or (number is None and not is_range):
        if model is None and is_range:
            raise ConfigError("--min and --max are of a MODEL", remedy="llx scale --help")
        _list(session, model)
        return
    request = ScaleRequest(
        min=least if number is None else number,
        max=most if number is None else number,
        user=session.user,
    )
    _scale(session, model, request, is_dry_run=dry_run, is_yes=yes)


def _scale(
    session: Session, model: str, request: "ScaleRequest", *, is_dry_run: bool, is_yes: bool
) -> None:

    with session.control() as control:
        plan = control.scale(model, request.model_copy(update={"is_dry_run": True}))
        question = f"Scale {model}?"
        if not agreed(session, plan.changes, question, is_dry_run=is_dry_run, is_yes=is_yes):
            return
        report = control.scale(model, request)
    _show(session, [report.model])


def _list(session: Session, model: str | None) -> None:
    from llx.yaml_reader import no_such

    with session.control() as control:
        models = control.status().models
    found = [each for each in models if model in (None, each.name)]
    if model is not None and not found:
        raise no_such("model", model, [each.name for each in models])
    _show(session, found)


def _show(session: Session, models: "list[ModelStatus]") -> None:
    from llx.cli.render import emit, print_table, table
    from llx.cli.tables import scale_columns

    emit(
        session.out,
        session.output,
        models,
        [each.name for each in models],
        lambda is_wide: print_table(session.out, table(scale_columns(), models, is_wide=is_wide)),
    )
