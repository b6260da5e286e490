"""Pairs of GPUs through NCCL: two processes on one GPU, which take each other for another host.

Their bytes go through sockets of this host, so what is shown is that they arrive, that the death of
a peer is survived and that nothing leaks; how fast NVLink or InfiniBand are is not shown.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.gpu_kv import GpuKv
from llx.errors import EngineError
from tests.gpu.caches import TorchCache, layered, torch_cache
from tests.gpu.report import Report
from tests.gpu.timing import attempt

LAYERS, BLOCKS, PAGE = 32, 512, 64 << 10
ENVIRONMENT = {
    "NCCL_NET": "Socket",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_SOCKET_NTHREADS": "4",
    "NCCL_NSOCKS_PERTHREAD": "4",
}
ANSWER_S = 40.0


def never() -> bool:
    """Nobody cancels."""
    return False


def made(layout: str, seed: int) -> TorchCache | list[torch.Tensor]:
    """A Llama-3-8B-shaped cache of 8k tokens, in either layout."""
    if layout == "layers":
        return layered(LAYERS, BLOCKS, PAGE, seed=seed)
    sizes = {"L": LAYERS, "B": BLOCKS, "K": 1, "H": 8, "N": 16, "C": 256}
    return torch_cache("KBLNHC", sizes, torch.bfloat16, seed=seed)


def tensors_of(cache: TorchCache | list[torch.Tensor]) -> list[torch.Tensor]:
    """Its layers."""
    return cache.tensors if isinstance(cache, TorchCache) else cache


def serve(connection: Connection, host: str, seed: int) -> None:
    """The source: joins and sends when it is told to, until it is told to end."""
    os.environ.update(ENVIRONMENT, NCCL_HOSTID=host)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        _Source(connection, seed).run()


class _Source:
    def __init__(self, connection: Connection, seed: int) -> None:
        self._connection = connection
        self._seed = seed

    def run(self) -> None:
        caches = {name: made(name, self._seed) for name in ("layers", "whole")}
        kvs = {name: GpuKv(GpuBlocks(tensors_of(each), 0)) for name, each in caches.items()}
        torch.cuda.synchronize()
        self._connection.send(kvs["layers"].nccl)
        pair = None
        while True:
            match self._connection.recv():
                case ("join", layout):
                    if pair is not None:
                        pair.close()
                    named = kvs[layout].new_pair()
                    self._connection.send(named)
                    pair = kvs[layout].join(named, is_source=True, is_cancelled=never)
                    self._connection.send("joined")
                case ("send", blocks):
                    assert pair is not None, "not joined"
                    self._send(pair, blocks)

    def _send(self, pair: Any, blocks: list[int]) -> None:
        """As the transport does: prepare, say so, and send once the other end is ready."""
        unsent = 0
        for first in range(0, len(blocks), pair.chunk_blocks):
            if unsent == pair.depth:
                self._connection.recv_bytes()
                pair.send(never)
                unsent -= 1
            pair.prepare(blocks[first : first + pair.chunk_blocks], never)
            self._connection.send_bytes(b"chunk")
            unsent += 1
        for _ in range(unsent):
            self._connection.recv_bytes()
            pair.send(never)
        pair.finish(never)


@dataclass
class Peer:
    """The other process."""

    process: Any
    connection: Connection
    seed: int

    def ask(self, *message: object) -> Any:
        """Tell it something, and wait for what it answers."""
        self.connection.send(message)
        return self.answer()

    def answer(self) -> Any:
        """What it says next."""
        if not self.connection.poll(ANSWER_S):
            raise EngineError("the other process does not answer")
        return self.connection.recv()

    def join(self, kv: GpuKv, layout: str) -> Any:
        """Both ends join."""
        named = self.ask("join", layout)
        pair = kv.join(named, is_source=False, is_cancelled=never)
        assert self.answer() == "joined"
        return pair

    def read(self, pair: Any, source: list[int], target: list[int]) -> None:
        """Have blocks sent, and take them."""
        self.connection.send(("send", source))
        for first in range(0, len(target), pair.chunk_blocks):
            if not self.connection.poll(ANSWER_S):
                raise EngineError("no chunk comes")
            self.connection.recv_bytes()
            pair.receive(target[first : first + pair.chunk_blocks], never)
            self.connection.send_bytes(b"ready")
        pair.finish(never)

    def kill(self) -> None:
        """SIGKILL; again is nothing."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(10)
        self.connection.close()


