"""The scheduler's parts: Algorithm 1, configurations, extensions, the rule of a move, queues."""

import dataclasses
import random
from fractions import Fraction
from heapq import nlargest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import (
    Blocks,
    ClassLoad,
    ClassName,
    InstanceId,
    InstanceLoad,
    Nanos,
    PoolName,
    RequestId,
    Tokens,
)
from llx.core.request_choice import Movable
from llx.core.scheduler.commands import Dispatch, Refusal, Refuse
from llx.core.scheduler.config import PoolConfig, PriorityClass, Rescheduling, Scaling
from llx.core.scheduler.dispatch import DISPATCH, ByInstance
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
from llx.core.scheduler.freeness import TERMINATING, Freeness, Usage, freeness
from llx.core.scheduler.instance import Instance
from llx.core.scheduler.move_rule import MoveRule, pick
from llx.core.scheduler.placing import SAMPLE
from llx.core.scheduler.policies import Policies, extended
from llx.core.scheduler.queues import Queued, Queues
from llx.core.scheduler.ranking import Best, Ranking
from llx.core.scheduler.scheduler import Scheduler
from llx.errors import ConfigError

POOL = PoolName("m")
NORMAL = PriorityClass(ClassName("normal"), 10)
CLASSES = (PriorityClass(ClassName("high"), 0, Blocks(30)), NORMAL)
CONFIG = PoolConfig(POOL, CLASSES)


# ------------------------------------------------------------------ Algorithm 1


def by_the_paper(requests, headroom, total):
    """CalcVirtualUsage and CalcFreeness, request by request, in exact fractions.

    A request: (is running, class, blocks). The first that does not run is the head of the queue.
    """
    running = [each for each in requests if each[0]]
    queue = [each for each in requests if not each[0]]
    usage = Fraction(0)
    for _, label, blocks in running:
        num_of_class = sum(other == label for _, other, _ in running)
        usage += blocks + Fraction(headroom[label], num_of_class)
    if queue:
        usage += queue[0][2]
    return (total - usage) / max(1, len(running))


@given(
    requests=st.lists(
        st.tuples(st.booleans(), st.sampled_from([0, 1]), st.integers(0, 50)), max_size=9
    ),
    headrooms=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_freeness_is_the_papers_whoever_adds_it_up(requests, headrooms):
    classes = tuple(
        dataclasses.replace(each, headroom=Blocks(blocks))
        for each, blocks in zip(CLASSES, headrooms, strict=True)
    )
    config = dataclasses.replace(CONFIG, classes=classes)
    counts = [sum(runs and label == rank for runs, label, _ in requests) for rank in range(2)]
    used = sum(blocks for runs, _, blocks in requests if runs)
    waiting = [blocks for runs, _, blocks in requests if not runs]
    load = InstanceLoad(
        total=Blocks(500), free=Blocks(500 - used), block_size=Tokens(16),
        num_running=sum(counts), num_waiting=len(waiting), waiting_demand=Blocks(sum(waiting)),
        classes={0: ClassLoad(counts[0]), 10: ClassLoad(counts[1])},
    )  # fmt: skip
    instance = Instance(InstanceId("m-0"), 1)
    instance.forget(2)
    instance.take_report(load, waiting[0] if waiting else 0, config)
    instance.refresh([each.headroom for each in classes])
    assert instance.freeness == float(by_the_paper(requests, headrooms, 500))
    assert instance.freeness == freeness(instance.usage())


def test_a_terminating_instance_is_less_free_than_any():
    usage = Usage(total=Blocks(0), used=Blocks(10**12))
    ends = freeness(dataclasses.replace(usage, is_terminating=True))
    assert ends == TERMINATING < freeness(usage)


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": ()}, "rising priority"),
        ({"classes": (NORMAL, NORMAL)}, "rising priority"),
        ({"classes": (NORMAL, dataclasses.replace(NORMAL, priority=11))}, "same name"),
        ({"classes": (dataclasses.replace(NORMAL, queue_limit=0),)}, "normal.queue_limit"),
        ({"classes": (dataclasses.replace(NORMAL, headroom_share=0.0),)}, "headroom_share"),
        ({"classes": (dataclasses.replace(NORMAL, headroom_share=1.1),)}, "headroom_share"),
        ({"age_after": Nanos(0)}, "age_after"),
        ({"rescheduling": Rescheduling(low=Freeness(7.0))}, "hysteresis"),
        ({"scaling": Scaling(min_instances=3)}, "min_instances"),
        ({"scaling": Scaling(low=Freeness(61.0))}, "scaling.low"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dispatch": "luck"},
        {"rescheduling": Rescheduling(steps=("drain", "luck"))},
        {"rescheduling": Rescheduling(choice="luck")},
        {"scaling": Scaling(rule="luck")},
    ],
)
def test_an_unknown_policy_is_refused_and_nothing_changes(changes):
    scheduler = Scheduler()
    scheduler.handle(PoolConfigured(CONFIG), Nanos(0))
    with pytest.raises(ConfigError, match="luck"):
        scheduler.handle(PoolConfigured(dataclasses.replace(CONFIG, **changes)), Nanos(0))
    assert scheduler.pools[POOL].config is CONFIG


