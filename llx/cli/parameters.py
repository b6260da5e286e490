"""Options that several verbs share."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llx.choices import OutputFormat

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Engine(StrEnum):
    """What runs a model; the words of `llx.specs.EngineKind`."""

    VLLM = "vllm"
    SIM = "sim"


def parse_duration(text: str | float) -> float:
    """Seconds of ``60s``, ``2m``, ``1h30m``, ``500ms``, or of a plain number.

    Raises:
        typer.BadParameter: It is none.
    """
    words = str(text).strip()
    parts = _DURATION_PART.findall(words)
    if parts and "".join(number + unit for number, unit in parts) == words:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    try:
        seconds = float(words)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise typer.BadParameter(f'"{text}" is no duration: write 60s, 2m, 1h30m or 500ms')
    return seconds


def complete_process(incomplete: str) -> list[str]:
    """Names of processes of the clusters here, for the shell."""
    from llx.environment import Environment

    found = Environment.current().clusters_dir.glob(f"*/procs/{incomplete}*/shim.json")
    return sorted({each.parent.name for each in found})


def complete_cluster(incomplete: str) -> list[str]:
    """Names of the clusters here, for the shell."""
    from llx.environment import Environment

    found = Environment.current().clusters_dir.glob(f"{incomplete}*/")
    return sorted(each.name for each in found)


ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME",
        help="The cluster meant; default: the one that is up, or was last.",
        autocompletion=complete_cluster,
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file", metavar="FILE", help="The hosts of this cluster.yaml, not of a known cluster."
    ),
]
OutputOption = Annotated[
    OutputFormat | None, typer.Option("-o", "--output", help="How to print; default: table.")
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
]
DeadlineOption = Annotated[
    float,
    typer.Option(
        "--deadline",
        parser=parse_duration,
        metavar="DURATION",
        help="What cannot move may go on so long; then it is cut.",
        show_default="60s",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Of a gateway; default: the cluster's own."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Default: the only one served.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer.")
]
ClassOption = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="Priority class of the request.")
]
TailOption = Annotated[
    int, typer.Option("--tail", min=0, metavar="N", help="Begin with so many last lines.")
]
FollowOption = Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is added.")]
ProcessOption = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="head, gateway-0, an instance or a host.",
        autocompletion=complete_process,
    ),
]
StoryOption = Annotated[
    str | None,
    typer.Option(
        "--request",
        metavar="ID",
        help="Of one request, by any of its ids: all that is in any log of the cluster.",
    ),
]
