"""KV between two processes of one GPU: the target reads the source's memory. Exact, fast, safe."""

import multiprocessing
import os
import random
import signal
import threading
import time
from array import array
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from llx.cuda.gpu_blocks import GpuBlocks
from llx.errors import EngineError
from tests.gpu.caches import layered
from tests.gpu.report import Report
from tests.gpu.timing import attempt, gigabytes_per_s, wall_ms

LAYERS, BLOCKS, PAGE = 32, 1024, 64 << 10  # Llama-3-8B, 16k tokens
START_S = 60.0
ANSWER_S = 10.0
SEED = 11


def serve(connection: Connection, seed: int) -> None:
    """The source: shares its cache, then answers how many blocks with which ones."""
    tensors = layered(LAYERS, BLOCKS, PAGE, seed=seed)
    torch.cuda.synchronize()
    blocks = GpuBlocks(tensors, 0)
    connection.send_bytes(blocks.share())
    chosen = random.Random(seed)
    while True:
        try:
            count = int(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if count == 0:
            continue  # the target is done with what it was told
        connection.send_bytes(array("i", chosen.sample(range(BLOCKS), count)).tobytes())


@dataclass
class Source:
    """The other process, and what it has shared."""

    process: Any
    connection: Connection
    seed: int
    shared: bytes = b""

    def wait(self) -> None:
        """Until it has shared its cache."""
        if not self.connection.poll(START_S):
            raise EngineError("the source has not started in time")
        self.shared = self.connection.recv_bytes()

    def ask(self, count: int) -> array:
        """Which blocks to read."""
        self.connection.send_bytes(b"%d" % count)
        if not self.connection.poll(ANSWER_S):
            raise EngineError("the source does not answer")
        return array("i", self.connection.recv_bytes())

    def kill(self) -> None:
        """SIGKILL; again is nothing."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(10)
        self.connection.close()


def start(seed: int) -> Source:
    """A source that is starting."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, seed), daemon=True)
    process.start()
    theirs.close()
    return Source(process, ours, seed)


def run(report: Report) -> None:
    """Two sources, one after the other; the first is killed while it is read."""
    sources = [start(SEED), start(SEED + 1)]
    own = layered(LAYERS, BLOCKS, PAGE, seed=1)
    torch.cuda.synchronize()
    blocks = GpuBlocks(own, 0)
    try:
        for source in sources:
            source.wait()
        attempt(report, "exact", lambda: _exact(report, blocks, own, sources[0]))
        attempt(report, "time", lambda: _time(report, blocks, sources[0]))
        attempt(report, "leak", lambda: _leak(report, blocks, sources[0]))
        attempt(report, "kill", lambda: _kill(report, blocks, sources[0]))
        attempt(report, "after", lambda: _after(report, blocks, own, sources[1]))
    finally:
        for source in sources:
            source.kill()
        blocks.close()
    torch.cuda.empty_cache()


def _is_read(blocks: GpuBlocks, own: list[torch.Tensor], source: Source, count: int) -> bool:
    """Read blocks of a source and compare all of the own cache with what it has to be."""
    theirs = layered(LAYERS, BLOCKS, PAGE, seed=source.seed)
    ids = source.ask(count).tolist()
    targets = random.Random(count).sample(range(BLOCKS), count)
    wanted = [tensor.clone() for tensor in own]
    for mine, other in zip(wanted, theirs, strict=True):
        mine.view(torch.int16)[targets] = other.view(torch.int16)[ids]
    torch.cuda.synchronize()
    peer = blocks.open_peer(source.shared)
    try:
        peer.read(ids, targets)
    finally:
        peer.close()
    pairs = zip(own, wanted, strict=True)
    return all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in pairs)


def _exact(report: Report, blocks: GpuBlocks, own: list[torch.Tensor], source: Source) -> None:
    for count in (1, 64, 777):
        is_read = _is_read(blocks, own, source, count)
        report.check(f"bit-exact, {count} blocks, nothing else written", is_read)


def _time(report: Report, blocks: GpuBlocks, source: Source) -> None:
    begun = time.perf_counter()
    peer = blocks.open_peer(source.shared)
    report.measure("open a peer of 32 allocations", 1e3 * (time.perf_counter() - begun), "ms")
    try:
        for tokens, bound in ((1024, 2.0), (8192, 8.0)):
            count = tokens // 16
            targets = random.Random(2).sample(range(BLOCKS), count)

            def end_to_end(count=count, targets=targets) -> None:
                peer.read(source.ask(count), targets)
                source.connection.send_bytes(b"0")

            samples = wall_ms(end_to_end, rounds=30)
            report.measure(f"{tokens} tokens, end to end", samples, "ms", at_most=bound)
            ids = source.ask(count)
            samples = wall_ms(lambda ids=ids, targets=targets: peer.read(ids, targets))
            report.measure(f"{tokens} tokens, read alone", samples, "ms")
        report.measure("2 blocks, end to end", wall_ms(lambda: end_to_end(2, [1, 2])), "ms")
    finally:
        peer.close()
    _rates(report, blocks, source)


def _rates(report: Report, blocks: GpuBlocks, source: Source) -> None:
    ids, targets = list(range(512)), list(range(512, 1024))
    for ctas in (8, 16, 32, 132):
        peer = blocks.open_peer(source.shared, max_ctas=ctas)
        samples = wall_ms(lambda peer=peer: peer.read(ids, targets), rounds=7)
        rates = gigabytes_per_s(512 * blocks.block_bytes, samples)
        report.measure(f"read 8192 tokens with {ctas} CTAs", rates, "GB/s")
        peer.close()


def _leak(report: Report, blocks: GpuBlocks, source: Source) -> None:
    def once() -> None:
        peer = blocks.open_peer(source.shared)
        peer.read([1, 2], [3, 4])
        peer.close()

    once()
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths
    begun = time.perf_counter()
    rounds = 0
    while rounds < 200 and time.perf_counter() - begun < 20:
        once()
        rounds += 1
    lost = free - torch.cuda.mem_get_info()[0]
    report.check("200 times opened, read and closed", rounds == 200, f"{rounds} rounds")
    report.check("no memory of the GPU is lost", lost <= 0, f"{lost} bytes")
    more = len(os.listdir("/proc/self/fd")) - files  # noqa: PTH208
    report.check("no file is left open", more <= 0, f"{more} more")


def _kill(report: Report, blocks: GpuBlocks, source: Source) -> None:
    """The source dies while its memory is read without pause."""
    peer = blocks.open_peer(source.shared)
    counts = {"good": 0, "failed": 0}
    killed = threading.Event()
    ids, targets = list(range(256)), list(range(256))

    def read() -> None:
        after = 0
        while after < 20:
            try:
                peer.read(ids, targets)
                counts["good"] += 1
            except EngineError:
                counts["failed"] += 1
            after += killed.is_set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.2)
    source.kill()
    killed.set()
    reader.join(60)
    report.check("source killed while it is read: no hang", not reader.is_alive(), str(counts))
    begun = time.perf_counter()
    peer.close()
    report.measure("closing the peer that is gone", time.perf_counter() - begun, "s", at_most=5)
    try:
        blocks.open_peer(source.shared).close()
        report.check("a peer that is gone cannot be opened", False, "it was mapped")
    except EngineError as error:
        report.check("a peer that is gone cannot be opened", True, error.message[:80])


def _after(report: Report, blocks: GpuBlocks, own: list[torch.Tensor], source: Source) -> None:
    report.check("the next peer is read, bit-exact", _is_read(blocks, own, source, 64))
