"""The tables, pair by pair: what is in them happens, and what is not is ignored on purpose.

Both machines are walked through breadth first, with a few values of every event; so an arrow that
the tables (and the diagrams made of them) promise and that cannot happen is found as well.
"""

import copy
import typing

import pytest

from llx.core import epochs
from llx.core.migration import Cut, Progress, Reservation, SourceRules
from llx.core.migration import events as e
from llx.core.migration import source as source_module
from llx.core.migration import target as target_module
from llx.core.migration.source import SOURCE_TABLE, Source, SourceState
from llx.core.migration.target import TARGET_TABLE, Target, TargetState
from llx.core.model import Epoch

EPOCH = Epoch(7)


def progress(num_tokens, *, num_prompt=8, is_waiting=False):
    settled = 0 if is_waiting else num_tokens - 1
    return Progress(num_tokens, num_prompt, settled, tuple(range(99)), is_waiting=is_waiting)


def reserved(num_tokens):
    return e.TargetReserved(Reservation(num_tokens, tuple(range(num_tokens)), 0))


SOURCE_EVENTS = [
    e.HasBegun(progress(9)),
    e.HasBegun(progress(9, is_waiting=True)),
    e.CannotBegin("it is pinned"),
    *[e.HasProgressed(progress(num_tokens)) for num_tokens in (8, 9, 10, 15, 20)],
    e.HasProgressed(progress(9, is_waiting=True)),
    e.IsGone("it has finished"),
    *[e.HasCut(Cut((1,), num_computed, tuple(range(99)))) for num_computed in (9, 21)],
    *[reserved(num_tokens) for num_tokens in (4, 13, 40)],
    e.TargetRefused("no room"),
    e.TargetCommitted(),
    e.TargetLost("the session is over"),
    *[e.HasCopied(stage, 1) for stage in (0, 1)],
    *[e.CopyFailed(stage, "it broke") for stage in (0, 1)],
    e.Ruled(epochs.next_owner(EPOCH), is_yours=False),
    e.Ruled(EPOCH, is_yours=False),
    e.Ruled(epochs.next_reign(EPOCH), is_yours=True),
    e.Cancelled("cancelled"),
    e.TimedOut(),
]
TARGET_EVENTS = [
    e.HasReserved(Reservation(4, (1, 2), 0)),
    e.CannotReserve("no room"),
    e.IsNotReady(),
    e.ExtendAsked(8),
    *[e.HasArrived(stage) for stage in (0, 1)],
    e.IsBroken("it broke"),
    *[e.CommitAsked(stage, (1,), 4) for stage in (0, 1)],
    e.HasApplied(),
    e.CannotApply("no"),
    e.AbortAsked("cancelled"),
    e.SourceLost(),
    e.ArbiterLost(),
    e.IsFenced(),
    e.TimedOut(),
]
RULES = [
    SourceRules(2, 64, max_stages=2),
    SourceRules(2, 64, max_stages=1, aborts_if_diverging=True),
    SourceRules(2, 64, is_blocking=True),
]


def walk(start, events, table, depth):
    """Every (state, event, next state) that can be; what is not in the table changes nothing."""
    seen, arrows, layer = set(), set(), [start]
    for _ in range(depth):
        following = []
        for machine in layer:
            for event in events:
                after = copy.copy(machine)
                commands = after.handle(event)
                pair = (machine.state, type(event))
                if pair not in table:
                    assert (commands, after.state) == ([], machine.state), pair
                    continue
                arrows.add((*pair, after.state))
                key = repr(
                    {k: v for k, v in vars(after).items() if k not in ("_commands", "reason")}
                )
                if key not in seen:
                    seen.add(key)
                    following.append(after)
        layer = following
    return arrows


def sources():
    arrows = set()
    for rules in RULES:
        arrows |= walk(Source(EPOCH, rules), SOURCE_EVENTS, SOURCE_TABLE, depth=7)
    return arrows


