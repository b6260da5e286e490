"""The fault matrix: every message of a move lost, doubled, late; every party killed around it.

The moves that are broken have several stages, so that each message of the protocol is among them.
"""

import pytest

from llx.core.migration import events as e
from tests.core.migration_world import Fate, World

REQUESTS = {"r": ((1, 2, 3, 4, 5), 24)}
AT_S = 0.05
"""The request decodes by then."""
COPY_S = 0.045
"""Several tokens per stage: the copy runs after the request for a while."""


def make_world(**options):
    world = World(REQUESTS, copy_s=COPY_S, **options)
    world.start("r")
    world.after(AT_S, lambda: world.order("m", "r", "A", "B"))
    return world


def run(world):
    world.run()
    world.check_end()
    return world


SENT = run(make_world()).sent
LAST = next(each.number for each in SENT if each.kind == "CopyEnds") + 2
"""A few messages after the move is over."""
MESSAGES = [
    pytest.param(each.number, id=f"{each.number}-{each.kind}")
    for each in SENT[: LAST + 1]
    if each.number >= next(one.number for one in SENT if one.kind == "Reserve") - 1
]


def has_been(ends, event):
    return any(event is kind for end in ends.values() for _, kind in end.log)


def stream(world):
    return world.gateway.clients["r"]


def test_the_perfect_move_says_every_message_that_there_is():
    kinds = {each.kind for each in SENT}
    assert kinds == {
        "Output", "Reserve", "Reserved", "Extend", "Stage", "StageIsIn", "Moving", "Commit",
        "Committed", "Ruling", "CopyEnds",
    }  # fmt: skip


@pytest.mark.parametrize("number", MESSAGES)
@pytest.mark.parametrize("fate", Fate)
def test_the_network_harms_no_stream(number, fate):
    world = run(make_world(fates={number: fate}))
    assert stream(world).end == "finished"


@pytest.mark.parametrize("number", MESSAGES)
@pytest.mark.parametrize("fate", Fate)
def test_without_ordered_sessions_a_stream_may_end_but_never_lies(number, fate):
    run(make_world(fates={number: fate}, is_rough=True))


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
@pytest.mark.parametrize("deed", ["cut", "break_copies"])
def test_two_instances_that_lose_each_other_harm_no_stream(number, deed, is_after):
    world = make_world()
    world.at(number, lambda: getattr(world, deed)("A", "B"), is_after=is_after)
    run(world)
    assert stream(world).end == "finished"


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
@pytest.mark.parametrize("name", ["A", "B"])
def test_an_instance_cut_off_from_the_gateway(number, name, is_after):
    """Its requests end, as if it had died; a target that has not taken over is no loss."""
    world = make_world()
    owners = []

    def cut():
        owners.append(world.gateway.streams.get("r").owner)
        world.cut("gateway", name)

    world.at(number, cut, is_after=is_after)
    run(world)
    if owners != [name]:
        assert stream(world).end == "finished"
    elif not has_been(world.instances["B"].arriving, e.HasApplied):
        assert stream(world).end == "failed"


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_target_that_dies_before_it_owns_the_stream_costs_nothing(number, is_after):
    world = make_world()
    owners = []

    def kill():
        owners.append(world.gateway.streams.get("r").owner)
        world.kill("B")

    world.at(number, kill, is_after=is_after)
    run(world)
    assert stream(world).end == ("finished" if owners == ["A"] else "failed")


@pytest.mark.parametrize("number", MESSAGES)
def test_a_target_that_dies_while_its_outputs_are_early_costs_nothing(number):
    """They must not make it the owner once it is lost: nobody would notice that it is."""
    last = max(each.number for each in SENT if each.kind == "Output" and each.sender == "A")
    world = make_world(fates={last: Fate.LATE})
    world.at(number, lambda: world.kill("B"), is_after=True)
    run(world)
    assert stream(world).end == "finished"


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_source_that_dies_after_the_target_owns_the_request_costs_nothing(number, is_after):
    world = make_world()
    world.at(number, lambda: world.kill("A"), is_after=is_after)
    run(world)
    has_moved = has_been(world.instances["B"].arriving, e.HasApplied)
    assert stream(world).end == ("finished" if has_moved else "failed")


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_gateway_that_dies_leaves_nothing_behind(number, is_after):
    world = make_world()
    world.at(number, lambda: world.kill("gateway"), is_after=is_after)
    run(world)


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_client_that_leaves_is_forgotten_everywhere(number, is_after):
    world = make_world()
    world.at(number, lambda: world.gateway.cancel("r"), is_after=is_after)
    run(world)
    assert stream(world).end == "cancelled"


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_request_that_is_preempted_meanwhile_goes_on(number, is_after):
    world = make_world()
    for instance in world.instances.values():
        world.at(number, lambda each=instance: each.engine.preempt("r"), is_after=is_after)
    run(world)
    assert stream(world).end == "finished"


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", MESSAGES)
def test_a_move_that_is_cancelled(number, is_after):
    world = make_world()
    world.at(number, lambda: world.instances["A"].cancel("m"), is_after=is_after)
    run(world)
    assert stream(world).end == "finished"
