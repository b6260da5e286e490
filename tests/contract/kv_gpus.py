"""GPUs that are not there: `llx.ports.DeviceKv` over the stores of the rig, in one process.

A pair's end works like a stream of a GPU: what is begun is done later, by a thread of its own, in
order; closed, it does nothing more. What the port forbids its callers is asserted, and kept for the
end of the test: a thread of a transport cannot fail it.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llx.errors import EngineError, StillWritingError
from tests.contract.kv_rig import BytesStore

CHUNK_BLOCKS = 3
DEPTH = 2
_FINISH_S = 60.0
_POLL_S = 0.002


@dataclass
class Gpus:
    """All that the fakes of a test share, and its levers.

    Attributes:
        refuses_join: Why no pair can be joined, if so.
        hangs_join: A source's end does not come.
        is_hanging: Set once one has begun not to come.
        join_s: An end waits for the other for so long.
        never_ends: A copy is not seen to end, and an end not to close.
        breaks: Why whatever goes through a pair fails, if so.
        flows: Set: what is begun is done; cleared: it stalls after the first half of a chunk.
        is_stalled: Set once something has stalled.
    """

    refuses_join: str = ""
    hangs_join: bool = False
    is_hanging: threading.Event = field(default_factory=threading.Event)
    join_s: float = 60.0
    never_ends: bool = False
    breaks: str = ""
    flows: threading.Event = field(default_factory=threading.Event)
    is_stalled: threading.Event = field(default_factory=threading.Event)
    num_joined: int = 0
    open_ends: int = 0
    open_peers: int = 0
    violations: list[str] = field(default_factory=list)
    shared: dict[bytes, BytesStore] = field(default_factory=dict)
    meetings: dict[bytes, "Meeting"] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.flows.set()

    def insist(self, holds: bool, what: str) -> None:
        if not holds:
            self.violations.append(what)
            raise AssertionError(what)


@dataclass
class Meeting:
    """What the two ends of a pair share."""

    here: set[bool] = field(default_factory=set)
    sent: deque[bytes] = field(default_factory=deque)
    num_received: int = 0
    """Calls of `receive`."""
    num_sent: int = 0
    is_dead: bool = False


class FakeDevice:
    """One rank's GPU."""

    def __init__(self, gpus: Gpus, store: BytesStore, *, gpu: str = "GPU-0", nccl: str = "2.28.9"):
        self._gpus, self._store = gpus, store
        self.gpu, self.nccl = gpu, nccl
        self.refuses_share = ""
        self.refuses_open = ""

    def share(self) -> bytes:
        if self.refuses_share:
            raise EngineError(self.refuses_share)
        name = os.urandom(8)
        self._gpus.shared[name] = self._store
        return name

    def open_peer(self, shared: bytes) -> "FakePeer":
        if self.refuses_open:
            raise EngineError(self.refuses_open)
        return FakePeer(self._gpus, self._gpus.shared[shared], self._store)

    def new_pair(self) -> bytes:
        name = os.urandom(128)
        with self._gpus.changed:
            self._gpus.meetings[name] = Meeting()
        return name

    def join(self, pair: bytes, *, is_source: bool, is_cancelled: Callable[[], bool]) -> "FakeEnd":
        gpus = self._gpus
        if gpus.refuses_join and not is_source:
            raise EngineError(gpus.refuses_join)
        deadline = time.monotonic() + gpus.join_s
        meeting = gpus.meetings[pair]
        while gpus.hangs_join and is_source:
            gpus.is_hanging.set()
            if is_cancelled() or time.monotonic() > deadline:
                raise EngineError("the other end did not join in time")
            time.sleep(_POLL_S)
        with gpus.changed:
            meeting.here.add(is_source)
            try:
                while meeting.here != {True, False}:
                    if is_cancelled():
                        raise EngineError("joining was cancelled")
                    if time.monotonic() > deadline:
                        raise EngineError("the other end did not join in time")
                    gpus.changed.wait(_POLL_S)
            except EngineError:
                meeting.here.discard(is_source)
                raise
            gpus.changed.notify_all()
            gpus.num_joined += is_source
            gpus.open_ends += 1
        return FakeEnd(gpus, meeting, self._store, is_source=is_source)


class FakePeer:
    """Another store of this process."""

    def __init__(self, gpus: Gpus, theirs: BytesStore, own: BytesStore) -> None:
        self._gpus, self._theirs, self._own = gpus, theirs, own
        self._is_open = True
        with gpus.changed:
            gpus.open_peers += 1

    def read(self, source: Sequence[int], target: Sequence[int]) -> None:
        self._gpus.insist(self._is_open, "read of a peer that was closed")
        self._gpus.insist(len(source) == len(target), "blocks one to one")
        check_blocks(self._theirs, source, "at the source")
        check_blocks(self._own, target, "at the target")
        if self._gpus.never_ends:
            raise StillWritingError("it has not copied KV")
        self._own.unpack(target, memoryview(b"".join(self._theirs.of(block) for block in source)))

    def close(self) -> None:
        self._gpus.insist(self._is_open, "a peer closed twice")
        self._is_open = False
        with self._gpus.changed:
            self._gpus.open_peers -= 1


