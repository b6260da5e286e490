"""Protocols with two implementations each: the seams of the house."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, MigrationId, RequestId
from llx.wire import Add, Call, RequestView, Reserve, Route

Frame = bytes | memoryview

SET_PRIORITY = "llx_set_priority"
"""The utility that has an engine serve a request by another priority: request, priority → whether
it is here, as `MigratingEngine.set_priority` says."""
PIN = "llx_pin"
"""The utility that keeps a request from being moved: request, words, empty for *no longer* → why
not; empty: it is done."""
NOT_HERE = "it is not here"
IS_LEAVING = "it is being moved"


class EngineSink(Protocol):
    """The engine behind an instance's endpoint: vLLM's engine core, or the simulated one.

    Called on the endpoint's input thread; an implementation hands over to its own core thread.
    `peer` is an index that stands for one session of one peer and is never reused.
    """

    def add(self, peer: int, header: Add, payload: Sequence[Frame]) -> None:
        """A new request, in the engine's own encoding."""

    def abort(self, peer: int, requests: list[tuple[RequestId, Epoch]]) -> None:
        """End requests, each only if held at that epoch or an earlier one."""

    def call(self, peer: int, header: Call, payload: Sequence[Frame]) -> None:
        """A utility call whose name is on the allow-list; answered by a `Reply`."""

    def drop_peer(self, peer: int) -> None:
        """The session is over: abort everything it left behind."""


class MigratingEngine(Protocol):
    """An engine whose running requests can leave and arrive: what the llumlet needs of it.

    Except for `on_core` and `prepare`, every method is called on the engine's core thread, between
    two steps, and returns at once. A request is *watched* from `begin` until `unwatch`, `resume` or
    `release`; if it ends or loses its blocks meanwhile, the listener of `watch` is told.
    """

    def on_core(self, action: Callable[[], None]) -> None:
        """Run `action` on the core thread between two steps, in order; wakes an idle engine."""

    def watch(self, listener: Callable[[RequestId, str], None]) -> None:
        """Whom to tell, on the core thread, that a watched request is no longer there, and why."""

    def requests(self) -> list[RequestView]:
        """All that is held here."""

    def set_priority(self, request: RequestId, priority: int) -> bool:
        """Serve a request by another priority from now on. False: it is not here, or was cut."""

    # ---------------------------------------------------------------- source

    def begin(self, request: RequestId) -> Begun | str:
        """Watch a request that is to leave; a string says why it cannot."""

    def progress(self, request: RequestId) -> Progress | None:
        """How far it is by now; None if it ended or was preempted since `begin`."""

    def cut(self, request: RequestId, done: Callable[[Cut | None], None]) -> None:
        """Take it out of the batch; `done` is called once no step of it is in flight any more.

        None: it ended first. Its blocks stay; it is neither running nor waiting.
        """

    def resume(self, request: RequestId, epoch: Epoch) -> None:
        """Put a request that was cut back into the batch, under that epoch."""

    def release(self, request: RequestId) -> None:
        """Free a request that was cut; nothing more is said of it to anybody."""

    def unwatch(self, request: RequestId) -> None:
        """It stays after all, and was not cut."""

    # ---------------------------------------------------------------- target

    def prepare(self, header: Reserve, payload: Sequence[Frame]) -> object | str:
        """Decode a request that is to arrive, on the llumlet's thread; a string refuses it."""

    def reserve(
        self, migration: MigrationId, prepared: object, num_tokens: int, *, reuse_prefix: bool
    ) -> Reservation | str | None:
        """Allocate blocks for `num_tokens` tokens of it; it is in no queue.

        A string refuses it (no room, id taken, …). None: not ready yet (a grammar is being
        compiled), ask again.
        """

    def extend(self, migration: MigrationId, num_tokens: int) -> Reservation | str:
        """Allocate more; a string refuses, and what was reserved stays."""

    def commit(
        self,
        migration: MigrationId,
        peer: int,
        epoch: Epoch,
        outputs: Sequence[int],
        num_computed: int,
    ) -> str:
        """Own it: `peer` gets its outputs under `epoch` from here on.

        The KV of its first `num_computed` tokens lies in the blocks reserved. A string says why it
        cannot be; nothing is held for it any more then.
        """

    def abandon(self, migration: MigrationId) -> None:
        """Free what was reserved; nothing if there is nothing."""


class KvStore(Protocol):
    """One rank's KV cache, as bytes. Any thread; a block is read only while nobody writes it."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of this rank, all layers together."""

    @property
    def layout(self) -> str:
        """Names shape, dtype and order of the bytes: equal at both ends of a copy."""

    def pack(self, blocks: Sequence[int], out: memoryview) -> None:
        """Gather blocks into `out`, ``len(blocks) * block_bytes`` bytes."""

    def unpack(self, blocks: Sequence[int], data: memoryview) -> None:
        """Scatter what `pack` has gathered into blocks, in the same order."""

    def buffer(self, size_bytes: int) -> memoryview:
        """Memory that `pack` and `unpack` are fastest with; freed with the last view of it."""

    @property
    def device(self) -> "DeviceKv | None":
        """The same cache as other GPUs reach it; None: it lies in the memory of the CPU."""

    def sampler_state(self, request: RequestId) -> bytes:
        """What this rank's sampler needs to go on with a request that was cut; may be empty."""

    def keep_sampler_state(self, migration: MigrationId, state: bytes) -> None:
        """Keep it for the request that the migration brings; empty: forget it."""


