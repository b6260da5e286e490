"""Streams that go on while something is done to the cluster, each checked to its last token."""

import ssl
import threading
import time
from types import TracebackType
from typing import Self

import openai

_PAUSE_S = 0.2


class NotLetInError(Exception):
    """The gateway has taken no request: it does not listen, or knows of no instance yet."""


class Traffic:
    """Streams one after another from several threads; every one must say exactly what it should.

    Args:
        url: Of a gateway.
        model: To ask for.
        cases: (prompt, the tokens that must come).
        threads: Streams at a time.
        authority: File of the certificate that the gateway's is to be signed by.
        waits: A gateway that is being replaced lets nobody in: it is asked until it does, and
            `not_let_in` has when it did not: asked and answered, in Unix seconds. What has begun
            must end well.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cases: list[tuple[list[int], list[int]]],
        threads: int = 2,
        authority: str = "",
        *,
        waits: bool = False,
    ) -> None:
        trusted = ssl.create_default_context(cafile=authority) if authority else True
        self._client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=600,  # for its handshake, too: a busy gateway has much to do
            http_client=openai.DefaultHttpxClient(verify=trusted),
        )
        self._model = model
        self._waits = waits
        self._cases = cases
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(threads)
        ]
        self.finished = 0
        self.failures: list[str] = []
        self.not_let_in: list[tuple[float, float]] = []

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
            asked = time.time()
            try:
                got = self.ask(prompt, len(wanted))
            except NotLetInError as error:
                if not self._waits:
                    self.failures.append(f"not let in: {error}")
                    return
                self.not_let_in.append((asked, time.time()))
                self._is_over.wait(_PAUSE_S)
                continue
            except openai.OpenAIError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            if got != wanted:
                self.failures.append(f"{len(got)} of {len(wanted)} tokens, or others")
            self.finished += 1
            number += 1
            self._is_over.wait(_PAUSE_S)  # streams without a gap would keep both cores from others

    def ask(self, prompt: list[int], length: int) -> list[int]:
        """One stream's tokens.

        Raises:
            NotLetInError: It has not begun, and may elsewhere.
        """
        try:
            stream = self._client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=length,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError as error:
            raise NotLetInError(repr(error.__cause__)) from None
        except openai.InternalServerError as error:
            if error.type == "ServiceUnavailable":  # of a request that was taken: another type
                raise NotLetInError(error.message) from None
            raise
        tokens: list[int] = []
        for chunk in stream:
            for choice in chunk.choices:
                tokens += getattr(choice, "token_ids", None) or []
        return tokens