class FakeEnd:
    """One end of a pair."""

    chunk_blocks = CHUNK_BLOCKS
    depth = DEPTH

    def __init__(self, gpus: Gpus, meeting: Meeting, store: BytesStore, *, is_source: bool) -> None:
        self._gpus, self._meeting, self._store = gpus, meeting, store
        self._is_source = is_source
        self._busy = threading.Lock()
        self._prepared: deque[bytes] = deque()
        self._begun: deque[list[int]] = deque()
        self._failure = ""
        self._is_closed = False
        self._stream: threading.Thread | None = None
        if not is_source:
            self._stream = threading.Thread(target=self._flow, name="fake-stream", daemon=True)
            self._stream.start()

    def prepare(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        with self._alone(is_source=True):
            check_blocks(self._store, blocks, "at the source")
            self._gpus.insist(1 <= len(blocks) <= self.chunk_blocks, "a chunk of another size")
            self._gpus.insist(len(self._prepared) < self.depth, "more prepared than go at once")
            self._prepared.append(b"".join(self._store.of(block) for block in blocks))

    def send(self, is_cancelled: Callable[[], bool]) -> None:
        with self._alone(is_source=True), self._gpus.changed:
            self._gpus.insist(bool(self._prepared), "nothing was prepared")
            self._gpus.insist(
                self._meeting.num_received > self._meeting.num_sent, "sent before received"
            )
            self._fail_if_broken()
            self._meeting.sent.append(self._prepared.popleft())
            self._meeting.num_sent += 1
            self._gpus.changed.notify_all()

    def receive(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        with self._alone(is_source=False):
            check_blocks(self._store, blocks, "at the target")
            self._await(lambda: len(self._begun) < self.depth, is_cancelled)
            with self._gpus.changed:
                self._begun.append(list(blocks))
                self._meeting.num_received += 1

    def finish(self, is_cancelled: Callable[[], bool]) -> None:
        with self._alone(is_source=self._is_source):
            self._gpus.insist(not self._prepared, "finished with a chunk that was not sent")
            self._await(lambda: not self._begun, is_cancelled)

    def close(self) -> None:
        self._gpus.insist(not self._is_closed, "an end closed twice")
        with self._alone(is_source=self._is_source), self._gpus.changed:
            self._is_closed = True
            self._meeting.is_dead = True
            self._gpus.open_ends -= 1
            self._gpus.changed.notify_all()
        if self._stream is not None:
            self._stream.join()
        if self._gpus.never_ends and not self._is_source:
            raise StillWritingError("its streams have not run dry")

    @contextlib.contextmanager
    def _alone(self, *, is_source: bool) -> Iterator[None]:
        self._gpus.insist(is_source == self._is_source, "the wrong end")
        self._gpus.insist(not self._is_closed, "an end used after it was closed")
        self._gpus.insist(self._busy.acquire(blocking=False), "an end used by two threads")
        try:
            yield
        finally:
            self._busy.release()

    def _fail_if_broken(self) -> None:
        failure = self._gpus.breaks or self._failure
        if not failure and self._meeting.is_dead:
            failure = "the other end has gone"
        if failure:
            raise EngineError(failure)

    def _await(self, holds: Callable[[], bool], is_cancelled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _FINISH_S
        while True:
            with self._gpus.changed:
                if holds():
                    return
                self._fail_if_broken()
            if is_cancelled():
                raise EngineError("cancelled")
            if time.monotonic() > deadline:
                raise EngineError("the other end stalls")
            time.sleep(_POLL_S)

    # ------------------------------------------------------------------ the stream

    def _flow(self) -> None:
        while True:
            with self._gpus.changed:
                while not (self._begun and self._meeting.sent):
                    if self._is_closed:
                        return
                    self._gpus.changed.wait(_POLL_S)
                blocks, data = self._begun[0], self._meeting.sent.popleft()
            if len(data) != len(blocks) * self._store.block_bytes:
                self._failure = "chunks of two sizes met"
                return
            half = len(data) // 2 if not self._gpus.flows.is_set() else 0
            self._write(blocks, data[:half], 0)
            while not (self._gpus.flows.is_set() and self._store.hold.is_set()):
                self._store.is_inside.set()
                self._gpus.is_stalled.set()
                if self._is_closed:
                    return
                time.sleep(_POLL_S)
            if self._is_closed:
                return
            self._write(blocks, data[half:], half)
            if self._store.flip_at_unpack:
                self._store.of(blocks[0])[7] ^= 1
            with self._gpus.changed:
                self._begun.popleft()

    def _write(self, blocks: list[int], data: bytes, at: int) -> None:
        size = self._store.block_bytes
        for first in range(0, len(data), 256):
            block, within = divmod(at + first, size)
            self._store.of(blocks[block])[within : within + 256] = data[first : first + 256]


def check_blocks(store: BytesStore, blocks: Sequence[int], where: str) -> None:
    for block in blocks:
        if not 0 <= block < store.num_blocks:
            raise EngineError(f"no block {block} {where}")
