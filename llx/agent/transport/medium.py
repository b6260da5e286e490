"""What a medium is to the two ends of a connection, and what it is given by them.

The ends speak of stages, checks and digests; a medium gets the blocks of one stage across.
"""

import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llx.agent.transport.admissions import Admission, Admissions
from llx.agent.transport.budget import Budget
from llx.agent.transport.choice import Medium
from llx.agent.transport.frames import Header
from llx.agent.transport.source_wire import SourceWire
from llx.agent.transport.target_wire import TargetWire
from llx.errors import EngineError
from llx.ports import KvStore

CLOSED = "its connection was closed at the source"


@dataclass(frozen=True, slots=True)
class SourceEnd:
    """What a medium works with at the source. One thread, but for `closing`."""

    wire: SourceWire
    store: KvStore
    budget: Budget
    closing: threading.Event

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.store.block_bytes

    def pace(self, num_blocks: int) -> None:
        """Wait until so much may be sent.

        Raises:
            EngineError: The migration was closed meanwhile.
        """
        self.budget.take(num_blocks * self.block_bytes, self.closing)
        if self.closing.is_set():
            raise EngineError(CLOSED)

    def is_cancelled(self) -> bool:
        """Whether there is no use in going on; at once."""
        return self.closing.is_set() or self.wire.has_hung_up()


class SourceMedium(Protocol):
    """The source's end of a medium. One thread."""

    @property
    def medium(self) -> Medium:
        """Which."""

    def copy(
        self, stage: int, source: "array[int]", target: "array[int]", *, is_final: bool
    ) -> None:
        """Get the blocks of a stage on their way; they are there once the target has its end."""

    def close(self) -> None:
        """Give back what it holds; the connection is the caller's."""


@dataclass(frozen=True, slots=True)
class TargetEnd:
    """What a medium works with at the target. One thread."""

    wire: TargetWire
    store: KvStore
    admissions: Admissions
    admission: Admission
    chunk_blocks: int
    """Most blocks of a chunk of bytes, as both ends can."""
    has_crc: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.store.block_bytes


class TargetMedium(Protocol):
    """The target's end of a medium. One thread."""

    def take(self, header: Header, written: Callable[["array[int]"], None]) -> None:
        """A chunk begins with that header: get it into its blocks, and what belongs to it.

        `written` is called with blocks that were written, in the order of the chunks.
        """

    def close(self) -> None:
        """Give back what it holds; the connection is the caller's."""