@pytest.mark.parametrize(("priority", "rank"), [(-5, 0), (0, 0), (1, 1), (10, 1), (11, 1), (99, 1)])
def test_any_integer_is_of_a_class_and_never_of_one_more_urgent(priority, rank):
    assert CONFIG.rank_of(priority) == rank


# ------------------------------------------------------------------ scaling


def test_the_average_freeness_is_added_up_exactly():
    """Whatever Python adds it up: the sum of these depends on their order, and on its version."""
    scaling = Scaling(rule="band", max_instances=4, sustain=Nanos(0), low=Freeness(0.2))
    none = Rescheduling(steps=())
    config = PoolConfig(POOL, (NORMAL,), rescheduling=none, scaling=scaling)
    scheduler = Scheduler()
    scheduler.handle(PoolConfigured(config), Nanos(0))
    for number, free in enumerate([10**17, 1, -(10**17)]):
        name = InstanceId(f"m-{number}")
        scheduler.handle(InstanceJoined(POOL, name), Nanos(0))
        scheduler.handle(LoadReported(name, load(free=free)), Nanos(0))
    assert scheduler.handle(Ticked(), Nanos(0)) == []


# ------------------------------------------------------------------ rounds


def test_a_round_orders_sixteen_moves_in_the_order_of_the_rules_and_the_next_one_the_rest():
    rules = Rescheduling(steps=("requeue", "balance"), max_out=1)
    scheduler, now = Scheduler(), Nanos(0)
    scheduler.handle(PoolConfigured(PoolConfig(POOL, (NORMAL,), rescheduling=rules)), now)

    def report(name, free, running, waits=0):
        scheduler.handle(InstanceJoined(POOL, InstanceId(name)), now)
        load = InstanceLoad(
            total=Blocks(100), free=Blocks(free), block_size=Tokens(16), num_running=running,
            num_waiting=int(waits > 0), waiting_demand=Blocks(waits),
            classes={10: ClassLoad(running, int(waits > 0), Blocks(waits))},
        )  # fmt: skip
        scheduler.handle(LoadReported(InstanceId(name), load), now)

    for number in range(10):
        report(f"stuck-{number}", 5, 5, waits=20)
        report(f"short-{number}", 1, 10)
    for number in range(40):
        report(f"wide-{number}", 90, 1)
    rounds = [scheduler.handle(Ticked(), now) for _ in range(3)]
    by_rule = [[each.decision.rule for each in commands] for commands in rounds]
    assert by_rule == [["requeue"] * 10 + ["balance"] * 6, ["balance"] * 4, []]
    moves = [each for commands in rounds for each in commands]
    assert len({each.source for each in moves}) == 20


# ------------------------------------------------------------------ extensions


class EntryPoint:
    def __init__(self, name, loads):
        self.name = name
        self.load = lambda: loads


def fewest(instance):
    return instance.num_requests


def test_a_policy_from_outside_is_one_function():
    mine = ByInstance(fewest, "requests")
    policies = extended([EntryPoint("dispatch.fewest", mine)])
    assert policies.dispatch["fewest"] is mine
    assert "fewest" not in DISPATCH
    scheduler = Scheduler(policies)
    config = dataclasses.replace(CONFIG, dispatch="fewest")
    scheduler.handle(PoolConfigured(config), Nanos(0))
    for name, num_running in [("m-0", 4), ("m-1", 3)]:
        scheduler.handle(InstanceJoined(POOL, InstanceId(name)), Nanos(0))
        scheduler.handle(LoadReported(InstanceId(name), load(num_running=num_running)), Nanos(0))
    (command,) = scheduler.handle(arrival("a"), Nanos(0))
    assert isinstance(command, Dispatch)
    assert command.instance == "m-1"
    assert str(command.decision).startswith("fewest, m-1 with requests 3, then m-0 with 4")


