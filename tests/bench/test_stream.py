"""A streamed answer, in whatever pieces its bytes come."""

import json

import pytest

from llx.bench.record import Outcome, Record, record_of
from llx.bench.stream import StreamConnection


def event(text=" w", tokens=None, **more):
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return f"data: {json.dumps({'choices': [{'text': text}], **usage, **more})}\n\n"


USAGE = 'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
DONE = "data: [DONE]\n\n"


def chunked(*bodies, head="transfer-encoding: chunked\r\nx-llx-instance: tiny-1"):
    text = "".join(f"{len(each):x}\r\n{each}\r\n" for each in bodies)
    return f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n{text}0\r\n\r\n".encode()


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.sent = b""
        self.is_aborted = False

    def write(self, data):
        self.sent += data

    def abort(self):
        self.is_aborted = True


def answered(data, piece=None, *, is_closed=False):
    """The record after these bytes, and whether the connection can be used again."""
    ended = []
    wire, connection = Wire(), StreamConnection(lambda c, record: ended.append(record))
    connection.connection_made(wire)
    record = Record(0, 0.0, 4, 3)
    connection.send(record, b"hello")
    assert wire.sent == b"hello"
    step = piece or len(data)
    for start in range(0, len(data), step):
        connection.data_received(data[start : start + step])
    if is_closed:
        connection.connection_lost(None)
    assert ended in ([], [record])
    return record, bool(ended), connection.is_usable


@pytest.mark.parametrize("piece", [None, 1, 2, 7, 64])
def test_chunked(piece):
    data = chunked(event(tokens=1), event("", tokens=2) + event(tokens=3), USAGE + DONE)
    record, has_ended, is_usable = answered(data, piece)
    assert has_ended
    assert is_usable
    assert (record.outcome, record.error) == (Outcome.OK, "")
    assert (record.num_outputs, record.usage_outputs, record.instance) == (3, 3, "tiny-1")
    assert len(record.gaps_us) == 2


def test_events_may_be_torn_between_chunks():
    text = event(tokens=1) + event(tokens=3) + USAGE + DONE
    record, *_ = answered(chunked(*(text[i : i + 5] for i in range(0, len(text), 5))))
    assert (record.num_outputs, record.outcome) == (3, Outcome.OK)


def test_an_event_of_several_tokens_is_one_gap():
    record, *_ = answered(chunked(event(tokens=1), event(tokens=5), DONE))
    assert (record.num_outputs, len(record.gaps_us)) == (5, 1)


def test_a_server_that_counts_only_at_the_end():
    record, *_ = answered(chunked(event(), event(" two words"), USAGE, DONE))
    assert (record.num_outputs, record.usage_outputs, len(record.gaps_us)) == (3, 3, 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_tokens_that_make_no_character_yet_have_come(number):
    """Half a character is no text, and a server that does not count along says no more."""
    events = [event("" if index == number else " w") for index in range(3)]
    record, *_ = answered(chunked(*events, USAGE, DONE))
    assert (record.num_outputs, len(record.gaps_us)) == (3, 2)


def test_a_server_that_never_counts():
    record, *_ = answered(chunked(event(), event(""), event(), DONE))
    assert (record.num_outputs, record.usage_outputs) == (3, None)


@pytest.mark.parametrize("piece", [None, 3])
def test_a_length_instead_of_chunks(piece):
    body = (event(tokens=1) + DONE).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    record, has_ended, is_usable = answered(head + body, piece)
    assert (has_ended, is_usable, record.outcome) == (True, True, Outcome.OK)


def test_an_answer_that_ends_with_its_connection():
    data = b"HTTP/1.1 200 OK\r\n\r\n" + (event(tokens=1) + DONE).encode()
    assert not answered(data)[1]
    record, has_ended, is_usable = answered(data, is_closed=True)
    assert (has_ended, is_usable, record.outcome) == (True, False, Outcome.OK)


def test_connection_close_is_heeded():
    head = "transfer-encoding: chunked\r\nConnection: close"
    assert answered(chunked(event(tokens=1), DONE, head=head))[2] is False


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nfull", "status 503: full"),
        (b"HTTP/1.1 204 no\r\ncontent-length: 0\r\n\r\n", "status 204"),
        (chunked(event(tokens=1)), "before [DONE]"),
        (chunked('data: {"error":{"message":"EngineDead"}}\n\n', DONE), "EngineDead"),
        (chunked("data: {nonsense\n\n"), "makes no sense"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "makes no sense"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "status ?"),
        (chunked(event(tokens=1))[:-5], "the connection broke"),
    ],
)
def test_failures(data, error):
    record, has_ended, is_usable = answered(data, is_closed="broke" in error or "?" in error)
    assert has_ended
    assert record.outcome is Outcome.FAILED
    assert error in record.error
    assert not is_usable


def test_a_record_survives_its_line():
    record, *_ = answered(chunked(event(tokens=1), event(tokens=2), DONE))
    read = record_of(record.as_line(0.0))
    assert read.as_line(0.0) == record.as_line(0.0)
    assert read.tpot_s == pytest.approx(record.tpot_s, abs=2e-6)
