"""Clients that stream, one request after the other, while a model is rolled out."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.e2e.rig import Cluster

TOKENS = 200


@dataclass
class Load:
    """What clients asked and got: greedy streams of a prompt each, compared with the first ones."""

    http: httpx.AsyncClient
    prompts: list[str]
    expected: dict[str, list[list[int]]] = field(default_factory=dict)
    """By prompt, what streams may say: of each model that served it undisturbed."""
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    streams: int = 0

    async def learn(self) -> None:
        """Have every prompt answered by what serves now, with nothing in its way."""
        found = await asyncio.gather(*[self._stream(prompt) for prompt in self.prompts])
        for prompt, tokens in zip(self.prompts, found, strict=True):
            assert len(tokens) == TOKENS
            self.expected.setdefault(prompt, []).append(tokens)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A client for each prompt meanwhile; in the end all streams are read to their end."""
        is_over = asyncio.Event()
        clients = [asyncio.create_task(self._client(each, is_over.is_set)) for each in self.prompts]
        try:
            yield
        finally:
            is_over.set()
            await asyncio.gather(*clients)

    async def _client(self, prompt: str, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.streams += 1
            try:
                tokens = await self._stream(prompt)
            except (httpx.HTTPError, AssertionError) as error:
                self.failed.append(f"{prompt}: {error!r}")
                continue
            if tokens not in self.expected[prompt]:
                self.wrong.append(f"{prompt}: {tokens}")

    async def _stream(self, prompt: str) -> list[int]:
        body = {
            "model": "oracle", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True,
            "temperature": 0, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        tokens, is_done = [], False
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                is_done = is_done or data == "[DONE]"
                if data.startswith("{"):
                    piece = json.loads(data)
                    assert "error" not in piece, piece
                    for choice in piece["choices"]:
                        tokens += choice.get("token_ids") or []
        assert is_done, "it was broken off"
        return tokens


async def roll_out(cluster: Cluster, *words: str) -> dict:
    """`llx rollout oracle WORDS`, seen to its end; returns how it went."""
    words = ("rollout", "oracle", *words, "--steady", "1s", "--wait", "-y", "-o", "json")
    done = await asyncio.to_thread(cluster.llx, *words, timeout_s=1200)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    return found
