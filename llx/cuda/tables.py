"""What the kernels read besides KV: tables of parts, and lists of block ids on their way up."""

import ctypes
import struct
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from llx.cuda.driver import THREADS, Driver
from llx.cuda.layout import Part
from llx.errors import EngineError

MAX_IDS: Final = 4096
"""Of one list of a launch; longer ones take several launches."""
WAIT_S: Final = 20.0
"""How long anything here waits for the GPU, which may compute for seconds before it copies."""

_SLOTS: Final = 16
_LISTS: Final = 2
_PAUSE_S: Final = 50e-6
_WARPS: Final = THREADS // 32
_MAX_ITEMS: Final = 2**31 - 1


class PartTable:
    """Parts of a block in the memory of the GPU, as `kernels.cu` reads them."""

    def __init__(self, driver: Driver, parts: Sequence[Part]) -> None:
        self._driver = driver
        self.num_parts = len(parts)
        data = b"".join(
            struct.pack("<4Q", part.address, part.stride_bytes, part.size_bytes, part.offset)
            for part in parts
        )
        self.address = driver.allocate(len(data))
        """Of the first part, on the GPU."""
        stream = event = 0
        try:
            stream = driver.new_stream()
            event = driver.new_event()
            staged = ctypes.create_string_buffer(data, len(data))
            driver.to_device(self.address, ctypes.addressof(staged), len(data), stream)
            driver.record(event, stream)
            driver.wait(event, WAIT_S)
        except EngineError:
            driver.free(self.address)
            raise
        finally:
            if stream:
                driver.free_stream(stream)
            if event:
                driver.free_event(event)

    def ctas(self, num_blocks: int, max_ctas: int) -> int:
        """How many CTAs copy that many blocks: a warp per part, up to a bound."""
        items = num_blocks * self.num_parts
        if items > _MAX_ITEMS:
            raise EngineError(f"{num_blocks} KV blocks of {self.num_parts} parts are too many")
        return max(1, min(max_ctas, -(-items // _WARPS)))

    def close(self) -> None:
        """Free it; no kernel may use it any more."""
        self._driver.free(self.address)


@dataclass(slots=True)
class _Slot:
    host: int
    device: int
    event: int
    is_taken: bool = False


class IdRing:
    """Lists of block ids, copied to the GPU from pinned memory. Any thread.

    A slot is taken by one launch and used again when that launch is done.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._bytes = _LISTS * MAX_IDS * 4
        self._host = driver.allocate_host(_SLOTS * self._bytes)
        self._device = 0
        self._slots: list[_Slot] = []
        try:
            self._device = driver.allocate(_SLOTS * self._bytes)
            for begin in range(0, _SLOTS * self._bytes, self._bytes):
                event = driver.new_event()
                self._slots.append(_Slot(self._host + begin, self._device + begin, event))
        except EngineError:
            self.close()
            raise

    @contextmanager
    def upload(self, stream: int, *lists: Sequence[int]) -> Iterator[list[int]]:
        """Addresses on the GPU of lists of at most `MAX_IDS` ids, for one launch on the stream.

        Raises:
            EngineError: All slots stayed in use.
        """
        slot = self._take()
        try:
            ids = array("i")
            for each in lists:
                assert len(each) <= MAX_IDS, f"{len(each)} ids for {MAX_IDS}"
                ids.extend(each)
            size = len(ids) * ids.itemsize
            ctypes.memmove(slot.host, ids.buffer_info()[0], size)
            self._driver.to_device(slot.device, slot.host, size, stream)
            try:
                ends = [0]
                for each in lists:
                    ends.append(ends[-1] + len(each) * ids.itemsize)
                yield [slot.device + end for end in ends[:-1]]
            finally:
                self._driver.record(slot.event, stream)
        finally:
            slot.is_taken = False

    def close(self) -> None:
        """Free it; no kernel may use it any more."""
        for slot in self._slots:
            self._driver.free_event(slot.event)
        self._slots = []
        if self._device:
            self._driver.free(self._device)
        self._driver.free_host(self._host)

    def _take(self) -> _Slot:
        deadline = time.monotonic() + WAIT_S
        while True:
            with self._lock:
                for slot in self._slots:
                    if not slot.is_taken and self._driver.has_passed(slot.event):
                        slot.is_taken = True
                        return slot
            if time.monotonic() > deadline:
                raise EngineError(f"{self._driver.gpu} has not copied KV within {WAIT_S:g} s")
            time.sleep(_PAUSE_S)
