"""A load client light enough to share two cores with what it measures.

HTTP/1.1 over plain asyncio streams, one connection per request slot, SSE events counted as they
arrive. Times are of this process's monotonic clock, in seconds.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sample:
    """One streamed completion: when each event came, and the tokens the server counted."""

    ttft_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    output_tokens: int = 0


class Client:
    """One connection to a server."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def __aenter__(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def complete(self, model: str, prompt: list[int], max_tokens: int) -> Sample:
        """Stream one greedy completion.

        Raises:
            RuntimeError: The server did not answer 200, or counted other than `max_tokens`.
        """
        body = json.dumps(
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        start = last = time.perf_counter()
        self._writer.write(head.encode() + body)
        status = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n", 1)[0]:
            raise RuntimeError(status.decode(errors="replace"))
        sample = Sample()
        async for event in self._events():
            now = time.perf_counter()
            if b'"choices":[]' in event:
                sample.output_tokens = json.loads(event[6:])["usage"]["completion_tokens"]
            elif event.startswith(b"data: {"):
                if sample.ttft_s == 0.0:
                    sample.ttft_s = now - start
                else:
                    sample.gaps_s.append(now - last)
                last = now
        if sample.output_tokens != max_tokens:
            raise RuntimeError(f"{sample.output_tokens} tokens instead of {max_tokens}")
        return sample

    async def _events(self):
        """The lines of a chunked response, to its end."""
        pending = b""
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            *lines, pending = (pending + chunk[:-2]).split(b"\n")
            for line in lines:
                if line:
                    yield line


async def closed_loop(
    host: str, port: int, model: str, prompts: list[list[int]], max_tokens: int, concurrency: int
) -> tuple[float, list[Sample]]:
    """Run all prompts, `concurrency` at a time; returns elapsed seconds and the samples."""
    queue = iter(prompts)
    samples: list[Sample] = []

    async def slot() -> None:
        async with Client(host, port) as client:
            samples.extend([await client.complete(model, each, max_tokens) for each in queue])

    start = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    return time.perf_counter() - start, samples
