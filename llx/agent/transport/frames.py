"""What travels on a KV connection: fixed headers, block ids as bytes, two structs that greet.

    source                                            target
      HELLO   what it can, what it is asked for      ──►
                                       ◄──  ADMITTED medium, chunk, why; or FAILED why

      SLOTS   a sealed memfd beside it               ──►                            (shm)
      PAIR    id, [setup]                            ──►    both join               (nccl)
                                       ◄──► JOINED  whether it could                (nccl)

      CHUNK   stage, target blocks, and by medium    ──►    blocks checked, then written
                KV bytes (tcp), a slot (shm), source blocks (cuda-ipc), nothing (nccl)
                                       ◄──  READY                                   (nccl)
                                       ◄──  FREED   a slot (shm), a chunk (cuda-ipc), a round (nccl)
      END     stage, [sampler state], [digest]       ──►    compared, kept
                                       ◄──  ARRIVED stage

Either says FAILED why, and hangs up. Each frame is one header; its fields say how many bytes
follow, and `decode_header` refuses what is out of bounds before anything is allocated. Nothing here
reads or writes a socket.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import msgspec

from llx.errors import WireError
from llx.wire import MAX_ID_BYTES

VERSION = 2
MAX_HELLO_BYTES = 64 << 10
MAX_SHARED_BYTES = 48 << 10
MAX_ADMITTED_BYTES = 4 << 10
MAX_STATE_BYTES = 1 << 20
MAX_REASON_BYTES = 2000
DIGEST_BYTES = 32
MAX_CHUNK_BLOCKS = 1 << 20
"""Blocks of one chunk, whatever they weigh."""
PAIR_ID_BYTES = 16
MAX_SETUP_BYTES = 256
_MAX_SAID_CHARACTERS = 300

_HEADER = struct.Struct("<BBHIIIQ")
HEADER_BYTES = _HEADER.size
_MAGIC = 0x4B + VERSION
_ID_CODE = "i"
BLOCK_ID_BYTES = array(_ID_CODE).itemsize


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1
    CHUNK = 2
    END = 3
    ADMITTED = 4
    FREED = 5
    ARRIVED = 6
    FAILED = 7
    SLOTS = 8
    PAIR = 9
    JOINED = 10
    READY = 11


class Last(IntEnum):
    """What the end of a stage brings along."""

    NO = 0
    """Another stage follows."""
    STATE = 1
    """It is the last stage; the sampler's state follows."""
    CHECKED = 2
    """And a digest of every block copied, behind the state."""


class Round(IntFlag):
    """What a chunk that goes through a pair is to its round."""

    LAST = 1
    """Nothing more is begun before all of it is done."""
    URGENT = 2
    """A request stands still for it."""


