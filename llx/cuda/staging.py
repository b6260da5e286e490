"""KV between a GPU and memory of the host, through two buffers on the GPU that take turns.

    gather    chunk 1  chunk 2  chunk 3           into buffer 1, 2, 1 …
    copy               chunk 1  chunk 2  chunk 3  from it, over the link, at the same time

Scattering goes the other way round. Both run on streams of their own, beside the engine's.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from llx.cuda.driver import Driver
from llx.cuda.tables import WAIT_S
from llx.errors import EngineError

STAGING_BYTES: Final = 4 << 20
"""Of each buffer; one block, if that is larger. Longer on the link than it takes to launch."""

Copy = Callable[[Sequence[int], int, int], None]
"""Starts a copy of blocks from or to an address on the GPU, on a stream."""

_Step = Callable[[Sequence[int], int, int, int], None]


class Staging:
    """The way between a GPU and its host, for one copy at a time. Any thread.

    What it needs is allocated when it is first used: a cache that is copied between GPUs alone
    never needs it. All methods wait until the copy is done; they raise `EngineError` when it
    failed. If it did not end in time either, the GPU may still be about to use the host's memory:
    that is kept for good then, and nothing can be copied any more.

    Args:
        driver: Of the GPU.
        block_bytes: Of one block.
    """

    def __init__(self, driver: Driver, block_bytes: int) -> None:
        self._driver = driver
        self._chunk = max(1, STAGING_BYTES // block_bytes)
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._streams: list[int] = []
        self._filled: list[int] = []  # an event of each buffer
        self._emptied: list[int] = []
        self._buffers: list[int] = []
        self._broken = ""
        self._kept: list[object] = []

    def to_host(self, blocks: Sequence[int], host: int, gather: Copy, memory: object) -> None:
        """Gather blocks and copy them to the host's address; `memory` keeps what lies there."""

        def fill(chunk: Sequence[int], _: int, buffer: int, stream: int) -> None:
            gather(chunk, buffer, stream)

        def empty(chunk: Sequence[int], begin: int, buffer: int, stream: int) -> None:
            size = len(chunk) * self._block_bytes
            self._driver.to_host(host + begin, buffer, size, stream)

        self._run(lambda: self._start(blocks, fill, empty), memory)

    def to_device(self, blocks: Sequence[int], host: int, scatter: Copy, memory: object) -> None:
        """The way back."""

        def fill(chunk: Sequence[int], begin: int, buffer: int, stream: int) -> None:
            size = len(chunk) * self._block_bytes
            self._driver.to_device(buffer, host + begin, size, stream)

        def empty(chunk: Sequence[int], _: int, buffer: int, stream: int) -> None:
            scatter(chunk, buffer, stream)

        self._run(lambda: self._start(blocks, fill, empty), memory)

    def whole_to_host(self, blocks: Iterable[int], host: int, memory: object) -> None:
        """Copy whole blocks, given by their addresses on the GPU, without a buffer between."""

        def start() -> None:
            for index, address in enumerate(blocks):
                target = host + index * self._block_bytes
                self._driver.to_host(target, address, self._block_bytes, self._streams[0])

        self._run(start, memory)

    def whole_to_device(self, blocks: Iterable[int], host: int, memory: object) -> None:
        """The way back."""

        def start() -> None:
            for index, address in enumerate(blocks):
                source = host + index * self._block_bytes
                self._driver.to_device(address, source, self._block_bytes, self._streams[0])

        self._run(start, memory)

    def close(self) -> None:
        """Free everything, unless a copy may still be under way."""
        with self._lock:
            if not self._broken:
                self._broken = "the KV cache is closed"
                self._free()

    def _run(self, start: Callable[[], None], memory: object) -> None:
        if not self._lock.acquire(timeout=WAIT_S):
            raise EngineError(f"{self._driver.gpu}: others have copied KV for {WAIT_S:g} s")
        try:
            if self._broken:
                raise EngineError(self._broken)
            self._prepare()
            try:
                start()
            finally:
                self._drain(memory)
        finally:
            self._lock.release()

    def _prepare(self) -> None:
        if self._streams:
            return
        driver = self._driver
        try:
            for _ in range(2):
                self._streams.append(driver.new_stream())
                self._filled.append(driver.new_event())
                self._emptied.append(driver.new_event())
        except EngineError:
            self._free()
            raise

    def _start(self, blocks: Sequence[int], fill: _Step, empty: _Step) -> None:
        """Put all chunks onto the streams: filling a buffer waits until it has been emptied."""
        driver = self._driver
        while len(self._buffers) < len(self._filled):
            self._buffers.append(driver.allocate(self._chunk * self._block_bytes))
        first, second = self._streams
        for index, begin in enumerate(range(0, len(blocks), self._chunk)):
            chunk = blocks[begin : begin + self._chunk]
            turn = index % len(self._buffers)
            driver.hold(first, self._emptied[turn])
            fill(chunk, begin * self._block_bytes, self._buffers[turn], first)
            driver.record(self._filled[turn], first)
            driver.hold(second, self._filled[turn])
            empty(chunk, begin * self._block_bytes, self._buffers[turn], second)
            driver.record(self._emptied[turn], second)

    def _drain(self, memory: object) -> None:
        """Wait for both streams, whatever has come onto them."""
        events = self._filled[0], self._emptied[0]
        try:
            for event, stream in zip(events, self._streams, strict=True):
                self._driver.record(event, stream)
            for event in events:
                self._driver.wait(event, WAIT_S)
        except EngineError as error:
            self._broken = f"copying KV to or from the host failed before: {error.message}"
            self._kept.append(memory)
            raise

    def _free(self) -> None:
        for event in self._filled + self._emptied:
            self._driver.free_event(event)
        for buffer in self._buffers:
            self._driver.free(buffer)
        for stream in self._streams:
            self._driver.free_stream(stream)
        for kept in (self._filled, self._emptied, self._buffers, self._streams):
            kept.clear()