@pytest.mark.parametrize(
    ("name", "says"),
    [("fewest", "no table"), ("queue.fewest", "no table"), ("dispatch.freest", "taken")],
)
def test_an_entry_point_that_fits_no_table_is_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        extended([EntryPoint(name, None)])


def test_the_built_in_tables_know_what_the_defaults_name():
    Policies().check(CONFIG)


# ------------------------------------------------------------------ the rule of a move


def movable(name, blocks, priority=10):
    return Movable(RequestId(name), Blocks(blocks), Tokens(16 * blocks), priority, 0.0)


REQUESTS = [
    movable("urgent", 1, 0),
    movable("short", 2),
    movable("middle", 5),
    movable("long", 9),
    movable("batch", 7, 20),
]


@pytest.mark.parametrize(
    ("changes", "resting", "picked"),
    [
        ({}, "", "batch"),
        ({"choice": "shortest"}, "", "urgent"),
        ({"choice": "shortest", "least_priority": 1}, "", "short"),
        ({"choice": "shortest", "least_priority": 1}, "short", "middle"),
        ({"choice": "shortest", "about": 4}, "", "middle"),
        ({"choice": "shortest", "about": 12}, "", "long"),
        ({"choice": "shortest", "about": 12, "at_most": 8}, "", "batch"),
        ({"at_most": 0}, "", None),
        ({"least_priority": 21}, "", None),
        ({"least_priority": 20}, "batch", None),
    ],
)
def test_the_source_picks_within_the_rule(changes, resting, picked):
    rule = MoveRule("lowest-class", None, None, Blocks(100), Nanos(1))
    found = pick(dataclasses.replace(rule, **changes), REQUESTS, resting.split())
    assert (None if found is None else found.request) == picked
    assert pick(dataclasses.replace(rule, **changes), REQUESTS[::-1], resting.split()) == found


# ------------------------------------------------------------------ queues, ranking


def test_the_best_prefixes_are_kept_however_many_are_told_of():
    """All but the last are short; it is the one that the request goes to."""
    scheduler = Scheduler()
    config = dataclasses.replace(CONFIG, dispatch="prefix_aware")
    scheduler.handle(PoolConfigured(config), Nanos(0))
    for number in range(SAMPLE + 40):
        name = InstanceId(f"m-{number}")
        scheduler.handle(InstanceJoined(POOL, name), Nanos(0))
        scheduler.handle(LoadReported(name, load(free=90 - number)), Nanos(0))
    hits = tuple((InstanceId(f"m-{number}"), Tokens(16)) for number in range(SAMPLE + 39))
    best = InstanceId(f"m-{SAMPLE + 39}")
    event = dataclasses.replace(arrival("a"), prefix_hits=(*hits, (best, Tokens(64))))
    (command,) = scheduler.handle(event, Nanos(0))
    assert isinstance(command, Dispatch)
    assert command.instance == best


def queued(number, rank=0, arrival=0):
    return Queued(RequestId(f"r{number}"), rank, Tokens(1), Nanos(arrival), Nanos(arrival), number)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans()), max_size=60))
def test_a_queue_is_in_order_of_arrival_whoever_is_withdrawn(given_requests):
    queues, left = Queues(3, Nanos(10**18)), []
    for number, (rank, arrival, is_withdrawn) in enumerate(given_requests):
        queues.add(queued(number, rank, arrival))
        (left.append if not is_withdrawn else queues.remove)(queues.find(RequestId(f"r{number}")))
    left.sort(key=lambda each: (each.rank, each.arrival, each.order))
    served = []
    while heads := queues.heads(Nanos(100)):
        served.append(heads[0])
        queues.remove(heads[0])
    assert served == left
    assert len(queues) == 0


