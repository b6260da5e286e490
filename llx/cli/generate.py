"""`llx generate`."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
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
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='The question; "-": stdin.')],
    model: ModelOption = None,
    max_tokens: MaxTokensOption = None,
    priority_class: ClassOption = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0)] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print words as they come.")
    ] = True,
    url: UrlOption = None,
    context: ContextOption = None,
) -> None:
    """Ask once, and print the answer."""
    from llx.openai_client import ChatRequest, Message

    session = Session(context_name=context, url_flag=url)
    question = sys.stdin.read() if prompt == "-" else prompt
    with session.gateway() as gateway:
        request = ChatRequest(
            model=the_model(gateway, model),
            messages=(Message("user", question),),
            max_tokens=max_tokens,
            temperature=temperature,
            priority_class=priority_class,
        )
        began = time.monotonic()
        if stream:
            _, tokens, instance = stream_answer(gateway, request)
        else:
            answer = gateway.chat(request)
            tokens, instance = answer.output_tokens, answer.instance
            sys.stdout.write(answer.text)
        sys.stdout.write("\n")
        if session.err.is_terminal:
            note = f"{tokens} tokens in {time.monotonic() - began:.1f} s, {instance}"
            session.err.print(note, style="dim")


def the_model(gateway: "OpenAIClient", name: str | None) -> str:
    """`name`, or the only model served.

    Raises:
        ConfigError: There are several.
    """
    from llx.errors import ConfigError, NotFoundError

    if name is not None:
        return name
    served = gateway.models()
    if not served:
        raise NotFoundError(f"no model is served at {gateway.url}", remedy="llx status")
    if len(served) > 1:
        raise ConfigError(
            f"several models are served: {', '.join(served)}", remedy=f"--model {served[0]}"
        )
    return served[0]


def stream_answer(gateway: "OpenAIClient", request: "ChatRequest") -> tuple[str, int, str]:
    """Print an answer as it comes; return its text, its number of tokens and who gave it."""
    words: list[str] = []
    tokens = 0
    with gateway.stream_chat(request) as stream:
        for chunk in stream.chunks:
            words.append(chunk.text)
            tokens = chunk.output_tokens
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        return "".join(words), tokens, stream.instance
