"""One end of a pair: KV from the blocks of one GPU to those of another, through a communicator.

    source   work    gather 1 │ gather 2 │ gather 3 …             into buffer A, B, A
             wire             │ send 1   │ send 2 │ send 3 …
    target   wire             │ recv 1   │ recv 2 │ recv 3 …      into buffer A, B, A
             work                        │ scatter 1 │ scatter 2 …

The streams are joined by events, so that packing, sending and unpacking overlap, and nothing waits
for a host. What keeps them out of the model's way is few CTAs, not a priority: CUDA's lowest is the
one that streams have by default. Where a block is one run of memory nothing is gathered: its bytes
go from block to block.

Beside a model that runs its own collectives, kernels that wait for one another across GPUs are how
deadlocks come about: a transfer that occupies SMs while it waits for a peer whose SMs are occupied
by a collective that waits for this GPU. It cannot come about here. A transfer depends on nothing
that the model computes, only on blocks that are settled and on buffers of its own. Neither end
launches before the other has said that it is ready, so a launched kernel waits for bytes that are
on their way, not for a host. It takes few CTAs, so the model's kernels find room beside it. A rank
sends through one pair at a time and receives through one. And should all that fail, whoever has
waited `STALL_S` aborts the communicator, which ends its kernels. `NCCL_LAUNCH_ORDER_IMPLICIT` is
not needed: it orders communicators that share one order of launches, which two instances never do.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llx.cuda.driver import Driver
from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.nccl import Communicator
from llx.errors import EngineError

CHUNK_BYTES: Final = 16 << 20
DEPTH: Final = 2
MOST_RUNS: Final = 32
"""Of one launch, where blocks are sent as they lie."""
_DRAIN_S: Final = 20.0


class Buffers:
    """Memory of a GPU for the chunks under way in one direction. One pair at a time uses it.

    Allocated when it is first used, and again if a transfer could not be ended: it may write still.

    Args:
        driver: Of the GPU.
        size_bytes: Of each of `DEPTH` buffers.
    """

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        self._driver = driver
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._addresses: list[int] = []

    def at(self, slot: int) -> int:
        """Where a buffer lies."""
        with self._lock:
            while len(self._addresses) < DEPTH:
                self._addresses.append(self._driver.allocate(self._size_bytes))
            return self._addresses[slot]

    def give_up(self) -> None:
        """Leave the memory to whatever still writes there."""
        with self._lock:
            self._addresses = []

    def close(self) -> None:
        """Free it."""
        with self._lock:
            while self._addresses:
                self._driver.free(self._addresses.pop())


@dataclass(frozen=True, slots=True)
class _Slot:
    filled: int
    emptied: int


class Pair:
    """`llx.ports.PairEnd` over a communicator that has been joined; owns it.

    Args:
        driver: Of the GPU.
        blocks: The cache.
        communicator: To the other end.
        buffers: Of this direction.
        is_source: Which end this is.
    """

    def __init__(
        self,
        driver: Driver,
        blocks: GpuBlocks,
        communicator: Communicator,
        buffers: Buffers,
        *,
        is_source: bool,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._driver = driver
        self._blocks = blocks
        self._communicator = communicator
        self._buffers = buffers
        self._is_source = is_source
        most = max(1, chunk_bytes // blocks.block_bytes)
        self._chunk_blocks = min(MOST_RUNS, most) if blocks.is_contiguous else most
        self._prepared: deque[tuple[int, list[tuple[int, int]]]] = deque()
        self._next = 0
        self._is_closed = False
        self._scratch = 0
        """Not a buffer: another pair may be using that now."""
        self._streams: list[int] = []
        self._slots: list[_Slot] = []
        self._ends: list[int] = []
        try:
            with driver.current():
                self._make()
        except EngineError:
            self.close()
            raise

    def _make(self) -> None:
        driver = self._driver
        for _ in range(2):
            self._streams.append(driver.new_stream())
            self._ends.append(driver.new_event())
        for _ in range(DEPTH):
            self._slots.append(_Slot(driver.new_event(), driver.new_event()))

    @property
    def chunk_blocks(self) -> int:
        """See `llx.ports.PairEnd`, as all that follows."""
        return self._chunk_blocks

    @property
    def depth(self) -> int:
        """Two buffers take turns."""
        return DEPTH

    def connect(self, is_cancelled: Callable[[], bool]) -> None:
        """Send one byte: NCCL connects two ranks when they first speak, and waits for both then."""
        with self._driver.current():
            _, wire = self._streams
            self._scratch = self._driver.allocate(1)
            self._communicator.transfer([(self._scratch, 1)], wire, is_cancelled)
            self._await_streams(is_cancelled)

    def prepare(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        """Gather, or look up where the blocks lie."""
        assert self._is_source, "a target prepares nothing"
        assert len(self._prepared) < DEPTH, f"{DEPTH} chunks are prepared and not sent"
        self._check(blocks)
        slot = self._turn()
        with self._driver.current():
            if self._blocks.is_contiguous:
                self._prepared.append((slot, self._runs(blocks)))
                return
            work, _ = self._streams
            events, buffer = self._slots[slot], self._buffers.at(slot)
            self._driver.hold(work, events.emptied)
            self._blocks.gather(blocks, buffer, work)
            self._driver.record(events.filled, work)
            self._prepared.append((slot, [(buffer, len(blocks) * self._blocks.block_bytes)]))

    def send(self, is_cancelled: Callable[[], bool]) -> None:
        """Launch the oldest chunk."""
        assert self._prepared, "nothing is prepared"
        slot, runs = self._prepared.popleft()
        events = self._slots[slot]
        _, wire = self._streams
        with self._driver.current():
            if not self._blocks.is_contiguous:
                self._driver.hold(wire, events.filled)
            self._communicator.transfer(runs, wire, is_cancelled)
            self._driver.record(events.emptied, wire)

    def receive(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        """Launch, and have the chunk scattered behind it."""
        assert not self._is_source, "a source receives nothing"
        self._check(blocks)
        events = self._slots[slot := self._turn()]
        work, wire = self._streams
        with self._driver.current():
            if self._blocks.is_contiguous:
                self._communicator.transfer(self._runs(blocks), wire, is_cancelled)
                return
            buffer, size = self._buffers.at(slot), len(blocks) * self._blocks.block_bytes
            self._driver.hold(wire, events.emptied)
            self._communicator.transfer([(buffer, size)], wire, is_cancelled)
            self._driver.record(events.filled, wire)
            self._driver.hold(work, events.filled)
            self._blocks.scatter(blocks, buffer, work)
            self._driver.record(events.emptied, work)

    def finish(self, is_cancelled: Callable[[], bool]) -> None:
        """Both streams have come to their end."""
        assert not self._prepared, "chunks are prepared and not sent"
        with self._driver.current():
            self._await_streams(is_cancelled)

    def close(self) -> None:
        """Abort; then wait until both streams have run dry, and free what was needed.

        Raises:
            EngineError: They have not: their streams and buffers are left to them.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with self._driver.current():
            try:
                self._communicator.abort()
            finally:
                self._free()

    # ------------------------------------------------------------------ parts

    def _check(self, blocks: Sequence[int]) -> None:
        if self._is_closed:
            raise EngineError("the pair of GPUs is closed")
        assert 0 < len(blocks) <= self._chunk_blocks, f"a chunk of {len(blocks)} blocks"

    def _turn(self) -> int:
        slot, self._next = self._next, (self._next + 1) % DEPTH
        return slot

    def _runs(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        size = self._blocks.block_bytes
        return [(self._blocks.address_of(block), size) for block in blocks]

    def _await_streams(self, is_cancelled: Callable[[], bool]) -> None:
        """The wire first, then the work: at either end the one that comes last depends on both."""
        for event, stream in zip(self._ends, self._streams, strict=True):
            self._driver.record(event, stream)
        self._communicator.wait(self._driver, self._ends[::-1], is_cancelled)

    def _free(self) -> None:
        driver = self._driver
        try:
            for event, stream in zip(self._ends, self._streams, strict=False):
                driver.record(event, stream)
            for event in self._ends:
                driver.wait(event, _DRAIN_S)
        except EngineError:
            self._buffers.give_up()
            raise
        if self._scratch:
            driver.free(self._scratch)
        for stream in self._streams:
            driver.free_stream(stream)
        for event in (*self._ends, *(each for s in self._slots for each in (s.filled, s.emptied))):
            driver.free_event(event)