class Joined(IntEnum):
    """Whether an end has joined a pair."""

    YES = 0
    NO = 1
    UNKNOWN = 2
    """Target: there is no such pair here (any more)."""


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a frame. A field means what its kind says, and is 0 otherwise.

    Attributes:
        kind: What it is.
        mark: END: a `Last`. CHUNK, FREED: the slot of shared memory. CHUNK through a pair: a
            `Round`. SLOTS: how many. JOINED: a `Joined`.
        stage: CHUNK, END, ARRIVED: which one.
        num_blocks: CHUNK: blocks in it. END: blocks of the whole stage. ADMITTED, JOINED: most
            blocks of a chunk; of ADMITTED at most what the source offered.
        crc: CHUNK: CRC-32 of its KV bytes. END: of what follows. 0 where none was asked for.
        size: Bytes that follow, block ids apart; of a chunk in a slot, the bytes in the slot; of
            SLOTS the bytes of each.
    """

    kind: Kind
    mark: int = 0
    stage: int = 0
    num_blocks: int = 0
    crc: int = 0
    size: int = 0

    def encode(self) -> bytes:
        """`HEADER_BYTES` bytes."""
        return _HEADER.pack(
            _MAGIC, self.kind, self.mark, self.stage, self.num_blocks, self.crc, self.size
        )


_MAX_SIZE = {
    Kind.HELLO: MAX_HELLO_BYTES,
    Kind.END: MAX_STATE_BYTES + DIGEST_BYTES,
    Kind.ADMITTED: MAX_ADMITTED_BYTES,
    Kind.FREED: 0,
    Kind.ARRIVED: 0,
    Kind.FAILED: MAX_REASON_BYTES,
    Kind.PAIR: PAIR_ID_BYTES + MAX_SETUP_BYTES,
    Kind.JOINED: MAX_REASON_BYTES,
    Kind.READY: 0,
}


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in `data`; of a chunk, the receiver still compares its size with its store's.

    Raises:
        WireError: It is none, of another version, or announces more than its kind may bring.
    """
    if len(data) != HEADER_BYTES:
        raise WireError(f"header of {len(data)} bytes ({HEADER_BYTES} expected)")
    magic, number, mark, stage, num_blocks, crc, size = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise WireError("not a KV connection of this version of llx")
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"frame of unknown kind {number}") from None
    if size > _MAX_SIZE.get(kind, size):
        raise WireError(f"{kind.name} of {size} bytes ({_MAX_SIZE[kind]} allowed)")
    if kind is Kind.CHUNK and not 1 <= num_blocks <= MAX_CHUNK_BLOCKS:
        raise WireError(f"chunk of {num_blocks} blocks (1 to {MAX_CHUNK_BLOCKS} allowed)")
    if kind is Kind.END and mark not in iter(Last):
        raise WireError(f"end of a stage with mark {mark}")
    if kind is Kind.END and size < (DIGEST_BYTES if mark == Last.CHECKED else 0):
        raise WireError("end of a stage without the digest it announces")
    if kind is Kind.PAIR and size < PAIR_ID_BYTES:
        raise WireError("pair without an id")
    if kind is Kind.JOINED and mark not in iter(Joined):
        raise WireError(f"joined with mark {mark}")
    return Header(kind, mark, stage, num_blocks, crc, size)


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Opens a connection. That it is of this `VERSION` is in its header, as in every other.

    Attributes:
        migration: Which one.
        token: Admits there.
        layout: Of the source's store, as `block_bytes`.
        block_bytes: Of one block.
        chunk_blocks: Most blocks of a chunk of bytes, as the source would have it.
        is_checked: Both ends read everything back with the last stage.
        has_crc: Bytes on sockets and in slots carry a checksum.
        asked: The medium that is to be used, or ``auto``.
        gpu: UUID of the source's GPU; empty: it has none.
        shared: What `llx.ports.DeviceKv.open_peer` takes; empty: see `lacks`.
        rank: Random identity of the source's rank, for pairs.
        nccl: The source's version of NCCL; empty: it has none.
        lacks: Media that the source cannot offer, and why not.
    """

    migration: str
    token: bytes
    layout: str
    block_bytes: int
    chunk_blocks: int
    is_checked: bool
    has_crc: bool
    asked: str = "auto"
    gpu: str = ""
    shared: bytes = b""
    rank: bytes = b""
    nccl: str = ""
    lacks: dict[str, str] = {}


class Admitted(msgspec.Struct, frozen=True, array_like=True):
    """Body of ADMITTED: the medium, the target's rank, and why not each better medium."""

    medium: str
    rank: bytes = b""
    why_not: dict[str, str] = {}


_hello_decoder = msgspec.msgpack.Decoder(Hello)
_admitted_decoder = msgspec.msgpack.Decoder(Admitted)


def encode_hello(hello: Hello) -> bytes:
    """The whole HELLO frame.

    Raises:
        WireError: It is too long to be understood.
    """
    body = msgspec.msgpack.encode(hello)
    if len(body) > MAX_HELLO_BYTES:
        raise WireError(f"hello of {len(body)} bytes ({MAX_HELLO_BYTES} allowed)")
    return Header(Kind.HELLO, size=len(body)).encode() + body


def decode_hello(body: bytes | bytearray | memoryview) -> Hello:
    """The hello in what followed its header.

    Raises:
        WireError: It is none, or its figures are absurd.
    """
    try:
        hello = _hello_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a hello: {error}") from None
    if not 0 < len(hello.migration) <= MAX_ID_BYTES:
        raise WireError(f"id of {len(hello.migration)} characters")
    if not 1 <= hello.chunk_blocks <= MAX_CHUNK_BLOCKS:
        raise WireError(f"chunks of {hello.chunk_blocks} blocks")
    return hello


def encode_admitted(admitted: Admitted) -> bytes:
    """The body of ADMITTED; what is said at length is cut."""
    said = {name: line_of(why) for name, why in admitted.why_not.items()}
    return msgspec.msgpack.encode(Admitted(admitted.medium, admitted.rank, said))


def decode_admitted(body: bytes | bytearray | memoryview) -> Admitted:
    """What `encode_admitted` has made.

    Raises:
        WireError: It is something else.
    """
    try:
        return _admitted_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not an admission: {error}") from None


def line_of(text: str) -> str:
    """One line of bounded length that says the same, or begins to."""
    return " ".join(text.split())[:_MAX_SAID_CHARACTERS]


def encode_blocks(blocks: Sequence[int]) -> "array[int]":
    """Block ids as they travel: little-endian on every host llx runs on."""
    return array(_ID_CODE, blocks)


def decode_blocks(data: bytes | bytearray | memoryview) -> "array[int]":
    """What `encode_blocks` has made; its length is a multiple of `BLOCK_ID_BYTES`."""
    blocks = array(_ID_CODE)
    blocks.frombytes(data)
    return blocks
