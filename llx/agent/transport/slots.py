"""Shared memory of one connection within a host: a sealed memfd of equal slots.

The source makes it, packs into a slot and names it; the target unpacks out of its own mapping and
gives the slot back. Nobody outside the two ever sees a name for it, and it ends with the last of
them, however they end.
"""

import contextlib
import fcntl
import mmap
import os

from llx.errors import WireError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Slots:
    """A mapping of `num_slots` slots of `slot_bytes` bytes, whole pages each.

    A slot is read and written as a memoryview, which nobody keeps.
    """

    def __init__(self, fd: int, slot_bytes: int, num_slots: int) -> None:
        # Populated at once: a page fault per 4 KiB costs as much as copying them.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self.slot_bytes, self.num_slots = slot_bytes, num_slots
        self._map = mmap.mmap(fd, slot_bytes * num_slots, flags)
        self._views = memoryview(self._map)

    def __getitem__(self, slot: int) -> memoryview:
        assert 0 <= slot < self.num_slots, f"slot {slot} of {self.num_slots}"
        return self._views[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]

    def close(self) -> None:
        """Unmap; what a traceback still refers to goes with it."""
        with contextlib.suppress(BufferError):
            self._views.release()
            self._map.close()


def make_slots(size_bytes: int, num_slots: int) -> tuple[int, Slots]:
    """A new memfd (the caller closes it once it is passed on) and its mapping here."""
    slot_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("llx-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, slot_bytes * num_slots)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd, Slots(fd, slot_bytes, num_slots)
    except BaseException:
        os.close(fd)
        raise


def map_slots(fd: int, slot_bytes: int, num_slots: int) -> Slots:
    """Map what a peer has passed.

    Raises:
        WireError: It is no memfd of that size that is sealed against shrinking: reading behind
            the end of a mapped file kills the process.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise WireError("shared memory that is not sealed")
        if os.fstat(fd).st_size != slot_bytes * num_slots or slot_bytes % mmap.PAGESIZE:
            raise WireError("shared memory of another size than announced")
        return Slots(fd, slot_bytes, num_slots)
    except (OSError, ValueError) as error:
        raise WireError(f"shared memory that cannot be mapped: {error}") from None
