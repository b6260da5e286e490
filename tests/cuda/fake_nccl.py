"""NCCL between two ends of one process, over the streams of a fake GPU."""

import ctypes
import itertools
from collections import deque
from dataclasses import dataclass, field

from llx.errors import EngineError
from tests.cuda.fake_driver import FakeDriver


@dataclass
class Line:
    """What is under way from rank 0 to rank 1 of one communicator."""

    bytes_sent: deque[bytes] = field(default_factory=deque)
    num_sends: int = 0
    num_receives: int = 0


@dataclass
class Handle:
    line: Line
    rank: int
    is_aborted: bool = False
    num_busy: int = 0
    failure: str = ""


class FakeNccl:
    """`llx.cuda.nccl.NcclApi`.

    Every call is one more of `calls`; the one numbered `fails_at` fails. An operation is settled
    after `busy` looks. With `is_deaf` no peer ever joins; with `is_stalled` nothing arrives. A rank
    joins without the other being there: a test has one thread.
    """

    version = "2.28.9"

    def __init__(self, driver: FakeDriver, *, busy: int = 0) -> None:
        self.driver = driver
        self.busy = busy
        self.is_deaf = self.is_stalled = False
        self.fails_at: int | None = None
        self.calls: list[str] = []
        self.handles: dict[int, Handle] = {}
        self.lines: dict[bytes, Line] = {}
        self._numbers = itertools.count(1)
        self._group: list[Handle] | None = None

    def unique_id(self) -> bytes:
        return next(self._numbers).to_bytes(128, "little")

    def init(self, unique_id: bytes, rank: int) -> int:
        self._called("init")
        line = self.lines.setdefault(unique_id, Line())
        handle = Handle(line, rank, num_busy=self.busy)
        self.handles[number := next(self._numbers)] = handle
        return number

    def is_settled(self, communicator: int) -> bool:
        handle = self._alive(communicator)
        self._called("is_settled")
        if handle.failure:
            raise EngineError(f"NCCL: ncclCommGetAsyncError: {handle.failure}")
        if self.is_deaf:
            return False
        handle.num_busy = max(0, handle.num_busy - 1)
        return handle.num_busy == 0

    def start_group(self) -> None:
        self._called("start_group")
        assert self._group is None, "a group within a group"
        self._group = []

    def end_group(self) -> None:
        self._called("end_group")
        assert self._group is not None, "no group"
        for handle in self._group:
            handle.num_busy = self.busy
        self._group = None

    def send(self, address: int, size: int, communicator: int, stream: int) -> None:
        handle = self._begin("send", communicator)
        line = handle.line
        line.num_sends += 1

        def run() -> bool:
            if handle.is_aborted or self.is_stalled:
                return handle.is_aborted
            line.bytes_sent.append(ctypes.string_at(address, size))
            return True

        self.driver.streams[stream].append(run)

    def receive(self, address: int, size: int, communicator: int, stream: int) -> None:
        handle = self._begin("receive", communicator)
        line = handle.line
        line.num_receives += 1

        def run() -> bool:
            if handle.is_aborted or not line.bytes_sent:
                return handle.is_aborted
            data = line.bytes_sent.popleft()
            assert len(data) == size, f"{len(data)} bytes sent, {size} received"
            ctypes.memmove(address, data, size)
            return True

        self.driver.streams[stream].append(run)

    def abort(self, communicator: int) -> None:
        self.calls.append("abort")
        self._alive(communicator).is_aborted = True
        del self.handles[communicator]

    def fail(self, what: str) -> None:
        """Every communicator learns of it when it looks."""
        for handle in self.handles.values():
            handle.failure = what

    def _begin(self, name: str, communicator: int) -> Handle:
        handle = self._alive(communicator)
        assert self._group is not None, f"{name} outside of a group"
        assert not handle.num_busy, f"{name} before the one before is settled"
        self._group.append(handle)
        self._called(name)
        return handle

    def _alive(self, communicator: int) -> Handle:
        assert communicator in self.handles, "called after the abort"
        return self.handles[communicator]

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fails_at:
            raise EngineError(f"NCCL: {name}: unhandled cuda error")
