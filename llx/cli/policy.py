"""`llx policy`: the rules by which requests are placed and moved."""

from typing import TYPE_CHECKING, Annotated

import typer

from llx.choices import OutputFormat
from llx.cli.completing import complete_model
from llx.cli.failures import command
from llx.cli.parameters import ContextOption, OutputOption, parse_duration
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import PolicyList
    from llx.client import Cluster

app = typer.Typer(
    help="The scheduler's rules: show, change, pause.",
    no_args_is_help=True,
)

PoolOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Only of this model.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
RulesDryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Change nothing; say what would have been decided otherwise lately."
    ),
]
OverOption = Annotated[
    float,
    typer.Option(
        "--over",
        parser=parse_duration,
        metavar="DURATION",
        help="With --dry-run: look back so far; 0: not at all. Some 5 to 10 minutes are recorded.",
        show_default="5m",
    ),
]
_OVER_S = 300.0


@app.command("show")
@command
def show(
    model: PoolOption = None, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Show how requests are placed and moved, and what was changed of cluster.yaml's rules."""
    session = Session(context_name=context, output_name=output)
    with session.control_to_read() as control:
        _show(session, control.policies(), model)


@app.command(
    "set",
    epilog="Example: llx policy set dispatch=round_robin rescheduling.steps='[balance]' --dry-run",
)
@command
def set_(
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE",
            help="Keys of a model's `scheduling` in cluster.yaml, values in YAML.",
            show_default=False,
        ),
    ],
    model: PoolOption = None,
    dry_run: RulesDryRunOption = False,
    over: OverOption = _OVER_S,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Change rules of the running cluster; they hold until `llx policy revert`.

    With --dry-run they are asked what they would have decided over the last minutes, on the loads
    and requests as they were: which requests would have gone elsewhere, waited, moved.
    """
    from llx.errors import ConfigError

    parsed: dict[str, str] = {}
    for each in changes:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise ConfigError(f'"{each}" is not KEY=VALUE', remedy="llx policy show")
        parsed[key] = value
    _update(model, parsed, output, context, over, is_revert=False, is_dry_run=dry_run)


@app.command("revert")
@command
def revert(
    model: PoolOption = None,
    dry_run: RulesDryRunOption = False,
    over: OverOption = _OVER_S,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Go back to the rules of cluster.yaml."""
    _update(model, {}, output, context, over, is_revert=True, is_dry_run=dry_run)


@app.command("pause")
@command
def pause(
    model: PoolOption = None, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Move and scale nothing by rule until `llx policy resume`; requests are placed as ever."""
    _steer("pause", model, output, context)


@app.command("resume")
@command
def resume(
    model: PoolOption = None, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Move requests and scale models by rule again."""
    _steer("resume", model, output, context)


@app.command("step")
@command
def step(
    model: PoolOption = None, output: OutputOption = None, context: ContextOption = None
) -> None:
    """Make one round of moves and scaling by rule, also when paused."""
    _steer("step", model, output, context)


def _update(
    model: str | None,
    changes: dict[str, str],
    output: OutputOption,
    context: ContextOption,
    over_s: float,
    *,
    is_revert: bool,
    is_dry_run: bool,
) -> None:
    from llx.api import PolicyUpdate

    session = Session(context_name=context, output_name=output)
    update = PolicyUpdate(
        model=model or "",
        changes=changes,
        is_revert=is_revert,
        is_dry_run=is_dry_run,
        user=session.user,
    )
    with session.control() as control:
        found = control.update_policies(update)
        if not is_dry_run:
            _show(session, found, model)
            return
        _forecast(session, control, found, model, over_s)
    session.err.print("nothing was changed: --dry-run", markup=False)


def _forecast(
    session: Session,
    control: "Cluster",
    found: "PolicyList",
    model: str | None,
    over_s: float,
) -> None:
    """The rules as they would be, and what they would have decided lately."""
    from llx.cli.policy_dry_run import compare_lately, show_comparison
    from llx.sim.policy_change import PolicyForecast

    compared = compare_lately(session, control, found, over_s) if over_s > 0 else None
    _show(session, PolicyForecast(policies=found.policies, comparison=compared), model)
    if compared is not None and session.output in {OutputFormat.TABLE, OutputFormat.WIDE}:
        show_comparison(session, compared, over_s)


def _steer(verb: str, model: str | None, output: OutputOption, context: ContextOption) -> None:
    session = Session(context_name=context, output_name=output)
    with session.control() as control:
        _show(session, control.steer(verb, model or "", user=session.user), model)


def _show(session: Session, found: "PolicyList", model: str | None) -> None:
    from llx.cli.render import emit, print_table, table
    from llx.cli.scheduling_tables import policy_columns, policy_rows
    from llx.yaml_reader import no_such

    policies = [each for each in found.policies if model in (None, each.model)]
    if not policies:
        raise no_such("model", str(model), [each.model for each in found.policies])
    emit(
        session.out,
        session.output,
        found.model_copy(update={"policies": policies}),
        [each.model for each in policies],
        lambda is_wide: print_table(
            session.out, table(policy_columns(), policy_rows(policies), is_wide=is_wide)
        ),
    )
