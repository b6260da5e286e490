"""A server that streams completions at a set pace and does nothing else, in a process of its own.

`python -m tests.bench.sse_server --itl-ms 50` prints the port it listens on. One ticker serves all
streams: token n of a request leaves about TTFT + n ITL after the request came.
"""

import argparse
import asyncio
import heapq
import json


class Pacer:
    """Calls back at set times, many in one turn of the loop."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, object]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def at(self, when: float, call) -> None:
        self._count += 1
        heapq.heappush(self._due, (when, self._count, call))
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(when, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time() + 0.0005
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        if self._due and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._due[0][0], self._turn)


class Streams(asyncio.Protocol):
    num_done = 0
    """Of all connections. The list of models tells it."""

    def __init__(self, pacer: Pacer, ttft_s: float, itl_s: float) -> None:
        self._pacer, self._ttft_s, self._itl_s = pacer, ttft_s, itl_s
        self._pending = b""

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        head_end = self._pending.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._pending[:head_end].lower()
        if head.startswith(b"get"):
            self._pending = b""
            found = {"data": [{"id": "mock"}], "done": Streams.num_done}
            body = json.dumps(found).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            return
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self._pending) < head_end + 4 + length:
            return
        body = json.loads(self._pending[head_end + 4 : head_end + 4 + length])
        self._pending = b""
        prompt = body["prompt"]
        self._num_prompt = len(prompt if isinstance(prompt, list) else prompt.split())
        self._left = self._total = body.get("max_tokens", 16)
        self._begin = asyncio.get_running_loop().time()
        self._is_begun = False
        self._pacer.at(self._begin + self._ttft_s, self._next)

    def _next(self) -> None:
        if self._transport.is_closing():
            return
        self._left -= 1
        done = self._total - self._left
        reason = "null" if self._left else '"length"'
        usage = (
            f'{{"prompt_tokens":{self._num_prompt},"completion_tokens":{done},'
            f'"total_tokens":{self._num_prompt + done}}}'
        )
        event = (
            f'data: {{"id":"cmpl-1","object":"text_completion","created":1,"model":"mock",'
            f'"choices":[{{"index":0,"text":" w","logprobs":null,"finish_reason":{reason}}}],'
            f'"usage":{usage}}}\n\n'
        )
        out = b""
        if not self._is_begun:
            self._is_begun = True
            out = (
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
        if self._left == 0:
            event += f'data: {{"choices":[],"usage":{usage}}}\n\ndata: [DONE]\n\n'
        out += b"%x\r\n%b\r\n" % (len(event), event.encode())
        if self._left == 0:
            out += b"0\r\n\r\n"
            Streams.num_done += 1
        else:
            self._pacer.at(self._begin + self._ttft_s + done * self._itl_s, self._next)
        self._transport.write(out)


async def serve(ttft_s: float, itl_s: float) -> None:
    pacer = Pacer()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Streams(pacer, ttft_s, itl_s), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    words = parser.parse_args()
    asyncio.run(serve(words.ttft_ms / 1000, words.itl_ms / 1000))


if __name__ == "__main__":
    main()
