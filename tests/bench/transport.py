"""How fast KV goes through the CPU transport, against plain sockets and within a host.

    .venv/bin/python -m tests.bench.transport                 packing is one copy of memory
    .node/bin/python -m tests.bench.transport --torch         blocks of torch tensors, scattered

Source and target are two processes. Ways take turns, in an order shuffled within each round:
`bare` is sendall and recv_into of 4 MiB, always from and to the same buffer; `plain` is that with
the store's gathering before and scattering behind it, as a straightforward program would copy KV;
`tcp` and `local` are stages of a migration: packed, copied, checked against what was reserved,
unpacked and acknowledged. Bounds are judged by the 95% interval of the ratios over rounds:
tcp / plain >= 0.8 and local / tcp >= 1.5; exit code 8 if one does not hold. tcp / bare is told
besides: the two copies of memory are in it. One JSON line on standard output.
"""

import argparse
import json
import os
import queue
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.rank import RankAgent
from llx.core.model import MigrationId, RequestId
from llx.ports import Copied, KvStore
from llx.specs import MigrationSpec
from llx.wire import Route
from tests.bench.intervals import interval_of_median
from tests.node import ROOT

CHUNK = 4 << 20
TOTAL = 128 << 20
BLOCK = 128 << 10
TOKEN = b"t" * 16


class OneCopy:
    """A store whose blocks lie in the order in which they are asked for: one memcpy per chunk."""

    layout = "bytes"
    block_bytes = BLOCK
    num_blocks = TOTAL // BLOCK

    def __init__(self) -> None:
        self._data = memoryview(bytearray(os.urandom(1 << 20) * (TOTAL >> 20)))

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        out[:] = self._data[blocks[0] * BLOCK : (blocks[-1] + 1) * BLOCK]

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        self._data[blocks[0] * BLOCK : (blocks[-1] + 1) * BLOCK] = data

    def buffer(self, size_bytes: int) -> memoryview:
        return memoryview(bytearray(size_bytes))

    @property
    def device(self) -> None:
        return None

    def sampler_state(self, request: RequestId) -> bytes:
        return b""

    def keep_sampler_state(self, migration: MigrationId, state: bytes) -> None:
        pass


class Torch(OneCopy):
    """16 layers of 16 tokens, 2 heads of 64 in bfloat16, keys and values apart."""

    def __init__(self) -> None:
        import torch

        from llx.cuda.blocks import BlockPacker

        torch.set_num_threads(1)
        layers = [torch.ones((2, self.num_blocks, 16, 2, 64), dtype=torch.bfloat16)
                  for _ in range(16)]  # fmt: skip
        packer = BlockPacker(layers, 1)
        assert packer.block_bytes == BLOCK, packer.block_bytes
        self.pack, self.unpack, self.layout = packer.pack, packer.unpack, packer.layout


class Silent:
    """A listener that has nothing to do; the bench closes what is not finished."""

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        pass

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        pass


def transport_over(store: KvStore) -> InstanceTransport:
    agent = RankAgent(store, MigrationSpec(chunk_bytes=CHUNK), "127.0.0.1")
    return InstanceTransport([agent], Silent())


# ---------------------------------------------------------------------- the target's process


