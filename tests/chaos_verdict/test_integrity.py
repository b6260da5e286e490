"""A stream that is not what it should be is told from one that is, and the verdict says so."""

import pytest

from llx.chaos.faults import FaultRecord
from llx.chaos.integrity import Flaw, StreamEnd, StreamRecord, find_flaw, find_miscount
from llx.chaos.leaks import HostSight, host_leaks
from llx.chaos.plan import ChaosPlan, Fault, FaultKind, Role, draw_faults
from llx.chaos.verdict import judge

REFERENCE = (5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("got", "flaw"),
    [
        ((5, 6, 7, 8, 9), None),
        ((5, 6, 6, 7, 8), (Flaw.DOUBLED, 2)),
        ((5, 6, 8, 9), (Flaw.LOST, 2)),
        ((5, 7, 6, 8, 9), (Flaw.REORDERED, 1)),
        ((5, 6, 1, 8, 9), (Flaw.WRONG, 2)),
        ((5, 6, 7), (Flaw.LOST, 3)),
        ((5, 6, 7, 8, 9, 9), (Flaw.DOUBLED, 5)),
    ],
)
def test_flaws_of_a_whole_stream(got, flaw):
    assert find_flaw(got, REFERENCE, is_whole=True) == flaw


def test_a_stream_that_broke_off_is_a_beginning():
    assert find_flaw((5, 6), REFERENCE, is_whole=False) is None
    assert find_flaw((5, 9), REFERENCE, is_whole=False) is not None


def test_usage_and_reason_are_checked():
    asked = {"tokens": 5, "wanted": 5}
    assert find_miscount(**asked, usage=5, finish_reason="length") == ""
    assert "usage" in find_miscount(**asked, usage=6, finish_reason="length")
    assert "stop" in find_miscount(**asked, usage=5, finish_reason="stop")


def stream(name="s-0", **changes):
    fields = {"gateway": "gateway-0", "began_at": 1.0, "ended_at": 9.0, "end": StreamEnd.COMPLETE}
    return StreamRecord(**{"id": name, "tokens": 5, **fields, **changes})


PLAN = ChaosPlan(faults=[Fault(kind=FaultKind.KILL, target="instance")])
FAULT = FaultRecord(
    number=0, kind=FaultKind.KILL, role=Role.INSTANCE, victim="tiny-0",
    began_at=2.0, ended_at=5.0, recovered_s=3.0, hit=["s-0"], instances=["tiny-0"],
)  # fmt: skip


def test_all_is_well():
    assert judge(PLAN, [FAULT], [stream()], []).problems == []


@pytest.mark.parametrize(
    "broken",
    [
        {"flaw": Flaw.DOUBLED, "flaw_at": 2},
        {"miscounted": "4 tokens of 5"},
        {"end": StreamEnd.SILENT},
        {"end": StreamEnd.FAILED, "error": "broke off"},
    ],
)
def test_each_broken_stream_fails_the_verdict(broken):
    assert not judge(PLAN, [FAULT], [stream(**broken)], []).is_passed


def test_faults_and_leaks_fail_the_verdict():
    assert not judge(PLAN, [], [stream()], []).is_passed
    late = FAULT.model_copy(update={"recovered_s": None})
    assert not judge(PLAN, [late], [stream()], []).is_passed
    assert not judge(PLAN, [FAULT], [stream()], ["blocks: tiny-0 uses 3, 0 before"]).is_passed


@pytest.mark.parametrize(
    ("fault", "streams"),
    [
        ({"hit": []}, [stream()]),
        ({"hit": ["s-1"]}, [stream()]),
        ({"instances": [], "hit": [], "gateways": ["gateway-1"]}, [stream()]),
        ({"instances": [], "hit": []}, [stream(began_at=6.0)]),
    ],
)
def test_a_fault_that_no_stream_had_to_bear_fails_the_verdict(fault, streams):
    problems = judge(PLAN, [FAULT.model_copy(update=fault)], streams, []).problems
    assert len(problems) == 1
    assert "no stream" in problems[0]


def test_only_a_gateway_that_was_hit_excuses():
    failed = stream(end=StreamEnd.FAILED)
    hit = FAULT.model_copy(update={"gateways": ["gateway-0"], "instances": [], "hit": []})
    assert judge(PLAN, [hit], [failed], []).is_passed
    assert not judge(PLAN, [hit], [stream(end=StreamEnd.FAILED, began_at=6.0)], []).is_passed


def test_what_is_left_of_an_old_run_is_found():
    sight = HostSight({"tiny-0": "new"}, ((7, "S", "old"), (8, "S", "new")))
    assert host_leaks("h1", frozenset({"tiny-0"}), {"old", "new"}, sight) == [
        "processes: 7 on h1 is left of a run that is over"
    ]


def test_a_seed_draws_the_same_plan():
    kinds, roles = [FaultKind.KILL, FaultKind.FREEZE], [Role.INSTANCE, Role.HEAD]
    assert draw_faults(3, 20, kinds, roles) == draw_faults(3, 20, kinds, roles)
    assert draw_faults(3, 20, kinds, roles) != draw_faults(4, 20, kinds, roles)