def test_those_withdrawn_take_no_memory():
    queues = Queues(1, Nanos(1))
    queues.add(queued(0))
    for number in range(1, 1000):
        queues.add(queued(number))
        queues.remove(queues.find(RequestId(f"r{number}")))
    assert len(queues._queues[0].heap) < 40


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(-3, 3)))))
def test_a_ranking_is_sorted_whatever_changes(changes):
    ranking, expected = Ranking(), {}
    them = [Instance(InstanceId(f"m-{number}"), number) for number in range(6)]
    for number, figure in changes:
        if figure is None:
            ranking.drop(them[number])
            expected.pop(number, None)
        else:
            ranking.put(them[number], figure)
            expected[number] = figure
    in_order = sorted(expected, key=lambda number: (expected[number], number))
    assert [each.ordinal for each in ranking] == in_order
    assert len(ranking) == len(expected)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_a_ranking_are_known_though_some_change(seed):
    draw, ranking = random.Random(seed), Ranking()
    them = [Instance(InstanceId(f"m-{number}"), number) for number in range(300)]
    best = Best(ranking, lambda each: each.uncommitted)
    for _ in range(400):
        for each in draw.sample(them, draw.choice([0, 1, 2, 5, 40, 100])):
            each.uncommitted = Blocks(draw.randrange(200))
            each.freeness = Freeness(draw.randrange(4))
            if draw.random() < 0.1:
                ranking.drop(each)
            else:
                ranking.put(each, draw.randrange(3))
            best.changed(each)
        count = draw.choice([1, 2, 16, 64, 70])
        assert best.first(count) == nlargest(count, ranking, key=lambda each: each.uncommitted)


# ------------------------------------------------------------------ what is not known


def load(free=50, num_running=1):
    return InstanceLoad(
        total=Blocks(100), free=Blocks(free), block_size=Tokens(16), num_running=num_running,
        classes={10: ClassLoad(num_running)},
    )  # fmt: skip


def arrival(name, pool=POOL):
    return RequestArrived(pool, RequestId(name), ClassName("normal"), Tokens(100))


@pytest.mark.parametrize(
    "event",
    [
        InstanceJoined(PoolName("x"), InstanceId("x-0")),
        InstanceJoined(POOL, InstanceId("m-0")),
        InstanceChanged(InstanceId("x-0"), InstanceState.LOST),
        InstanceLeft(InstanceId("x-0")),
        LoadReported(InstanceId("x-0"), load()),
        RequestWithdrawn(PoolName("x"), RequestId("a")),
        RequestWithdrawn(POOL, RequestId("a")),
        MoveEnded(PoolName("x"), MoveId(1), MoveOutcome.MOVED),
        MoveEnded(POOL, MoveId(1), MoveOutcome.MOVED),
        Paused(PoolName("x")),
        Resumed(PoolName("x")),
        StartFailed(PoolName("x")),
        PoolGone(PoolName("x")),
        PoolGone(POOL),
        Stepped(PoolName("x")),
    ],
)
def test_news_of_something_unknown_changes_nothing(event):
    scheduler = Scheduler()
    scheduler.handle(PoolConfigured(CONFIG), Nanos(0))
    scheduler.handle(InstanceJoined(POOL, InstanceId("m-0")), Nanos(0))
    scheduler.handle(LoadReported(InstanceId("m-0"), load()), Nanos(0))
    assert scheduler.handle(event, Nanos(1)) == []
    assert [*scheduler.pools] == [POOL]
    assert [*scheduler.pools[POOL].instances] == ["m-0"]


def test_a_request_for_a_pool_that_is_not_is_refused():
    out = Scheduler().handle(arrival("a", PoolName("x")), Nanos(0))
    assert out == [Refuse(RequestId("a"), Refusal.NO_SUCH_POOL, None)]


def test_what_has_left_a_queue_with_time_to_spare_is_not_kept():
    queues = Queues(1, Nanos(1))
    for number in range(200):
        queued = Queued(
            RequestId(f"r{number}"), 0, Tokens(1), Nanos(0), Nanos(0), number, (), Nanos(10**15)
        )
        queues.add(queued)
        queues.remove(queued)
    assert len(queues._queues[0].ends) < 20


def test_of_what_waits_the_next_in_line_goes_that_takes_no_more_than_is_there():
    """It holds no blocks, whatever its length; the first may stay, for it is pinned or rests."""
    waiting = [
        Movable(RequestId("long"), Blocks(0), Tokens(900), 0, 1.0),
        Movable(RequestId("late"), Blocks(0), Tokens(100), 10, 3.0),
        Movable(RequestId("first"), Blocks(0), Tokens(320), 10, 2.0),
        Movable(RequestId("runs"), Blocks(4), Tokens(64), 10, 0.0),
    ]
    rule = MoveRule("next-in-line", None, None, Blocks(0), Nanos(1), Tokens(320))
    assert [pick(rule, waiting, gone).request for gone in ((), ("first",))] == ["first", "late"]
    assert pick(rule, waiting, ("first", "late")) is None