def swallow(listener: socket.socket, store: KvStore) -> None:
    """The plain receiver: a byte says whether to unpack, then `TOTAL` come; a byte goes back."""
    connection, _ = listener.accept()
    buffer = memoryview(bytearray(CHUNK))
    while way := connection.recv(1):
        for first in range(0, OneCopy.num_blocks, CHUNK // BLOCK):
            filled = 0
            while filled < CHUNK:
                filled += connection.recv_into(buffer[filled:])
            if way == b"p":
                store.unpack(range(first, first + CHUNK // BLOCK), buffer)
        connection.sendall(b"x")


def serve_target(store: KvStore) -> None:
    transport = transport_over(store)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=swallow, args=(listener, store), daemon=True).start()
    route = msgspec.json.encode(transport.routes[0]).decode()
    print(json.dumps([route, listener.getsockname()[1]]), flush=True)
    for line in sys.stdin:
        transport.expect(MigrationId(line.strip()), TOKEN, range(OneCopy.num_blocks))
        print("expected", flush=True)
    transport.stop()


# ---------------------------------------------------------------------- the source's process


class Source:
    """Times one way at a time."""

    def __init__(self, store: KvStore, child: "subprocess.Popen[str]", scattered: bool) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._to, self._from = child.stdin, child.stdout
        route, port = json.loads(self._from.readline())
        local = msgspec.json.decode(route, type=Route)
        self._routes = {"local": local, "tcp": Route("elsewhere", local.address, "")}
        self._plain = socket.create_connection(("127.0.0.1", port))
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._store = store
        self._transport = transport_over(store)
        self._blocks = list(range(OneCopy.num_blocks))
        if scattered:
            random.Random(3).shuffle(self._blocks)
        self._count = 0

    def rate(self, way: str) -> float:
        """Bytes per second."""
        if way in ("bare", "plain"):
            return self._plain_rate(is_packing=way == "plain")
        return self._kv_rate(self._routes[way])

    def _plain_rate(self, *, is_packing: bool) -> float:
        buffer = memoryview(bytearray(CHUNK))
        begin = time.perf_counter()
        self._plain.sendall(b"p" if is_packing else b"b")
        for first in range(0, OneCopy.num_blocks, CHUNK // BLOCK):
            if is_packing:
                self._store.pack(self._blocks[first : first + CHUNK // BLOCK], buffer)
            self._plain.sendall(buffer)
        assert self._plain.recv(1) == b"x"
        return TOTAL / (time.perf_counter() - begin)

    def _kv_rate(self, route: Route) -> float:
        self._count += 1
        migration = MigrationId(f"m{self._count}")
        print(migration, file=self._to, flush=True)
        assert self._from.readline() == "expected\n"
        self._transport.open(migration, [route], TOKEN, is_checked=False)
        self._stage(migration, 0, [])
        begin = time.perf_counter()
        assert self._stage(migration, 1, self._blocks) == TOTAL
        elapsed = time.perf_counter() - begin
        self._transport.close(migration)
        return TOTAL / elapsed

    def _stage(self, migration: MigrationId, stage: int, blocks: list[int]) -> int:
        done: queue.SimpleQueue[Copied | str] = queue.SimpleQueue()
        self._transport.send(migration, stage, blocks, blocks, state_of=None, done=done.put)
        result = done.get()
        assert isinstance(result, Copied), result
        return result.size_bytes


def compare(source: Source, rounds: int) -> dict:
    ways = ["bare", "plain", "tcp", "local"]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    rng = random.Random(7)
    for number in range(rounds + 1):
        for way in rng.sample(ways, len(ways)):
            rate = source.rate(way)
            if number:  # the first round warms up
                rates[way].append(rate)
    result: dict = {"gb_per_s": {
        way: [round(f(values) / 1e9, 2) for f in (min, statistics.median, max)]
        for way, values in rates.items()
    }}  # fmt: skip
    for name, base in (("tcp", "plain"), ("local", "tcp"), ("tcp", "bare")):
        ratios = [a / b for a, b in zip(rates[name], rates[base], strict=True)]
        result[f"{name}_to_{base}"] = round(statistics.median(ratios), 3)
        result[f"{name}_to_{base}_interval"] = [round(v, 3) for v in interval_of_median(ratios)]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--target", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    store = Torch() if arguments.torch else OneCopy()
    if arguments.target:
        serve_target(store)
        return 0
    argv = [sys.executable, "-m", "tests.bench.transport", "--target"]
    argv += ["--torch"] if arguments.torch else []
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        result = compare(Source(store, child, scattered=arguments.torch), arguments.rounds)
        child.stdin.close()  # type: ignore[union-attr]
    result["holds"] = (
        result["tcp_to_plain_interval"][0] >= 0.8 and result["local_to_tcp_interval"][0] >= 1.5
    )
    sys.stdout.write(json.dumps({"bench": "transport", **result}) + "\n")
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