def start(host: str, seed: int) -> Peer:
    """A process that is starting."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, host, seed), daemon=True)
    process.start()
    theirs.close()
    return Peer(process, ours, seed)


def run(report: Report) -> None:
    """Two peers, one after the other; the first is killed in the middle of a transfer."""
    os.environ.update(ENVIRONMENT, NCCL_HOSTID="target")
    peers = [start("one", 21), start("two", 22)]
    caches = {name: made(name, 1) for name in ("layers", "whole")}
    blocks = {name: GpuBlocks(tensors_of(each), 0) for name, each in caches.items()}
    kvs = {name: GpuKv(each) for name, each in blocks.items()}
    torch.cuda.synchronize()
    try:
        for peer in peers:
            report.check("NCCL of the other process", True, str(peer.answer()))
        pairs: dict[str, Any] = {}

        def join(layout: str) -> None:
            begun = time.perf_counter()
            pairs[layout] = peers[0].join(kvs[layout], layout)
            report.measure(f"join, {layout}", time.perf_counter() - begun, "s")

        for layout in ("whole", "layers"):
            attempt(report, layout, lambda layout=layout: join(layout))
            attempt(
                report, f"{layout} exact",
                lambda layout=layout: _exact(report, peers[0], pairs[layout], caches, layout),
            )  # fmt: skip
            attempt(
                report, f"{layout} rate",
                lambda layout=layout: _rate(report, peers[0], pairs[layout], blocks, layout),
            )  # fmt: skip
        attempt(report, "leak", lambda: _leak(report, peers[0], pairs["layers"]))
        attempt(report, "kill", lambda: _kill(report, peers[0], pairs["layers"]))
        attempt(report, "close", lambda: _close(report, [*pairs.values()]))
        attempt(report, "after", lambda: _after(report, peers[1], kvs["layers"], caches))
    finally:
        for peer in peers:
            peer.kill()
    torch.cuda.empty_cache()


def _exact(report: Report, peer: Peer, pair: Any, caches: dict[str, Any], layout: str) -> None:
    own = [t.view(torch.int16) for t in tensors_of(caches[layout])]
    theirs = [t.view(torch.int16) for t in tensors_of(made(layout, peer.seed))]
    for count in (1, 3, 77):
        chosen = random.Random(count)
        source, target = (chosen.sample(range(BLOCKS), count) for _ in range(2))
        wanted = [t.clone() for t in own]
        for mine, other in zip(wanted, theirs, strict=True):
            mine[target] = other[source]
        torch.cuda.synchronize()
        peer.read(pair, source, target)
        good = all(torch.equal(a, b) for a, b in zip(own, wanted, strict=True))
        report.check(f"{layout}: bit-exact, {count} blocks, nothing else written", good)


def _rate(report: Report, peer: Peer, pair: Any, blocks: dict[str, GpuBlocks], layout: str) -> None:
    for tokens in (32, 1024):
        count = tokens // 16
        ids = list(range(count))
        samples = []
        for _ in range(8):
            begun = time.perf_counter()
            peer.read(pair, ids, ids)
            samples.append(1e3 * (time.perf_counter() - begun))
        report.measure(f"{layout}: {tokens} tokens, end to end", samples[1:], "ms")
        size = count * blocks[layout].block_bytes
        report.measure(
            f"{layout}: {tokens} tokens", [size / ms / 1e6 for ms in samples[1:]], "GB/s"
        )


def _held() -> dict[str, int]:
    return {
        "memory": -torch.cuda.mem_get_info()[0],
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a count, not paths
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
    }


def _leak(report: Report, peer: Peer, pair: Any) -> None:
    for _ in range(20):
        peer.read(pair, [1, 2], [3, 4])
    before = _held()
    begun = time.perf_counter()
    done = 0
    while done < 1000 and time.perf_counter() - begun < 20:
        peer.read(pair, [done % BLOCKS, 2], [done % 7 + 5, 4])
        done += 1
    report.check("1,000 transfers", done == 1000, f"{done} in {time.perf_counter() - begun:.1f} s")
    more = {name: count - before[name] for name, count in _held().items()}
    report.check("they leave nothing behind", not any(more.values()), str(more))


def _failure_of(action: Callable[[], object]) -> tuple[str, float]:
    begun = time.perf_counter()
    try:
        action()
    except (EngineError, EOFError, OSError) as error:
        return f"{type(error).__name__}: {error}"[:90], time.perf_counter() - begun
    return "", time.perf_counter() - begun


def _kill(report: Report, peer: Peer, pair: Any) -> None:
    """While 1 GiB is on its way the source is killed; the target has launched what it awaits."""
    ids = list(range(BLOCKS))
    threading.Timer(0.15, lambda: os.kill(peer.process.pid, signal.SIGKILL)).start()
    said, _ = _failure_of(lambda: peer.read(pair, ids, ids))
    report.check("source killed in mid-transfer: an error", bool(said), said)
    said, took = _failure_of(lambda: pair.finish(never))
    report.measure("  until the target gives the pair up", took, "s", at_most=12)
    report.check("  and says why", bool(said), said)
    cancelled = time.perf_counter()
    pair.close()
    report.measure("  closing it", time.perf_counter() - cancelled, "s", at_most=5)


def _close(report: Report, pairs: list[Any]) -> None:
    begun = time.perf_counter()
    for pair in pairs:
        pair.close()
    report.measure("closing all pairs", time.perf_counter() - begun, "s", at_most=5)


def _after(report: Report, peer: Peer, kv: GpuKv, caches: dict[str, Any]) -> None:
    begun = time.perf_counter()
    pair = peer.join(kv, "layers")
    report.measure("a new pair with another process", time.perf_counter() - begun, "s")
    _exact(report, peer, pair, caches, "layers")
    ids = list(range(BLOCKS))
    stop = threading.Event()

    def receive() -> None:
        peer.connection.send(("send", ids))
        peer.connection.recv_bytes()
        pair.receive(ids[: pair.chunk_blocks], stop.is_set)
        pair.finish(stop.is_set)  # nothing was said to be ready: nothing comes

    threading.Timer(0.3, stop.set).start()
    said, took = _failure_of(receive)
    report.check("cancelled in the middle of a chunk", "gave up" in said, said)
    report.measure("  took, 0.3 s of it until it was", took, "s", at_most=1)
    begun = time.perf_counter()
    pair.close()
    report.measure("  closing it", time.perf_counter() - begun, "s", at_most=5)
