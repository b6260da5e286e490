"""What travels on a KV connection: fixed headers, block ids as bytes, one struct that greets.

    source                                            target
      HELLO   (a sealed memfd beside it, within a host)  ──►
                                       ◄──  ADMITTED chunk, or FAILED why
      CHUNK   stage, target blocks, KV bytes or a slot   ──►   blocks checked, crc checked, unpacked
                                       ◄──  FREED slot         (slots only)
      END     stage, [sampler state], [digest]           ──►   compared, kept
                                       ◄──  ARRIVED stage, or FAILED why; then it hangs up

Each frame is one header; its fields say how many bytes follow, and `Header` refuses what is out of
bounds before anything is allocated. Nothing here reads or writes a socket.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from llx.errors import WireError
from llx.wire import MAX_ID_BYTES

VERSION = 1
MAX_HELLO_BYTES = 16 << 10
MAX_STATE_BYTES = 1 << 20
MAX_REASON_BYTES = 2000
DIGEST_BYTES = 32
MAX_CHUNK_BLOCKS = 1 << 20
"""Blocks of one chunk, whatever they weigh."""

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


class Last(IntEnum):
    """What the end of a stage brings along."""

    NO = 0
    """Another stage follows."""
    STATE = 1
    """It is the last stage; the sampler's state follows."""
    CHECKED = 2
    """And a digest of every block copied, behind the state."""


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a frame. A field means what its kind says, and is 0 otherwise.

    Attributes:
        kind: What it is.
        mark: END: a `Last`. CHUNK, FREED: the slot of shared memory.
        stage: CHUNK, END, ARRIVED: which one.
        num_blocks: CHUNK: blocks in it. END: blocks of the whole stage. ADMITTED: most blocks of a
            chunk, at most what the source offered.
        crc: CHUNK: CRC-32 of its KV bytes. END: of what follows. 0 where none was asked for.
        size: Bytes that follow, block ids apart; of a chunk in a slot, the bytes in the slot.
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
    Kind.ADMITTED: 0,
    Kind.FREED: 0,
    Kind.ARRIVED: 0,
    Kind.FAILED: MAX_REASON_BYTES,
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
    if kind is not Kind.CHUNK and size > _MAX_SIZE[kind]:
        raise WireError(f"{kind.name} of {size} bytes ({_MAX_SIZE[kind]} allowed)")
    if kind is Kind.CHUNK and not 1 <= num_blocks <= MAX_CHUNK_BLOCKS:
        raise WireError(f"chunk of {num_blocks} blocks (1 to {MAX_CHUNK_BLOCKS} allowed)")
    if kind is Kind.END and mark not in iter(Last):
        raise WireError(f"end of a stage with mark {mark}")
    if kind is Kind.END and size < (DIGEST_BYTES if mark == Last.CHECKED else 0):
        raise WireError("end of a stage without the digest it announces")
    return Header(kind, mark, stage, num_blocks, crc, size)


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Opens a connection. That it is of this `VERSION` is in its header, as in every other.

    `chunk_blocks`: most blocks of a chunk, as the source would have it. `slot_bytes`: a sealed
    memfd of `num_slots` such slots comes with this frame, and chunks lie there; 0: none does.
    """

    migration: str
    token: bytes
    layout: str
    block_bytes: int
    chunk_blocks: int
    is_checked: bool
    has_crc: bool
    slot_bytes: int = 0
    num_slots: int = 0


_hello_decoder = msgspec.msgpack.Decoder(Hello)


def encode_hello(hello: Hello) -> bytes:
    """The whole HELLO frame."""
    body = msgspec.msgpack.encode(hello)
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
    if hello.slot_bytes < 0 or not 0 <= hello.num_slots <= 64:
        raise WireError(f"{hello.num_slots} slots of {hello.slot_bytes} bytes")
    return hello


def encode_blocks(blocks: Sequence[int]) -> "array[int]":
    """Block ids as they travel: little-endian on every host llx runs on."""
    return array(_ID_CODE, blocks)


def decode_blocks(data: bytes | bytearray | memoryview) -> "array[int]":
    """What `encode_blocks` has made; its length is a multiple of `BLOCK_ID_BYTES`."""
    blocks = array(_ID_CODE)
    blocks.frombytes(data)
    return blocks
