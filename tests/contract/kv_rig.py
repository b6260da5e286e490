"""Two instances with KV stores of plain bytes, to try a transport on.

An `End` is one instance: its transport, what its listener heard, and its stores, one per rank.
"""

import hashlib
import mmap
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.pairs import Pairs
from llx.agent.transport.rank import RankAgent
from llx.core.model import MigrationId, RequestId
from llx.ports import Copied, DeviceKv
from llx.specs import MigrationSpec
from llx.wire import Route

WAIT_S = 30.0
"""For what must come: how long it takes says how busy the machine is."""
_HOLD_S = 60.0


class BytesStore:
    """A KV store of bytes in a file that several processes may map, or in memory.

    `flip_at_unpack` damages one byte of every unpack; `hold` stops unpacking until it is set.
    """

    def __init__(
        self,
        num_blocks: int,
        block_bytes: int = 4096,
        *,
        path: Path | None = None,
        layout: str = "plain",
    ) -> None:
        self.num_blocks, self._block_bytes, self._layout = num_blocks, block_bytes, layout
        self._path = path
        self.largest_call = 0
        size = num_blocks * block_bytes
        if path is None:
            self.data = memoryview(bytearray(size))
        else:
            if not path.exists():
                path.write_bytes(bytes(size))
            with path.open("r+b") as file:
                self.data = memoryview(mmap.mmap(file.fileno(), size))
        self._kept: dict[MigrationId, bytes] = {}
        self.flip_at_unpack = False
        self.is_inside = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self.device: DeviceKv | None = None

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @property
    def layout(self) -> str:
        return self._layout

    def of(self, block: int) -> memoryview:
        return self.data[block * self._block_bytes : (block + 1) * self._block_bytes]

    def fill(self, seed: int) -> None:
        """Every block another content."""
        for block in range(self.num_blocks):
            digest = hashlib.shake_128(f"{seed}/{block}".encode())
            self.of(block)[:] = digest.digest(self._block_bytes)

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        assert len(out) == len(blocks) * self._block_bytes
        self.largest_call = max(self.largest_call, len(out))
        for index, block in enumerate(blocks):
            out[index * self._block_bytes : (index + 1) * self._block_bytes] = self.of(block)

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        assert len(data) == len(blocks) * self._block_bytes
        self.largest_call = max(self.largest_call, len(data))
        self.is_inside.set()
        assert self.hold.wait(_HOLD_S)
        for index, block in enumerate(blocks):
            self.of(block)[:] = data[index * self._block_bytes : (index + 1) * self._block_bytes]
        if self.flip_at_unpack:
            self.of(blocks[0])[7] ^= 1

    def buffer(self, size_bytes: int) -> memoryview:
        return memoryview(bytearray(size_bytes))

    def sampler_state(self, request: RequestId) -> bytes:
        return f"state of {request}".encode()

    def keep_sampler_state(self, migration: MigrationId, state: bytes) -> None:
        if self._path is None:
            self._kept[migration] = state
        else:
            self._path.with_suffix(f".{migration}").write_bytes(state)

    def kept(self, migration: str) -> bytes | None:
        if self._path is None:
            return self._kept.get(MigrationId(migration))
        file = self._path.with_suffix(f".{migration}")
        return file.read_bytes() if file.exists() else None


class Heard:
    """A listener that remembers, and lets a test wait."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[MigrationId, int | str]] = queue.Queue()

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        self.events.put((migration, stage))

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        self.events.put((migration, reason))

    def next(self, timeout_s: float = WAIT_S) -> tuple[MigrationId, int | str]:
        return self.events.get(timeout=timeout_s)


class Answer:
    """A `done` that is waited for; asserts that it is called once. Of `Copied` it gets the size."""

    def __init__(self) -> None:
        self._results: queue.Queue[Copied | str] = queue.Queue()
        self.copied: Copied | None = None

    def __call__(self, result: Copied | str = "") -> None:
        self._results.put(result)

    def get(self, timeout_s: float = WAIT_S) -> int | str:
        result = self._results.get(timeout=timeout_s)
        assert self._results.empty(), "answered twice"
        if isinstance(result, str):
            return result
        self.copied = result
        return result.size_bytes

    @property
    def has_come(self) -> bool:
        return not self._results.empty()


def count_fds() -> int:
    """Open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def wait_until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


# ---------------------------------------------------------------------- ends

CHUNK_BLOCKS = 4
BLOCK_BYTES = 4096
NUM_BLOCKS = 64
SPEC = MigrationSpec(chunk_bytes=CHUNK_BLOCKS * BLOCK_BYTES, checksum=True)
FAR = "another host"


@dataclass
class End:
    """One instance."""

    transport: InstanceTransport
    heard: Heard
    stores: list[BytesStore]

    def routes(self, kind: str) -> list[Route]:
        """How others reach it: ``tcp`` and ``nccl`` as from another host."""
        routes = self.transport.routes
        if kind in ("tcp", "nccl"):
            return [Route(FAR, route.address, route.local) for route in routes]
        return routes


def end_here(
    spec: MigrationSpec = SPEC,
    *,
    layout: str = "plain",
    num_blocks: int = NUM_BLOCKS,
    device_of: Callable[[BytesStore], DeviceKv] | None = None,
    pairs: Pairs | None = None,
) -> End:
    """An instance of one rank, in this process."""
    store = BytesStore(num_blocks, BLOCK_BYTES, layout=layout)
    if device_of is not None:
        store.device = device_of(store)
    heard = Heard()
    return End(
        InstanceTransport([RankAgent(store, spec, "127.0.0.1", pairs=pairs)], heard),
        heard,
        [store],
    )
