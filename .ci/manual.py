#!/usr/bin/env python3
"""Writes man/*.1 from the command line itself: a page for `llx`, one for each of its verbs.

    .ci/manual.py [FOLDER]

A page has what `--help` says and nothing is kept up by hand; a noun's page (`llx-host.1`) has
all its verbs. The same command line gives the same bytes. Pages of verbs that are
no more are removed. Run by `make man`; `pytest --rewrite tests/packaging` does the same.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llx import __version__
from llx.cli.main import EPILOG, app

ROOT = Path(__file__).resolve().parents[1]
Verb = TyperCommand | TyperGroup
Context = Any
WIDE = 10_000  # columns: where a help text is broken is for the reader's terminal to say

ENVIRONMENT = [
    ("LLX_CONTEXT, LLX_OUTPUT, LLX_URL", "The cluster meant; how to print; which gateway to ask."),
    ("LLX_SSH_PERSIST", "Seconds for which a verb's SSH connection is kept for the next; 0: not."),
    ("LLX_API_KEY", "What is presented to a gateway that wants a key."),
    ("LLX_NODE_PREFIX", "The node environment to use instead of llx's own place."),
    ("LLX_DEBUG", "Show the traceback of an error."),
    ("NO_COLOR", "No colours."),
]
FILES = [
    ("./llx.yaml, $XDG_CONFIG_HOME/llx/config.yaml", "Options, the former before the latter."),
    ("$XDG_STATE_HOME/llx/clusters/", "A directory for each cluster."),
    ("$XDG_DATA_HOME/llx/", "Node environments and the tiny model."),
]


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    root = typer.main.get_group(app)
    context = root.context_class(root, info_name="llx", terminal_width=WIDE)
    found = {"llx.1": "".join(f"{line}\n" for line in main_page(root, context))}
    for name, verb in verbs(root):
        lines = [*head(f"llx-{name}", summary(verb)), *verb_page(verb, below(context, verb, name))]
        lines += [".SH SEE ALSO", ".BR llx (1)"]
        found[f"llx-{name}.1"] = "".join(f"{line}\n" for line in lines)
    return found


def verbs(group: TyperGroup) -> Iterator[tuple[str, Verb]]:
    yield from ((name, verb) for name, verb in group.commands.items() if not verb.hidden)


def below(context: Context, verb: Verb, name: str) -> Context:
    return verb.context_class(verb, info_name=name, parent=context, terminal_width=WIDE)


def main_page(root: TyperGroup, context: Context) -> Iterator[str]:
    yield from head("llx", "serve LLMs with vLLM from your own machines")
    yield from synopsis(root, context)
    yield ".SH DESCRIPTION"
    yield from paragraphs(root.help or "")
    yield from options(root, context, ".SH OPTIONS")
    yield ".SH COMMANDS"
    for name, verb in verbs(root):
        yield from item(f".BR llx\\-{escaped(name)} (1)", summary(verb))
    yield ".SH EXIT STATUS"
    yield from paragraphs(EPILOG.removeprefix("Exit codes: "))
    for title, rows in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        yield f".SH {title}"
        for term, meaning in rows:
            yield from item(f".B {escaped(term)}", meaning)
    yield ".SH SEE ALSO"
    yield from paragraphs("llx VERB --help says what the page of VERB does.")


def verb_page(verb: Verb, context: Context) -> Iterator[str]:
    if not isinstance(verb, TyperGroup):
        yield from synopsis(verb, context)
        yield ".SH DESCRIPTION"
        yield from paragraphs(verb.help or "")
        yield from options(verb, context, ".SH OPTIONS")
        yield from epilog(verb)
        return
    yield ".SH COMMANDS"
    for name, each in verbs(verb):
        inner = below(context, each, name)
        yield f".SS {escaped(inner.command_path)}"
        yield from usage(each, inner)
        yield ".PP"
        yield from paragraphs(each.help or "")
        yield from options(each, inner, None)
        yield from epilog(each)


def head(name: str, about: str) -> Iterator[str]:
    yield '.\\" Written by .ci/manual.py from what --help says.'
    yield f'.TH {name.upper()} 1 "" "llx {__version__}" "llx"'
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield f"{escaped(name)} \\- {escaped(about.rstrip('.'))}"


def synopsis(verb: Verb, context: Context) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield from usage(verb, context)


def usage(verb: Verb, context: Context) -> Iterator[str]:
    yield f".B {escaped(context.command_path)}"
    yield escaped(" ".join(verb.collect_usage_pieces(context)))


def options(verb: Verb, context: Context, title: str | None) -> Iterator[str]:
    records = (each.get_help_record(context) for each in verb.params)  # without --help
    rows = [row for row in records if row is not None]
    if rows and title:
        yield title
    for term, meaning in rows:
        yield from item(f".B {escaped(term)}", meaning)


def epilog(verb: Verb) -> Iterator[str]:
    if verb.epilog:
        yield ".PP"
        yield from paragraphs(verb.epilog)


def item(term: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield escaped(" ".join(meaning.split())) or "\\&"


def paragraphs(text: str) -> Iterator[str]:
    for number, each in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield escaped(" ".join(each.split()))


def summary(verb: Verb) -> str:
    """The first sentence or two of a help text, uncut, on one line."""
    return " ".join(re.split(r"\n\s*\n", (verb.help or "").strip())[0].split())


def escaped(text: str) -> str:
    """`text` as troff shows it: a hyphen that can be copied, and no line taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for old in folder.glob("*.1"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "man")