class DeviceKv(Protocol):
    """One rank's KV cache in the memory of a GPU: what joins it to another rank's. Any thread.

    Everything here may be refused with an `EngineError` that says why, and then nothing is left.
    """

    @property
    def gpu(self) -> str:
        """UUID of the GPU."""

    @property
    def nccl(self) -> str:
        """Version and use of NCCL, which have to be equal at both ends; empty: there is none."""

    def share(self) -> bytes:
        """For `open_peer` in another process of this host."""

    def open_peer(self, shared: bytes) -> "PeerKv":
        """Map the cache of another process, which may be of another GPU of this host."""

    def new_pair(self) -> bytes:
        """The id of a communicator to be, for `join` at both ends; at most 256 bytes."""

    def join(self, pair: bytes, *, is_source: bool, is_cancelled: Callable[[], bool]) -> "PairEnd":
        """This end of a communicator for KV from a source to a target; both ends join at once.

        Waits for the other end, seconds at most, and less if `is_cancelled` says so.
        """


class PeerKv(Protocol):
    """Another process's KV cache, mapped into this one. One thread."""

    def read(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy its blocks `source` into the own blocks `target`, one to one; done on return.

        Raises:
            EngineError: The copy failed; what is in the targets is undefined.
        """

    def close(self) -> None:
        """Unmap it."""


class PairEnd(Protocol):
    """One end of a pairwise communicator. One thread at a time; both ends go the same way.

        source    prepare(chunk 1)  send()  prepare(chunk 2)  send() …          finish()
        target    receive(chunk 1)          receive(chunk 2) …                  finish()

    All but `finish` return at once, as a rule: the GPU does the rest in order. A `send` is begun
    when the target has called the matching `receive`, never before. At most `depth` chunks are
    between `prepare` or `receive` and `finish` without the call waiting for the first of them.
    Whatever fails raises `EngineError`; the end is broken then and only good for `close`.
    """

    @property
    def chunk_blocks(self) -> int:
        """Most blocks of a chunk; may differ between the ends."""

    @property
    def depth(self) -> int:
        """How many chunks go at once."""

    def prepare(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        """Source: gather blocks for the next `send`."""

    def send(self, is_cancelled: Callable[[], bool]) -> None:
        """Source: send the oldest chunk that was prepared and not sent."""

    def receive(self, blocks: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        """Target: take the next chunk and scatter it into blocks."""

    def finish(self, is_cancelled: Callable[[], bool]) -> None:
        """Wait until all that was begun is done; at a target it is in its blocks then."""

    def close(self) -> None:
        """Take it down, also in the middle of a chunk; nothing is read or written afterwards."""


class KvListener(Protocol):
    """Who is told by a `KvTransport`; on any thread, must not block."""

    def on_arrived(self, migration: MigrationId, stage: int) -> None:
        """Target: every rank has a whole stage in its blocks. Once per stage, in order."""

    def on_broken(self, migration: MigrationId, reason: str) -> None:
        """Target: a connection of an open migration ended before `close`."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a `KvTransport.send` has done.

    Attributes:
        size_bytes: Of the KV, over all ranks.
        medium: How it went: ``cuda-ipc``, ``nccl``, ``shm`` or ``tcp``; where ranks differ, that
            of each: ``nccl, tcp``.
        why: Why by no better medium: ``cuda-ipc: no GPU; nccl: no GPU``; empty for the best.
    """

    size_bytes: int
    medium: str
    why: str = ""


class KvTransport(Protocol):
    """Moves KV between two instances, rank by rank: all of it in one object per instance.

    Source and target are used on one thread (the llumlet's); nothing here blocks.
    """

    @property
    def routes(self) -> list[Route]:
        """How this instance's ranks are reached."""

    def expect(self, migration: MigrationId, token: bytes, blocks: Sequence[int]) -> None:
        """Target: admit connections of that migration which know `token`, to write `blocks`."""

    def allow(self, migration: MigrationId, blocks: Sequence[int]) -> None:
        """Target: let it write these blocks as well; nothing if it has been fenced."""

    def fence(self, migration: MigrationId, done: Callable[[], None]) -> None:
        """Target: admit nothing more; when `done` is called nothing is written any more."""

    def finish(self, migration: MigrationId) -> None:
        """Target: it is committed; the end of its connections is no failure."""

    def open(
        self, migration: MigrationId, routes: Sequence[Route], token: bytes, *, is_checked: bool
    ) -> None:
        """Source: connect, rank by rank. What fails is said by the first `send`.

        `is_checked`: with the last stage both ends read back every block copied; a difference
        breaks the migration at both.
        """

    def send(
        self,
        migration: MigrationId,
        stage: int,
        source: Sequence[int],
        target: Sequence[int],
        *,
        state_of: RequestId | None,
        done: Callable[[Copied | str], None],
    ) -> None:
        """Source: copy blocks `source` to blocks `target`, one to one; both may be empty.

        `state_of`: send that request's sampler state along (the last stage). `done` gets what was
        sent, over all ranks, once the target has it in its blocks; or why it has not.
        """

    def close(self, migration: MigrationId) -> None:
        """Source: end its connections; the target hears of it unless it has finished."""


class Llumlet(Protocol):
    """The migration end of an instance, as the endpoint sees it; called on its input thread."""

    def receive(self, peer: int, message: object, payload: Sequence[Frame]) -> None:
        """A message of `llx.wire.ToLlumlet` from a session."""

    def drop_peer(self, peer: int) -> None:
        """The session is over."""
