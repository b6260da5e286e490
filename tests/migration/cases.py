"""What is asked of the models, by way of the OpenAI API; and one answer, read as a stream."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import openai

AT_ONCE = 8

_rng = random.Random(11)


def prompt(length: int, rng: random.Random = _rng) -> list[int]:
    return [rng.randrange(3, 540) for _ in range(length)]


GREEDY = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 42, "max_tokens": 80, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 30, "maxLength": 60},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 4,
                 "maxItems": 6},
    },
    "required": ["name", "ok", "tags"],
    "additionalProperties": False,
}  # fmt: skip

PLAIN: dict[str, dict[str, Any]] = {
    f"greedy {length}": {"prompt": prompt(length), **GREEDY}
    for length in (5, 31, 32, 64, 150, 333, 700, 1200, 2000)
}
FEATURES: dict[str, dict[str, Any]] = {
    "seeded": {"prompt": prompt(50), **SAMPLED},
    "seeded, penalties": {
        "prompt": prompt(90),
        **SAMPLED,
        "presence_penalty": 0.8,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.1,
    },
    "stop strings": {"prompt": prompt(25), **GREEDY, "max_tokens": 160, "stop": ["zzqx", "qzj"]},
    "stop token": {"prompt": prompt(28), **GREEDY, "max_tokens": 160, "stop_token_ids": [259]},
    "logprobs": {"prompt": prompt(40), **GREEDY, "logprobs": 3},
    "min_tokens, bias": {
        "prompt": prompt(33),
        "temperature": 0,
        "max_tokens": 80,
        "min_tokens": 60,
        "logit_bias": {"2": 5},
    },
    "regex": {"prompt": prompt(20), **GREEDY, "regex": "([a-z]{3,9} ){12}done"},
    "json schema": {"prompt": prompt(22), "temperature": 0, "max_tokens": 300, "json": SCHEMA},
    "n=2": {"prompt": prompt(60), **SAMPLED, "n": 2},
}
LONG: dict[str, dict[str, Any]] = {"greedy 3000": {"prompt": prompt(3000), **GREEDY}}
PROMPTS = [9, 1, 202, 303, 4, 501, 602, 7, 801, 902, 10, 1103, 1203, 13, 1405, 1502]
"""Seeds of prompts. In float32 a greedy stream goes elsewhere where its best two tokens are as good
as equal: of a thousand tokens that are computed again in another batch one is, sooner or later (it
was seen with 0.0008 nats between them, without any move). After these the least lead of all 1,200
tokens is 0.003 to 0.015 nats.
"""
STREAMS: dict[str, dict[str, Any]] = {
    f"stream {number}": {
        "prompt": prompt(150 + 25 * number, random.Random(PROMPTS[number])),
        **(SAMPLED | {"seed": number} if number % 3 == 1 else GREEDY),
        "max_tokens": 1200,
    }
    for number in range(16)
}
"""Long enough to be moved, cut off and drained while they go on."""

_OWN = {
    "ignore_eos", "min_tokens", "repetition_penalty", "stop_token_ids", "regex", "json",
}  # fmt: skip


@dataclass
class Choice:
    """One of the answers to one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[float] = field(default_factory=list)


@dataclass
class Answer:
    choices: dict[int, Choice]
    prompt_tokens: int
    completion_tokens: int


def client_of(url: str) -> openai.AsyncOpenAI:
    """Waits for a connection as long as for an answer: beside engines this process may stand
    still for more than the five seconds that the library gives it.
    """
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)


async def ask(client: openai.AsyncOpenAI, model: str, case: dict[str, Any]) -> Answer:
    """Ask, and read the stream to its end.

    Raises:
        openai.OpenAIError: It failed.
    """
    extra = {key: value for key, value in case.items() if key in _OWN}
    structured = {key: extra.pop(key) for key in ("regex", "json") if key in extra}
    if structured:
        extra["structured_outputs"] = structured
    stream = await client.completions.create(
        model=model,
        **{key: value for key, value in case.items() if key not in _OWN},
        stream=True,
        stream_options={"include_usage": True},
        extra_body={**extra, "return_token_ids": True},
    )
    choices: dict[int, Choice] = {}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for piece in chunk.choices:
            choice = choices.setdefault(piece.index, Choice())
            choice.token_ids += getattr(piece, "token_ids", None) or []
            choice.text += piece.text
            choice.finish_reason = piece.finish_reason or choice.finish_reason
            if piece.logprobs is not None:
                choice.logprobs += piece.logprobs.token_logprobs
    assert usage is not None, "the stream ended without its usage"
    return Answer(choices, usage.prompt_tokens, usage.completion_tokens)


async def answers(
    url: str, model: str, cases: dict[str, Any], at_once: int = AT_ONCE
) -> dict[str, Answer]:
    async with client_of(url) as client:
        slots = asyncio.Semaphore(at_once)

        async def one(case: dict[str, Any]) -> Answer:
            async with slots:
                return await ask(client, model, case)

        found = await asyncio.gather(*map(one, cases.values()))
    return dict(zip(cases, found, strict=True))
