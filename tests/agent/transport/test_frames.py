"""Frames of KV connections: what is said is understood, and nonsense is a WireError."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.agent.transport.frames import (
    DIGEST_BYTES,
    HEADER_BYTES,
    MAX_ADMITTED_BYTES,
    MAX_CHUNK_BLOCKS,
    MAX_HELLO_BYTES,
    MAX_SETUP_BYTES,
    MAX_STATE_BYTES,
    PAIR_ID_BYTES,
    Admitted,
    Header,
    Hello,
    Kind,
    Last,
    decode_admitted,
    decode_blocks,
    decode_header,
    decode_hello,
    encode_admitted,
    encode_blocks,
    encode_hello,
)
from llx.errors import WireError

HELLO = Hello("m-1", b"token", "8xbfloat16[2,16,2,64]", 32768, 128, is_checked=True, has_crc=True)
UINT32 = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(
    st.builds(
        Header,
        st.just(Kind.CHUNK),
        st.integers(0, 2**16 - 1),
        UINT32,
        st.integers(1, MAX_CHUNK_BLOCKS),
        UINT32,
        st.integers(0, 2**64 - 1),
    )
)
def test_a_header_comes_back(header: Header) -> None:
    data = header.encode()
    assert len(data) == HEADER_BYTES
    assert decode_header(data) == header


@settings(deadline=None)
@given(st.binary(min_size=0, max_size=2 * HEADER_BYTES))
def test_nonsense_is_refused(data: bytes) -> None:
    try:
        header = decode_header(data)
    except WireError:
        return
    assert header.encode() == data


@settings(deadline=None)
@given(st.binary(min_size=HEADER_BYTES - 1, max_size=HEADER_BYTES - 1))
def test_whatever_passes_is_within_bounds(rest: bytes) -> None:
    try:
        header = decode_header(Header(Kind.FREED).encode()[:1] + rest)
    except WireError:
        return
    if header.kind is Kind.CHUNK:
        assert 1 <= header.num_blocks <= MAX_CHUNK_BLOCKS
    elif header.kind is not Kind.SLOTS:  # whose size is that of a slot: nothing follows
        assert header.size <= MAX_STATE_BYTES + DIGEST_BYTES


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_hello_of_nonsense_is_refused(body: bytes) -> None:
    try:
        hello = decode_hello(body)
    except WireError:
        return
    assert hello.migration


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.HELLO, size=MAX_HELLO_BYTES + 1),
        Header(Kind.END, size=MAX_STATE_BYTES + DIGEST_BYTES + 1),
        Header(Kind.END, mark=3),
        Header(Kind.END, mark=Last.CHECKED, size=DIGEST_BYTES - 1),
        Header(Kind.CHUNK, num_blocks=0),
        Header(Kind.CHUNK, num_blocks=MAX_CHUNK_BLOCKS + 1),
        Header(Kind.ARRIVED, size=1),
        Header(Kind.PAIR, size=PAIR_ID_BYTES - 1),
        Header(Kind.PAIR, size=PAIR_ID_BYTES + MAX_SETUP_BYTES + 1),
        Header(Kind.JOINED, mark=3),
        Header(Kind.ADMITTED, size=MAX_ADMITTED_BYTES + 1),
    ],
)
def test_out_of_bounds(header: Header) -> None:
    with pytest.raises(WireError):
        decode_header(header.encode())


def test_a_hello_comes_back() -> None:
    frame = encode_hello(HELLO)
    header = decode_header(frame[:HEADER_BYTES])
    assert (header.kind, header.size) == (Kind.HELLO, len(frame) - HEADER_BYTES)
    assert decode_hello(frame[HEADER_BYTES:]) == HELLO


def test_an_admission_comes_back_and_its_reasons_are_lines() -> None:
    admitted = Admitted("shm", b"rank", {"nccl": "one\n  two " + "x" * 9000})
    body = encode_admitted(admitted)
    assert len(body) < MAX_ADMITTED_BYTES
    found = decode_admitted(body)
    assert found.why_not["nccl"].startswith("one two xxx")
    with pytest.raises(WireError):
        decode_admitted(body[:-1])


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1)))
def test_block_ids_come_back(blocks: list[int]) -> None:
    assert decode_blocks(encode_blocks(blocks).tobytes()).tolist() == blocks
