import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import Blocks, ClassLoad, InstanceId, InstanceLoad, Nanos, PoolName, RequestId
from llx.core.scheduler.commands import Dispatch, Refusal, Refuse
from llx.core.scheduler.config import PoolConfig, PriorityClass, Rescheduling, Scaling, Slo
from llx.core.scheduler.decision import Decision, Option
from llx.core.scheduler.events import (
    InstanceChanged,
    InstanceJoined,
    InstanceLeft,
    InstanceState,
    LoadReported,
    MoveEnded,
    MoveId,
    MoveOutcome,
    Paused,
    PoolConfigured,
    PoolGone,
    RequestArrived,
    RequestWithdrawn,
    Resumed,
    StartFailed,
    Stepped,
    Ticked,
)
from llx.errors import ConfigError
from llx.recording import Recorder, Recording, command_bytes

POOL, ONE = PoolName("m"), InstanceId("m-0")
CLASSES = (PriorityClass("high", -3, Blocks(8), slo=Slo(10**9, 10**7)), PriorityClass("normal", 5))
LOAD = InstanceLoad(Blocks(100), Blocks(40), 16, 3, classes={-3: ClassLoad(1), 5: ClassLoad(2)})
EVENTS = [
    PoolConfigured(PoolConfig(POOL, CLASSES)),
    PoolConfigured(
        PoolConfig(
            POOL,
            CLASSES,
            rescheduling=replace(Rescheduling(), low=float("-inf"), high=float("inf")),
            scaling=Scaling(max_instances=4, high=float("inf")),
        )
    ),
    StartFailed(POOL, 2),
    InstanceJoined(POOL, ONE),
    InstanceChanged(ONE, InstanceState.CORDONED),
    LoadReported(ONE, LOAD, (RequestId("a"), RequestId("b")), Blocks(7)),
    RequestArrived(POOL, RequestId('ä"\n'), "high", 300, Nanos(5), ((ONE, 64),), Nanos(3)),
    RequestWithdrawn(POOL, RequestId("a")),
    MoveEnded(POOL, MoveId(3), MoveOutcome.KEPT),
    Paused(POOL),
    Resumed(POOL),
    Stepped(POOL),
    Ticked(),
    InstanceLeft(ONE),
    PoolGone(POOL),
]
SENT = Dispatch(
    RequestId("a"), ONE, Decision("r", "u", Option(ONE, float("-inf")), facts=(("f", 0.1),))
)


def written(path, events, **rest):
    with Recorder(path, origin="a test", **rest) as recorder:
        for at, event in enumerate(events):
            recorder.record(event, Nanos(at), [SENT])
    return recorder


def test_every_event_comes_back(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    assert written(path, EVENTS).failure is None
    recording = Recording(path)
    entries = list(recording.entries())
    assert [each.event for each in entries] == EVENTS
    assert [(each.line, each.at) for each in entries] == [(at + 2, at) for at in range(len(EVENTS))]
    assert {each.commands for each in entries} == {command_bytes([SENT])}
    assert (recording.origin, recording.stopped) == ("a test", None)


def test_an_arrival_of_before_it_said_how_long_it_was_held(tmp_path):
    path = tmp_path / "r.jsonl"
    written(path, [RequestArrived(POOL, RequestId("a"), "high", 300, Nanos(5))])
    text = path.read_text()
    assert ',"held":null' in text
    path.write_text(text.replace(',"held":null', ""))
    (entry,) = Recording(path).entries()
    assert entry.event == RequestArrived(POOL, RequestId("a"), "high", 300, Nanos(5), (), None)


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(FINITE, FINITE)
def test_unlike_figures_are_unlike_bytes(one, other):
    first, second = (
        command_bytes([replace(SENT, decision=Decision("r", "u", Option(ONE, figure)))])
        for figure in (one, other)
    )
    assert (first == second) == (repr(one) == repr(other))


def test_gzipped(tmp_path):
    path = tmp_path / "r.jsonl"
    written(path, EVENTS)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [each.event for each in Recording(packed).entries()] == EVENTS
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(Recording(packed).entries())


def test_it_stops_at_its_limit_and_says_so(tmp_path):
    path = tmp_path / "r.jsonl"
    recorder = written(path, [Ticked()] * 1000, max_bytes=10_000)
    assert "size limit" in recorder.failure
    assert path.stat().st_size < 10_200
    recording = Recording(path)
    assert 10 < len(list(recording.entries())) < 1000
    assert recording.stopped == "the size limit of 10000 bytes"


def test_a_limit_that_is_met_between_flushes(tmp_path):
    path = tmp_path / "r.jsonl"
    recorder = Recorder(path, origin="x", max_bytes=1500)
    for at in range(30):
        recorder.record(Ticked(), Nanos(at), [])
        recorder.flush()
    recorder.close()
    assert 1400 < path.stat().st_size < 1600


def test_what_cannot_be_written_ends_the_recording_not_its_owner(tmp_path):
    path = tmp_path / "r.jsonl"
    with Recorder(path, origin="x") as recorder:
        recorder.record(Ticked(), Nanos(0), [])
        recorder.record(RequestWithdrawn(POOL, RequestId("\ud800")), Nanos(1), [])
        recorder.record(Ticked(), Nanos(2), [])
    recording = Recording(path)
    assert [each.at for each in recording.entries()] == [0]
    assert "cannot be written" in recording.stopped


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_recording_not_its_owner():
    recorder = Recorder(Path("/dev/full"), origin="x")
    recorder.flush()
    assert "No space left" in recorder.failure
    recorder.record(Ticked(), Nanos(0), [])
    recorder.close()


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "r.jsonl"
    written(path, EVENTS)
    path.write_bytes(path.read_bytes()[:-9])
    recording = Recording(path)
    assert len(list(recording.entries())) == len(EVENTS) - 1
    assert "cut off" in recording.stopped


HEADER = '{"llx_recording": 1, "llx": "0", "origin": "x"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no recording"),
        ('{"timestamp": 1}\n', "no recording"),
        (HEADER.replace("1", "9"), "version 9"),
        (HEADER + "{\n", ":2: no line of a recording"),
        (HEADER + '{"at": 1, "event": "Fell", "data": {}, "commands": []}\n', ":2: no event is"),
        (HEADER + '{"at": 1, "event": "Paused", "data": {}, "commands": []}\n', ":2: no Paused: "),
        (
            HEADER + '{"at": 2, "event": "Ticked", "data": {}, "commands": []}\n'
            '{"at": 1, "event": "Ticked", "data": {}, "commands": []}\n',
            ":3: .* before",
        ),
        (
            HEADER + '{"at": 1, "event": "PoolConfigured", "commands": [], "data": '
            '{"config": {"name": "m", "classes": []}}}\n',
            ":2: no PoolConfigured: pool m: classes",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(Recording(path).entries())


def test_nowhere_to_write(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        Recorder(tmp_path, origin="x")


def test_refusals_have_their_words():
    assert command_bytes([Refuse(RequestId("a"), Refusal.QUEUE_FULL, None)]) == (
        b'[["Refuse",{"request":"a","reason":"queue full","retry_after":null}]]'
    )
