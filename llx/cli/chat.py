"""`llx chat`."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.generate import stream_answer, the_model
from llx.cli.parameters import (
    ClassOption,
    ContextOption,
    MaxTokensOption,
    ModelOption,
    UrlOption,
)
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.openai_client import ChatRequest, OpenAIClient


@command
def chat(
    model: ModelOption = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="Instructions to begin with.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    priority_class: ClassOption = None,
    url: UrlOption = None,
    context: ContextOption = None,
) -> None:
    """Talk with a model; /reset forgets, /quit ends. Piped in, each line is a turn."""
    from llx.openai_client import ChatRequest, Message

    session = Session(context_name=context, url_flag=url)
    opening = () if system is None else (Message("system", system),)
    with session.gateway() as gateway:
        name = the_model(gateway, model)
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            session.err.print(f"{name} at {gateway.url} · /reset forgets, /quit ends", style="dim")
        request = ChatRequest(name, opening, max_tokens=max_tokens, priority_class=priority_class)
        _converse(gateway, request, _turns(is_terminal))


def _converse(gateway: "OpenAIClient", opening: "ChatRequest", turns: Iterator[str]) -> None:
    from dataclasses import replace

    from llx.openai_client import Message

    history: tuple[Message, ...] = opening.messages
    for turn in turns:
        match turn.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                history = opening.messages
                sys.stderr.write("forgotten\n")
            case text:
                asked = (*history, Message("user", text))
                answer = _answer(gateway, replace(opening, messages=asked))
                if answer is not None:
                    history = (*asked, Message("assistant", answer))


def _answer(gateway: "OpenAIClient", request: "ChatRequest") -> str | None:
    """The answer; None when it was interrupted on a terminal, which ends the turn, not the chat."""
    try:
        text, _, _ = stream_answer(gateway, request)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        sys.stdout.write(" …\n")
        return None
    sys.stdout.write("\n")
    sys.stdout.flush()
    return text


def _turns(is_terminal: bool) -> Iterator[str]:
    if not is_terminal:
        yield from sys.stdin
        return
    import readline  # noqa: F401 - gives input() its editing keys

    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stderr.write("\n")
            return
