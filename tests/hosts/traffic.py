"""Streams that go on while something is done to the cluster, each checked to its last token."""

import threading
from types import TracebackType
from typing import Self

import openai


class Traffic:
    """Streams one after another from several threads; every one must say exactly what it should.

    Args:
        url: Of a gateway.
        model: To ask for.
        cases: (prompt, the tokens that must come).
        threads: Streams at a time.
    """

    def __init__(
        self, url: str, model: str, cases: list[tuple[list[int], list[int]]], threads: int = 2
    ) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self._model = model
        self._cases = cases
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(threads)
        ]
        self.finished = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for each in self._threads:
            each.join()
        self._client.close()

    def _run(self, number: int) -> None:
        while not self._is_over.is_set() and not self.failures:
            prompt, wanted = self._cases[number % len(self._cases)]
            try:
                got = self.ask(prompt, len(wanted))
            except openai.OpenAIError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            if got != wanted:
                self.failures.append(f"{len(got)} of {len(wanted)} tokens, or others")
            self.finished += 1
            number += 1

    def ask(self, prompt: list[int], length: int) -> list[int]:
        """One stream's tokens."""
        stream = self._client.completions.create(
            model=self._model,
            prompt=prompt,
            max_tokens=length,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        tokens: list[int] = []
        for chunk in stream:
            for choice in chunk.choices:
                tokens += getattr(choice, "token_ids", None) or []
        return tokens
