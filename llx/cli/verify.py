"""`llx verify`: promises of llx, checked on the operator's own hardware and model."""

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.generate import the_model
from llx.cli.parameters import ContextOption, ModelOption, OutputOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from llx.bench.verify import Observe, Progress, Verdict

app = typer.Typer(help="Check llx's promises on your own cluster.", no_args_is_help=True)

_LENGTHS = "16,128,512"


@app.callback()
def _root() -> None:
    """Several things can be verified; so far one is."""


@app.command("migration")
@command
def migration(
    model: ModelOption = None,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="N,N,…", help="A request per prompt length.")
    ] = _LENGTHS,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=8, metavar="N", help="Length of each answer.")
    ] = 128,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=64, metavar="N", help="Requests at a time.")
    ] = 1,
    moves: Annotated[
        int, typer.Option("--moves", min=1, metavar="N", help="Repeat until so many have moved.")
    ] = 20,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.0,
    output: OutputOption = None,
    context: ContextOption = None,
) -> None:
    """Compare answers of requests that moved with those that did not; measure what moves cost.

    The same requests run twice, the second time moved back and forth between the model's instances
    all the while. Every move compares the KV cache at both ends, and every token must be the same.
    With several requests at once, engines of low precision may answer differently from one run to
    the next without any migration. Exit code 8 if anything differs or nothing could move.
    """
    from llx.bench.verify import Load, verify
    from llx.cli.render import emit

    lengths = _lengths(prompts)
    session = Session(context_name=context, output_name=output)
    with session.control() as control, session.gateway() as gateway:
        load = Load(
            the_model(gateway, model),
            lengths,
            max_tokens,
            at_once,
            temperature=temperature,
            is_checked=True,
            moves=moves,
        )
        with shown(session, len(lengths)) as observe:
            verdict = verify(gateway, control, load, observe)
    emit(
        session.out,
        session.output,
        verdict,
        [load.model],
        lambda _: print_verdict(session.out, verdict),
    )
    check(verdict)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(each) for each in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or len(found) > 1000:
        raise typer.BadParameter(f'"{text}": numbers of tokens with commas between, as {_LENGTHS}')
    return found


@contextlib.contextmanager
def shown(session: Session, total: int) -> "Iterator[Observe]":
    """A line that says how far the runs are, on a terminal."""
    if not session.err.is_terminal:
        yield lambda _: None
        return
    with session.err.status("starting") as line:

        def observe(progress: "Progress") -> None:
            line.update(
                f"{progress.phase}: {progress.done} of {total} requests, {progress.tokens} tokens"
                + (f", {progress.moved} moves" if progress.moved else "")
            )

        yield observe


def print_verdict(console: "Console", verdict: "Verdict") -> None:
    """The verdict as a table."""
    from rich.table import Table

    from llx.cli.render import print_table

    word = "differ" if verdict.mismatched_tokens else "the same"
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, value in (
        (
            "tokens",
            f"{word}, {verdict.mismatched_tokens} of them" if verdict.mismatched_tokens else word,
        ),
        ("requests", f"{verdict.requests}, {verdict.failed} failed"),
        ("moves", f"{verdict.migrated} moved, {verdict.kept} kept"),
        ("KV cache", f"differed in {verdict.differing_kv} moves"),
        ("downtime", _two(verdict.downtime_ms_p50, verdict.downtime_ms_p95, " ms")),
        ("ITL", _one(verdict.itl_ms_p50, " ms")),
        ("stall", _two(verdict.stall_ms_p50, verdict.stall_ms_p95, " ms")),
        ("stall / ITL", _two(verdict.stall_over_itl_p50, verdict.stall_over_itl_p95, "")),
    ):
        grid.add_row(title, value)
    print_table(console, grid)


def _one(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f}{unit}"


def _two(median: float | None, high: float | None, unit: str) -> str:
    return f"p50 {_one(median, unit)}, p95 {_one(high, unit)}"


def check(verdict: "Verdict") -> None:
    """Whether requests moved and nothing changed by it.

    Raises:
        CheckError: Says what is wrong.
    """
    from llx.errors import CheckError

    if verdict.failed:
        raise CheckError(f"{verdict.failed} requests failed: {verdict.reasons[0]}")
    if verdict.differing_kv:
        raise CheckError(f"the KV cache differed in {verdict.differing_kv} moves")
    if verdict.mismatched_tokens:
        raise CheckError(f"{verdict.mismatched_tokens} tokens differ between the runs")
    if not verdict.migrated:
        why = f": {verdict.reasons[0]}" if verdict.reasons else ""
        raise CheckError(f"nothing moved{why}")
