"""What each kind of fault has cost is counted where it belongs."""

from llx.chaos.by_kind import rows_by_kind
from llx.chaos.faults import FaultRecord, ids_hit
from llx.chaos.integrity import Flaw, StreamEnd, StreamRecord
from llx.chaos.plan import FaultKind


def fault(number=0, **changes):
    fields = {"kind": FaultKind.KILL, "role": "instance", "began_at": 2.0, "ended_at": 5.0}
    return FaultRecord(number=number, **{**fields, "recovered_s": 3.0, **changes})


def stream(name, **changes):
    fields = {"gateway": "g-0", "began_at": 1.0, "ended_at": 9.0, "end": StreamEnd.COMPLETE}
    return StreamRecord(**{"id": name, "tokens": 5, **fields, **changes})


def test_a_stream_that_had_ended_when_its_instance_was_hit_was_not_hit():
    killed = fault(hit=["a", "b", "never ended"])
    assert ids_hit([killed], [stream("a"), stream("b", ended_at=1.9)]) == {"a"}


def test_rows_count_faults_and_the_streams_beside_them():
    faults = [
        fault(0, hit=["a", "b"]),
        fault(1, hit=["c"], began_at=20.0, ended_at=30.0, recovered_s=None),
        fault(2, role="gateway", gateways=["g-1"], began_at=40.0, ended_at=41.0, recovered_s=1.0),
        fault(3, role="head", skipped="nobody could be hit"),
    ]
    streams = [
        stream("a"),
        stream("b", flaw=Flaw.DOUBLED, flaw_at=1),
        stream("c", began_at=19.0, ended_at=24.0, end=StreamEnd.FAILED),
        stream("d", gateway="g-1", began_at=39.0, ended_at=40.5, end=StreamEnd.FAILED),
        stream("e", began_at=50.0, ended_at=51.0),
    ]
    gateway, instance = rows_by_kind(faults, streams)
    assert gateway.fault == "kill gateway"
    assert (gateway.faults, gateway.beside, gateway.hit) == (1, 1, 0)
    assert (gateway.errors, gateway.excused, gateway.flawed) == (1, 1, 0)
    assert instance.fault == "kill instance"
    assert (instance.faults, instance.late, instance.beside) == (2, 1, 3)
    assert (instance.hit, instance.hit_complete) == (3, 2)
    assert (instance.errors, instance.excused, instance.flawed) == (1, 0, 1)
    assert (instance.recovery_p50_s, instance.recovery_max_s) == (3.0, 3.0)
