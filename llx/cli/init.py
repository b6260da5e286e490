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
        typer.Option("--hosts", metavar="A,B,…", help="Machines: [user@]host[:port] each."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented cluster.yaml.

    Every key, its default, what it means.
    """
    from llx.errors import ConflictError, LlxError
    from llx.settings import example_cluster, example_with_hosts

    if hosts is None:
        text = example_cluster()
    else:
        text = example_with_hosts([each.strip() for each in hosts.split(",") if each.strip()])
    try:
        with file.open("w" if force else "x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise ConflictError(f"{file} is there already", remedy="--force replaces it") from None
    except OSError as error:
        raise LlxError(f"cannot write {file}: {error.strerror}") from None
    typer.echo(f"{file}")
    first = f"llx up {file} --dry-run" if hosts is None else f"llx doctor {file}"
    typer.echo(f"next: edit it, then {first}", err=True)
