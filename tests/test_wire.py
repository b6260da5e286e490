"""The wire: every message survives, everything else is refused with a WireError."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx import wire
from llx.core.model import Epoch, InstanceId, Nanos, PoolName, RequestId, Term
from llx.errors import WireError

ids = st.text(min_size=1, max_size=60)
small = st.integers(0, 2**40)
info = st.builds(wire.InstanceInfo, *[ids] * 6, *[small] * 7, ids)
to_instance = st.one_of(
    st.builds(wire.Hello, ids, small, ids, ids, ids, small),
    st.builds(wire.Ping, small),
    st.builds(wire.Bye, small),
    st.builds(wire.Add, ids, small, small),
    st.builds(wire.Abort, st.lists(st.tuples(ids, small))),
    st.builds(wire.Call, small, ids),
)
from_instance = st.one_of(
    st.builds(wire.Ready, small, info, st.binary()),
    st.builds(wire.Refused, small, ids),
    st.builds(wire.Outputs, small, st.lists(st.tuples(small, small))),
    st.builds(wire.Load, *[small] * 11,
              st.dictionaries(st.integers(-9, 9), st.tuples(small, small, small))),
    st.builds(wire.Prefixes, small, small, small, st.booleans(), st.binary(), st.binary()),
    st.builds(wire.Reply, small, ids),
    st.builds(wire.Dead, ids),
)  # fmt: skip
member = st.builds(wire.Member, ids, ids, ids, ids, st.booleans())
to_scheduler = st.one_of(
    st.builds(wire.GatewayHello, ids, ids, small, ids, small, small),
    st.builds(wire.GatewayReport, ids, *[small] * 6, st.lists(ids)),
)
members = st.builds(wire.Members, small, small, st.lists(member))

UNIONS = {
    "to_instance": (wire.ToInstance, to_instance),
    "from_instance": (wire.FromInstance, from_instance),
    "to_scheduler": (wire.ToScheduler, to_scheduler),
    "from_scheduler": (wire.FromScheduler, members),
}


@pytest.mark.parametrize("name", UNIONS)
@given(data=st.data())
def test_every_message_survives_the_wire(name, data):
    union, messages = UNIONS[name]
    message = data.draw(messages)
    assert wire.Decoder(union).decode(wire.encode(message)) == message


@pytest.mark.parametrize("name", UNIONS)
@given(data=st.data())
def test_a_message_of_another_direction_is_refused(name, data):
    union, _ = UNIONS[name]
    others = [messages for other, (_, messages) in UNIONS.items() if other != name]
    with pytest.raises(WireError):
        wire.Decoder(union).decode(wire.encode(data.draw(st.one_of(others))))


@pytest.mark.parametrize("name", UNIONS)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_a_message_never_a_crash(name, noise):
    union, _ = UNIONS[name]
    for frame in (noise, bytes([wire.WIRE_VERSION]) + noise):
        try:
            message = wire.Decoder(union).decode(frame)
        except WireError:
            continue
        assert isinstance(message, union)


@given(message=to_instance, at=st.integers(0, 500), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_a_message_never_a_crash(message, at, value):
    frame = bytearray(wire.encode(message))
    frame[at % len(frame)] = value
    try:
        decoded = wire.Decoder(wire.ToInstance).decode(bytes(frame))
    except WireError:
        return
    assert isinstance(decoded, wire.ToInstance)


@given(message=from_instance, cut=st.integers(0, 500))
def test_a_truncated_message_is_refused(message, cut):
    frame = wire.encode(message)
    with pytest.raises(WireError):
        wire.Decoder(wire.FromInstance).decode(frame[: cut % len(frame)])


def test_another_wire_version_is_named():
    frame = bytes([wire.WIRE_VERSION + 1]) + wire.encode(wire.Ping(1))[1:]
    with pytest.raises(WireError, match=f"wire version {wire.WIRE_VERSION + 1}"):
        wire.Decoder(wire.ToInstance).decode(frame)


@pytest.mark.parametrize("request_id", ["", "x" * (wire.MAX_ID_BYTES + 1)])
def test_absurd_ids_are_refused(request_id):
    for message in (
        wire.Add(RequestId(request_id), Epoch(1), 1),
        wire.Abort([(RequestId(request_id), Epoch(1))]),
    ):
        with pytest.raises(WireError, match="id of"):
            wire.Decoder(wire.ToInstance).decode(wire.encode(message))


def test_an_oversized_header_is_refused_before_it_is_parsed():
    with pytest.raises(WireError, match="header frame of"):
        wire.Decoder(wire.ToInstance).decode(b"\x01" + b"\x00" * wire.MAX_HEADER_BYTES)


def test_multipart_shapes_are_bounded():
    for frames in ([], [b""] * (wire.MAX_FRAMES + 1)):
        with pytest.raises(WireError, match="frames"):
            wire.check_frames(frames)
    wire.check_frames([b"x"] * wire.MAX_FRAMES)


def test_a_python_object_cannot_ride_along():
    """Extension types are how pickles travel in some protocols; ours has none."""
    payload = msgspec.msgpack.encode(["ping", msgspec.msgpack.Ext(1, b"cos\nsystem\n")])
    with pytest.raises(WireError):
        wire.Decoder(wire.ToInstance).decode(b"\x01" + payload)


def load(**changes):
    fields = {
        "session": 1,
        "seen": 0,
        "at": Nanos(0),
        "total": 10,
        "free": 4,
        "block_size": 16,
        "num_running": 1,
        "num_waiting": 2,
        "waiting_demand": 3,
        "waiting_tokens": 40,
        "num_preempted": 1,
        "classes": {10: (1, 2, 3)},
    }
    return wire.Load(**(fields | changes))


def test_a_load_report_becomes_the_cores_value():
    value = load().instance_load()
    assert (value.used, value.num_waiting, value.classes[10].waiting_demand) == (6, 2, 3)


@pytest.mark.parametrize("changes", [{"free": 11}, {"free": -1}, {"block_size": 0}])
def test_a_contradictory_load_report_is_refused(changes):
    with pytest.raises(WireError, match="load report"):
        load(**changes).instance_load()


def test_terms_and_versions_are_on_the_members_message():
    message = wire.Members(
        Term(3), 7, [wire.Member(InstanceId("a"), PoolName("p"), "tcp://x", "tcp://y")]
    )
    decoded = wire.Decoder(wire.FromScheduler).decode(wire.encode(message))
    assert (decoded.term, decoded.version) == (3, 7)
