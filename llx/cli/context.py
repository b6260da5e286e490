"""`llx context`: the clusters known here."""

from typing import Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import OutputOption, complete_cluster
from llx.cli.session import Session

app = typer.Typer(help="Clusters known here; --context NAME picks one.", no_args_is_help=True)


@app.command("ls")
@command
def ls(output: OutputOption = None) -> None:
    """List the clusters started here; * marks the one meant by default."""
    from pydantic import BaseModel

    from llx.bootstrap.contexts import contexts, pick_context
    from llx.cli.render import Column, age, emit, print_table, table

    class ContextStatus(BaseModel):
        name: str
        state: str
        is_default: bool
        changed_at: float
        state_dir: str

    session = Session(output_name=output)
    known = contexts(session.environment)
    default = pick_context(session.environment, session.options.context).name if known else ""
    rows = [
        ContextStatus(
            name=each.name,
            state="up" if each.is_up else "down",
            is_default=each.name == default,
            changed_at=each.changed_at,
            state_dir=str(each.state_dir),
        )
        for each in known
    ]
    columns: list[Column[ContextStatus]] = [
        Column("", lambda each: "*" if each.is_default else ""),
        Column("name", lambda each: each.name),
        Column("state", lambda each: each.state),
        Column("changed", lambda each: age(each.changed_at), is_number=True),
        Column("directory", lambda each: each.state_dir, is_wide_only=True),
    ]
    emit(
        session.out,
        session.output,
        rows,
        [each.name for each in rows],
        lambda is_wide: print_table(session.out, table(columns, rows, is_wide=is_wide)),
    )


@app.command("use")
@command
def use(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=complete_cluster, show_default=False)
    ],
) -> None:
    """Mean this cluster from now on, where --context says nothing."""
    from llx.bootstrap.contexts import choose_context

    session = Session()
    chosen = choose_context(session.environment, name)
    session.out.print(f"{chosen.name} is meant from now on", markup=False)