def targets():
    return walk(Target(4), TARGET_EVENTS, TARGET_TABLE, depth=7)


MACHINES = {
    "source": (SOURCE_TABLE, SourceState, source_module, SOURCE_EVENTS, sources),
    "target": (TARGET_TABLE, TargetState, target_module, TARGET_EVENTS, targets),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_arrow_of_the_table_can_be_gone_and_every_end_reached(name):
    table, _, module, events, explore = MACHINES[name]
    assert {type(each) for each in events} == set(typing.get_args(module.Event))
    promised = {
        (state, event, to) for (state, event), rule in table.items() for to in rule.ways(state)
    }
    arrows = explore()
    assert promised == arrows
    assert {to for _, _, to in arrows} >= module.ENDS


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_ignored_is_ignored_on_purpose(name, golden):
    table, states, module, _, _ = MACHINES[name]
    lines = []
    for state in states:
        ignored = [
            event.__name__ for event in typing.get_args(module.Event) if (state, event) not in table
        ]
        lines.append(f"{state.value}: {', '.join(ignored)}")
    golden(f"migration/{name}-ignores.txt", "\n".join(lines) + "\n")


def begun_source(**rules):
    source = Source(EPOCH, SourceRules(2, 64, **rules))
    source.start()
    source.handle(e.HasBegun(progress(9)))
    return source


def kinds(commands):
    return [type(command) for command in commands]


def committed_source():
    source = begun_source(is_blocking=True)
    source.handle(reserved(13))
    source.handle(e.HasCut(Cut((1,), 9, tuple(range(5)))))
    assert source.state is SourceState.COMMITTING
    return source


def copied_source():
    """Its blocks that were full at the beginning are copied: 4 of 2 tokens, of 9 tokens."""
    source = begun_source()
    assert e.Copy(0, 0, 4, is_final=False) in source.handle(reserved(13)), "without another look"
    return source, source.handle(e.HasCopied(0, 4096))


def test_the_cut_waits_for_the_engine_once():
    source, commands = copied_source()
    assert e.CutRequest(max_tokens=11) in commands, "13 are reserved, a block is to be left"
    source.handle(e.HasCut(Cut((1,), 10, tuple(range(6)))))
    assert source.state is SourceState.COMMITTING


def test_what_has_grown_too_much_to_be_cut_is_copied_first():
    source, _ = copied_source()
    assert e.SendExtend(19) in source.handle(e.HasProgressed(progress(15)))
    source.handle(reserved(19))
    assert e.Copy(1, 4, 7, is_final=False) in source.handle(e.HasProgressed(progress(15)))
    assert e.CutRequest(max_tokens=17) in source.handle(e.HasCopied(1, 4096))


def test_a_request_that_was_to_be_cut_is_resumed_whether_it_was_or_not():
    source, _ = copied_source()
    assert e.Resume(None) in source.handle(e.Cancelled("cancelled"))
    assert source.handle(e.HasProgressed(progress(15))) == []


def test_an_old_answer_is_no_room_for_what_has_grown_since():
    source = begun_source(is_blocking=True)
    source.handle(reserved(13))
    source.handle(e.HasCut(Cut((1, 2), 15, tuple(range(8)))))
    assert source.state is SourceState.EXTENDING_LATE
    assert source.handle(reserved(13)) == [], "the answer to the reserve, once more"
    assert e.SendCommit in kinds(source.handle(reserved(19)))
    assert source.reservation.num_tokens == 19


def test_the_arbiter_hears_of_the_target_before_the_target_may_own_it():
    source = begun_source(is_blocking=True)
    source.handle(reserved(13))
    commands = kinds(source.handle(e.HasCut(Cut((1,), 9, tuple(range(5))))))
    assert commands.index(e.TellArbiter) < commands.index(e.SendCommit)


def test_only_the_arbiter_or_a_refusal_lets_a_source_go_on_after_its_commit():
    for event in SOURCE_EVENTS:
        source = committed_source()
        commands = kinds(source.handle(event))
        if e.Resume in commands:
            assert isinstance(event, e.TargetRefused)
        source = committed_source()
        source.handle(e.TargetLost("the session is over"))
        commands = kinds(source.handle(event))
        if e.Resume in commands:
            assert event == e.Ruled(epochs.next_reign(EPOCH), is_yours=True)


def test_a_late_ruling_on_an_older_hold_frees_nothing():
    source = committed_source()
    source.handle(e.TimedOut())
    assert source.handle(e.Ruled(EPOCH, is_yours=False)) == []
    assert source.handle(e.Ruled(EPOCH, is_yours=True)) == []
    assert source.state is SourceState.ASKING


def test_a_lost_ruling_is_asked_for():
    source = committed_source()
    source.handle(e.TargetCommitted())
    for _ in range(3):
        assert e.AskArbiter in kinds(source.handle(e.TimedOut()))


@pytest.mark.parametrize("rules", [{"is_blocking": True}, {"is_checked": True}])
def test_a_last_copy_that_may_take_long_is_given_the_time(rules):
    source = begun_source(**rules)
    source.handle(reserved(13))
    while source.state is not SourceState.CUTTING:
        source.handle(e.HasProgressed(progress(9)))
        source.handle(e.HasCopied(source.num_stages, 4096))
    commands = source.handle(e.HasCut(Cut((1,), 9, tuple(range(5)))))
    assert source.state is SourceState.COMMITTING
    assert commands[-1] == e.SetDeadline(120.0)
    assert source.handle(e.HasCopied(source.num_stages, 1)) == [e.SetDeadline(5.0)]


def test_a_target_that_has_said_so_is_waited_for_until_its_first_token():
    source = committed_source()
    assert source.handle(e.TargetCommitted()) == [e.SetDeadline(30.0)]
    assert source.handle(e.HasCopied(source.num_stages, 1)) == []


def test_news_of_an_earlier_watch_does_not_end_what_has_yet_to_begin():
    source = Source(EPOCH, SourceRules(2, 64))
    source.start()
    assert source.handle(e.IsGone("it was preempted")) == []
    assert e.SendReserve in kinds(source.handle(e.HasBegun(progress(9, is_waiting=True))))


def applying_target():
    target = Target(4)
    target.start()
    target.handle(e.HasReserved(Reservation(4, (1, 2), 0)))
    target.handle(e.HasArrived(0))
    assert e.Apply in kinds(target.handle(e.CommitAsked(0, (1,), 4)))
    return target


def test_a_target_that_has_owned_it_never_says_that_it_will_not():
    for end in (e.AbortAsked("no"), e.ArbiterLost()):
        target = applying_target()
        target.handle(end)
        assert kinds(target.handle(e.HasApplied())) == [e.Drop, e.SendDropped, e.SetDeadline]
        assert kinds(target.handle(e.CommitAsked(0, (1,), 4))) == [e.SendDropped]
    target = applying_target()
    target.handle(e.HasApplied())
    assert kinds(target.handle(e.CommitAsked(0, (1,), 4))) == [e.SendCommitted]
    target.handle(e.AbortAsked("no"))
    assert kinds(target.handle(e.CommitAsked(0, (1,), 4))) == [e.SendDropped]


def test_a_target_whose_gateway_leaves_tells_the_source_that_it_has_it_no_more():
    target = applying_target()
    target.handle(e.HasApplied())
    assert e.SendDropped in kinds(target.handle(e.ArbiterLost()))
    assert target.state is TargetState.DROPPED
    assert target.handle(e.ArbiterLost()) == []


def test_blocks_are_freed_only_when_nothing_can_be_written_any_more():
    for event in TARGET_EVENTS:
        target = Target(4)
        target.start()
        target.handle(e.HasReserved(Reservation(4, (1, 2), 0)))
        assert e.Abandon not in kinds(target.handle(event))
        if target.state is TargetState.FENCING:
            assert e.Abandon in kinds(target.handle(e.IsFenced()))
