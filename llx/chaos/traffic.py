"""Greedy streams that go on while faults are done, each compared with what it should say."""

import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from llx.chaos.integrity import (
    Flaw,
    StreamEnd,
    StreamRecord,
    find_flaw,
    find_miscount,
    longest_pause,
)
from llx.chaos.plan import Traffic
from llx.errors import CheckError, DeadlineError, LlxError
from llx.openai_client import CompletionRequest, OpenAIClient

_FIRST_ID, _NUM_IDS = 10, 240
"""Prompts are of these token ids: every vocabulary has them, and no control token is among them."""
_USAGE: Final = {"stream_options": {"include_usage": True}}
_REST_S: Final = 0.5
"""After a stream that failed: nobody is served by asking a dead gateway again at once."""

Tokens = tuple[int, ...]
Gateways = Mapping[str, OpenAIClient]


def prompts_of(traffic: Traffic, seed: int) -> list[Tokens]:
    """The prompts of a seed."""
    rng = random.Random(f"prompts {seed}")
    lengths = [traffic.prompt_tokens] * traffic.prompts
    return [tuple(_FIRST_ID + rng.randrange(_NUM_IDS) for _ in range(n)) for n in lengths]


def take_references(
    gateway: OpenAIClient, model: str, traffic: Traffic, prompts: Sequence[Tokens]
) -> list[Tokens]:
    """What the model says to each prompt while nothing is wrong; asked one by one and at once.

    Raises:
        CheckError: It says something else each time, so that nothing could be compared.
        LlxError: A request fails.
    """

    def ask(prompt: Tokens) -> Tokens:
        request = _request(model, prompt, traffic, f"chaos-reference-{secrets.token_hex(6)}")
        return tuple(
            token for piece in gateway.stream_completion(request) for token in piece.token_ids
        )

    alone = [ask(prompt) for prompt in prompts]
    if not traffic.compares_tokens:
        return alone
    with ThreadPoolExecutor(traffic.streams) as pool:
        together = list(pool.map(ask, prompts))
    differing = sum(a != b for a, b in zip(alone, together, strict=True))
    if differing:
        raise CheckError(
            f"{model} answers {differing} of {len(prompts)} prompts in another way the second "
            "time, with nothing done to it",
            remedy="float32, or traffic.compares_tokens: false (--count-only) to count tokens only",
        )
    return alone


class StreamTraffic:
    """So many streams at a time until it is told to end.

    Args:
        gateways: To be asked in turn, by name.
        model: To ask for.
        traffic: How much.
        prompts: What is asked in turn.
        references: What should be answered to each.
        on_stream: Told of each stream that has ended, on any thread.
    """

    def __init__(
        self,
        gateways: Gateways,
        model: str,
        traffic: Traffic,
        prompts: Sequence[Tokens],
        references: Sequence[Tokens],
        on_stream: Callable[[StreamRecord], None],
    ) -> None:
        self.prefix = f"chaos-{secrets.token_hex(4)}"
        self.tokens = 0
        self._gateways = gateways
        self._model = model
        self._traffic = traffic
        self._cases = list(zip(prompts, references, strict=True))
        self._on_stream = on_stream
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name=f"stream-{n}", daemon=True)
            for n in range(traffic.streams)
        ]
        self._burst: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        for each in self._threads:
            each.start()

    def burst(self, count: int, limit_s: float) -> None:
        """So many streams more, once each; returns when each has said a token, or has ended.

        Raises:
            DeadlineError: They have not in time.
        """
        begun, first = threading.Semaphore(0), len(self._burst)
        new = [
            threading.Thread(target=self._run_once, args=(n, begun), name=f"burst-{n}", daemon=True)
            for n in range(first, first + count)
        ]
        self._burst += new
        for each in new:
            each.start()
        deadline = time.monotonic() + limit_s
        for missing in range(count, 0, -1):
            if not begun.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise DeadlineError(
                    f"{missing} of {count} streams say nothing within {limit_s:g} s",
                    remedy="a smaller burst",
                )

    def finish(self) -> None:
        """Begin no other stream, and wait for those under way."""
        self._is_over.set()
        for each in [*self._threads, *self._burst]:
            each.join()

    def abandon(self) -> None:
        """Begin no other stream; those under way end with this process, and are not kept."""
        self._is_over.set()

    def _run(self, thread: int) -> None:
        turn = 0
        while not self._is_over.is_set():
            number = turn * len(self._threads) + thread
            record = self._stream(f"{self.prefix}-{number}x", number)
            self._on_stream(record)
            turn += 1
            if record.end is not StreamEnd.COMPLETE:
                self._is_over.wait(_REST_S)

    def _run_once(self, number: int, begun: threading.Semaphore) -> None:
        said: list[None] = []

        def on_token() -> None:
            if not said:
                said.append(None)
                begun.release()

        record = self._stream(f"{self.prefix}-b{number}x", number, on_token)
        on_token()
        self._on_stream(record)

    def _stream(
        self, name: str, number: int, on_token: Callable[[], None] = lambda: None
    ) -> StreamRecord:
        """One, through the gateway and of the prompt whose turn it is at this number."""
        names, case = sorted(self._gateways), number % len(self._cases)
        gateway = names[number % len(names)]
        prompt, reference = self._cases[case]
        request = _request(self._model, prompt, self._traffic, name)
        began_at, end, error = time.time(), StreamEnd.COMPLETE, ""
        got: list[int] = []
        times: list[float] = []
        usage: int | None = None
        finish_reason: str | None = None
        try:
            for piece in self._gateways[gateway].stream_completion(request):
                if piece.token_ids:
                    got.extend(piece.token_ids)
                    times.append(piece.at)
                    self.tokens += len(piece.token_ids)
                    on_token()
                finish_reason = piece.finish_reason or finish_reason
                usage = usage if piece.usage is None else piece.usage
        except DeadlineError as failure:
            end, error = StreamEnd.SILENT, failure.message
        except LlxError as failure:
            end, error = StreamEnd.FAILED, failure.message
        is_whole = end is StreamEnd.COMPLETE
        flaw: tuple[Flaw, int] | None = None
        if self._traffic.compares_tokens:
            flaw = find_flaw(got, reference, is_whole=is_whole)
        miscounted = ""
        if is_whole:
            miscounted = find_miscount(
                tokens=len(got),
                wanted=self._traffic.output_tokens,
                usage=usage,
                finish_reason=finish_reason,
            )
        return StreamRecord(
            id=name, gateway=gateway, began_at=began_at, ended_at=time.time(), end=end,
            tokens=len(got), flaw=flaw and flaw[0], flaw_at=flaw and flaw[1],
            miscounted=miscounted, error=error, pause_s=round(longest_pause(times), 4),
        )  # fmt: skip


def _request(model: str, prompt: Tokens, traffic: Traffic, name: str) -> CompletionRequest:
    """Its prefix-cache blocks are its own: what is recovered is computed, not found."""
    return CompletionRequest(
        model,
        prompt,
        traffic.output_tokens,
        request_id=name,
        cache_salt=name,
        extra=_USAGE,
    )
