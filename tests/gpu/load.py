"""What copying KV costs a model that decodes beside it.

The load is a CUDA graph that does what a decode step of an 8B model does to the GPU: it reads some
gigabytes of weights for a batch of 32 rows, and the KV of 32 requests, bound by memory all along.
Beside it a thread gathers and scatters blocks on a stream of low priority: as links of 100 and 200
Gbit/s would have them, and as fast as a few CTAs can.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llx.cuda.driver import driver_of
from llx.cuda.gpu_blocks import GpuBlocks
from tests.gpu.caches import layered
from tests.gpu.report import Report
from tests.gpu.timing import attempt

ROUNDS = 9
STEPS = 15  # of a round
BLOCKS = 16  # of a copy: 32 MiB
PACES = {"12.5 GB/s": 12.5, "25 GB/s": 25.0}
MATRICES, PASSES = 12, 6


class Load:
    """A decode step as a graph."""

    def __init__(self) -> None:
        wide, narrow, batch = 28_672, 4096, 32
        make = {"dtype": torch.bfloat16, "device": "cuda"}
        self._weights = [torch.randn(narrow, wide, **make) for _ in range(MATRICES)]
        self._rows = torch.randn(batch, narrow, **make)
        self._out = torch.empty(batch, wide, **make)
        # 32 requests of 2,048 tokens, 8 heads for keys and values, 4 queries to each.
        self._keys = torch.randn(batch * 8, 128, 2048, **make)
        self._queries = torch.randn(batch * 8, 4, 128, **make)
        self._scores = torch.empty(batch * 8, 4, 2048, **make)
        self._stream = torch.cuda.Stream()
        with torch.cuda.stream(self._stream):
            self._step()
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._step()

    def _step(self) -> None:
        for _ in range(PASSES):
            for weights in self._weights:
                torch.mm(self._rows, weights, out=self._out)
            torch.bmm(self._queries, self._keys, out=self._scores)

    def round_ms(self) -> float:
        """A step, on average over a round, as the GPU sees it."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            self._graph.replay()
            begin.record()
            for _ in range(STEPS):
                self._graph.replay()
            end.record()
        self._stream.synchronize()
        return begin.elapsed_time(end) / STEPS


class Copies:
    """Gathers and scatters blocks, one after the other, on a stream of low priority."""

    def __init__(self) -> None:
        self.blocks = GpuBlocks(layered(32, 256, 64 << 10, seed=1), 0)
        self._packed = torch.empty(
            BLOCKS * self.blocks.block_bytes, dtype=torch.uint8, device="cuda"
        )
        self._driver = driver_of(0)
        with self._driver.current():
            self._stream = self._driver.new_stream()
            self._events = [self._driver.new_event() for _ in range(4)]
        self.copied_bytes = 0
        self.failure = ""

    @contextmanager
    def running(self, max_ctas: int | None, gb_per_s: float | None) -> Iterator[None]:
        """Copies as long as the context is entered."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop, max_ctas, gb_per_s))
        thread.start()
        try:
            time.sleep(0.02)
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive(), "the copies do not end"
            assert not self.failure, self.failure

    def _run(self, stop: threading.Event, max_ctas: int | None, gb_per_s: float | None) -> None:
        try:
            with self._driver.current():
                self._copy(stop, max_ctas, gb_per_s)
        except Exception as error:  # noqa: BLE001 - told to the one that waits
            self.failure = f"{type(error).__name__}: {error}"

    def _copy(self, stop: threading.Event, max_ctas: int | None, gb_per_s: float | None) -> None:
        size = BLOCKS * self.blocks.block_bytes
        ids = [list(range(begin, begin + BLOCKS)) for begin in range(0, 256, BLOCKS)]
        turn, due = 0, time.monotonic()
        while not stop.is_set():
            event = self._events[turn % len(self._events)]
            self._driver.wait(event, 20)
            copy = self.blocks.gather if turn % 2 == 0 else self.blocks.scatter
            copy(ids[turn // 2 % len(ids)], self._packed.data_ptr(), self._stream,
                 max_ctas=max_ctas)  # fmt: skip
            self._driver.record(event, self._stream)
            self.copied_bytes += size
            turn += 1
            if gb_per_s is not None:
                due = max(due + size / gb_per_s / 1e9, time.monotonic() - 0.01)
                time.sleep(max(0.0, due - time.monotonic()))
        for event in self._events:
            self._driver.wait(event, 20)

    def close(self) -> None:
        """Free what torch does not."""
        with self._driver.current():
            self._driver.free_stream(self._stream)
            for event in self._events:
                self._driver.free_event(event)
        self.blocks.close()


def run(report: Report) -> None:
    """The load alone and beside copies, in turn."""
    attempt(report, "load", lambda: _compare(report))
    torch.cuda.empty_cache()


def _compare(report: Report) -> None:
    load, copies = Load(), Copies()
    ways: dict[str, tuple[int | None, float | None]] = {
        **{way: (None, pace) for way, pace in PACES.items()},
        "2 CTAs, unpaced": (2, None),
        "4 CTAs, unpaced": (4, None),
        "8 CTAs, unpaced": (8, None),
    }
    alone: list[float] = []
    beside: dict[str, list[float]] = {way: [] for way in ways}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(3):
        load.round_ms()  # clocks settle
    for _ in range(ROUNDS):
        before = load.round_ms()
        for way, (max_ctas, gb_per_s) in ways.items():
            with copies.running(max_ctas, gb_per_s):
                begun, copied = time.perf_counter(), copies.copied_bytes
                beside[way].append(load.round_ms())
                elapsed = time.perf_counter() - begun
                rates[way].append((copies.copied_bytes - copied) / elapsed / 1e9)
            alone.append(load.round_ms())
        alone.append(before)
    base = report.measure("a step alone", alone, "ms")
    for way in ways:
        report.measure(f"copied beside, {way}", rates[way], "GB/s")
        # Unpaced, each GB/s copied takes 2 GB/s of the memory that the load is bound by.
        bound = 1.02 if way in PACES else None
        ratios = [ms / base for ms in beside[way]]
        report.measure(f"a step beside, {way}: times as long", ratios, "x", at_most=bound)
    copies.close()
