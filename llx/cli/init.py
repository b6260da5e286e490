"""`llx init`."""

from pathlib import Path
from typing import Annotated

import typer

from llx.cli.failures import command


@command
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.")] = Path("cluster.yaml"),
    hosts: Annotated[
        str | None,
        typer.Option("--hosts", metavar="A,B,…", help="Machines, as `ssh` would be given them."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented cluster.yaml.

    Every key, its default, what it means.
    """
    from llx.errors import ConflictError, LlxError
    from llx.settings import example_cluster, example_with_hosts

    names = [each.strip() for each in (hosts or "").split(",") if each.strip()]
    text = example_with_hosts(names) if names else example_cluster()
    try:
        with file.open("w" if force else "x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise ConflictError(f"{file} is there already", remedy="--force replaces it") from None
    except OSError as error:
        raise LlxError(f"cannot write {file}: {error.strerror}") from None
    typer.echo(f"{file}")
    first = f"llx doctor {file}" if names else f"llx up {file} --dry-run"
    typer.echo(f"next: edit it, then {first}", err=True)
