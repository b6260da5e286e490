"""What the kernels read besides KV: tables of parts, and lists of block ids."""

import ctypes
import struct
from array import array
from collections.abc import Sequence
from typing import Final

from llx.cuda.driver import THREADS, Driver
from llx.cuda.layout import Part
from llx.errors import EngineError

MAX_IDS: Final = 480
"""Of one list of a launch, as in `kernels.cu`; longer ones take several launches."""
WAIT_S: Final = 20.0
"""How long anything here waits for the GPU, which may compute for seconds before it copies."""

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


class Ids(ctypes.Structure):
    """Ids of blocks as a kernel takes them: with the launch itself, so there is no upload."""

    _fields_ = (("blocks", ctypes.c_int32 * MAX_IDS),)


def ids_of(blocks: Sequence[int]) -> Ids:
    """At most `MAX_IDS` of them, checked before by `check_ids`."""
    return Ids.from_buffer_copy(array("i", blocks).tobytes().ljust(ctypes.sizeof(Ids), b"\0"))


def check_ids(blocks: Sequence[int], num_blocks: int) -> None:
    """An id that is none must never reach the GPU.

    Raises:
        EngineError: One is not.
    """
    if blocks and not (min(blocks) >= 0 and max(blocks) < num_blocks):
        raise EngineError(f"KV blocks {min(blocks)} to {max(blocks)} of {num_blocks}")
