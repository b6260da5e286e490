"""`llx completion`."""

from enum import StrEnum
from typing import Annotated

import typer

from llx.cli.failures import command

_VARIABLE = "_LLX_COMPLETE"


class Shell(StrEnum):
    """Shells that can be completed in."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command
def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL")]) -> None:
    """Print a completion script: bash, zsh or fish.

    For example: source <(llx completion bash)
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="llx", complete_var=_VARIABLE, shell=shell))
