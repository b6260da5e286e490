"""Whatever happens: nothing is lost or doubled, classes, bounds, budgets and rests hold."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llx.core.model import Blocks, ClassName, Nanos, Tokens
from llx.core.scheduler.config import PoolConfig, PriorityClass, Rescheduling, Scaling
from llx.core.scheduler.dispatch import DISPATCH
from llx.core.scheduler.events import InstanceState, MoveOutcome
from llx.core.scheduler.freeness import freeness
from llx.core.scheduler.scheduler import Scheduler
from tests.core.scheduler_world import POOL, World
from tests.example_counts import of_a_hundred

SECOND = 10**9

configs = st.builds(
    PoolConfig,
    name=st.just(POOL),
    classes=st.builds(
        lambda headroom, share, limit, max_wait, num: tuple(
            PriorityClass(
                ClassName(name), 10 * rank, Blocks(headroom if rank == 0 else 0), limit,
                Nanos(max_wait * (rank + 1)), headroom_share=share,
            )
            for rank, name in enumerate(["high", "normal", "batch"][:num])
        ),
        st.sampled_from([0, 5]),
        st.sampled_from([0.3, 1.0]),
        st.integers(1, 4),
        st.sampled_from([2 * SECOND, 600 * SECOND]),
        st.integers(1, 3),
    ),
    dispatch=st.sampled_from(sorted(DISPATCH)),
    is_immediate=st.sampled_from([False, False, True]),
    overtaking=st.integers(0, 3),
    growth_tokens=st.sampled_from([Tokens(0), Tokens(0), Tokens(3), Tokens(16), Tokens(40)]),
    age_after=st.sampled_from([Nanos(SECOND), Nanos(10 * SECOND)]),
    rescheduling=st.builds(
        Rescheduling,
        max_out=st.integers(1, 2),
        max_in=st.integers(1, 2),
        max_moves=st.integers(1, 3),
    ),
    scaling=st.builds(
        Scaling, rule=st.sampled_from(["none", "band", "demand"]), max_instances=st.integers(1, 4),
        sustain=st.just(Nanos(SECOND)), cooldown=st.just(Nanos(SECOND)),
    ),
)  # fmt: skip


block_sizes = st.sampled_from([16, 16, 1, 32, 128])

had = st.tuples(st.integers(0, 2), st.integers(0, 9))
"""A request that an instance has: rank and blocks, 0 if it waits there."""


class SchedulerMachine(RuleBasedStateMachine):
    world: World

    @initialize(
        config=configs,
        given=st.lists(st.lists(had, max_size=7), min_size=2, max_size=4),
        block_size=block_sizes,
    )
    def begin(self, config, given, block_size):
        self.world = World(config, block_size)
        for requests in given:
            self.world.join()
            self.world.give(f"m-{self.world.num}", requests)

    def any_instance(self, data):
        return data.draw(st.sampled_from(sorted(self.world.instances)))

    @rule(
        rank=st.integers(0, 2), sixteenths=st.integers(1, 700),
        times=st.sampled_from([(0, None), (SECOND, None), (SECOND, 0), (3 * SECOND, SECOND)]),
    )  # fmt: skip
    def arrive(self, rank, sixteenths, times):
        num_tokens = -(-sixteenths * self.world.block_size // 16)
        self.world.arrive(rank % len(self.world.config.classes), num_tokens, *times)

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), grown=st.integers(0, 3))
    def report(self, data, grown):
        self.world.report(self.any_instance(data), grown)

    @precondition(lambda self: any(each.has for each in self.world.instances.values()))
    @rule(data=st.data())
    def finish(self, data):
        working = sorted(name for name, each in self.world.instances.items() if each.has)
        name = data.draw(st.sampled_from(working))
        request = data.draw(st.sampled_from(sorted(self.world.instances[name].has)))
        self.world.finish(name, request)
        self.world.report(name)

    @precondition(lambda self: self.world.rank_of)
    @rule(data=st.data())
    def withdraw(self, data):
        self.world.withdraw(data.draw(st.sampled_from(sorted(self.world.rank_of))))

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data(), rank=st.integers(0, 2))
    def reclass(self, data, rank):
        request = data.draw(st.sampled_from(sorted(self.world.waiting)))
        self.world.reclass(request, rank % len(self.world.config.classes))

    @rule(after=st.sampled_from([0, SECOND // 10, SECOND, 3 * SECOND, 61 * SECOND]))
    def tick(self, after):
        self.world.tick(after)

    @precondition(lambda self: self.world.moves)
    @rule(data=st.data(), outcome=st.sampled_from([None, None, None, *MoveOutcome]))
    def end_move(self, data, outcome):
        self.world.end_move(data.draw(st.sampled_from(sorted(self.world.moves))), outcome)

    @precondition(lambda self: len(self.world.instances) < 5)
    @rule()
    def join(self):
        self.world.join()

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), state=st.sampled_from([InstanceState.UP, *InstanceState]))
    def change(self, data, state):
        self.world.change(self.any_instance(data), state)

    @precondition(lambda self: len(self.world.instances) > 1)
    @rule(data=st.data())
    def leave(self, data):
        self.world.leave(self.any_instance(data))

    @rule(config=configs)
    def configure(self, config):
        self.world.configure(config)

    @invariant()
    def what_waits_is_what_was_not_answered(self):
        if hasattr(self, "world"):
            queued = {each.request for each in self.world.scheduler.pools[POOL].queues.waiting()}
            assert queued == set(self.world.waiting)

    @invariant()
    def every_queue_is_bounded(self):
        if hasattr(self, "world"):
            pool = self.world.scheduler.pools[POOL]
            for rank, each in enumerate(pool.config.classes):
                waiting = [w for w in self.world.waiting.values() if w.rank == rank]
                came = sum(not waits.was_held for waits in waiting)
                assert came <= each.queue_limit
                assert pool.queues.length(rank) == len(waiting)

    @invariant()
    def whoever_waits_keeps_its_age(self):
        if hasattr(self, "world"):
            for each in self.world.scheduler.pools[POOL].queues.waiting():
                waits = self.world.waiting[each.request]
                assert (each.rank, each.arrival, each.since) == (
                    waits.rank, waits.arrival, waits.since
                )  # fmt: skip

    @invariant()
    def what_is_derived_is_right(self):
        if not hasattr(self, "world"):
            return
        pool = self.world.scheduler.pools[POOL]
        for name, told in self.world.instances.items():
            instance = pool.instances[name]
            assert instance.state is told.state
            assert instance.num_charged == len(told.unreported)
            assert instance.charged == sum(told.unreported.values())
            moves = self.world.moves.values()
            num_in, num_out = told.settling_in, told.settling_out
            assert instance.num_in == num_in + sum(each.target == name for each in moves)
            assert instance.num_out == num_out + sum(each.source == name for each in moves)
            assert instance.freeness == freeness(instance.usage())
            assert (instance in self.world.scheduler.pools[POOL].keepers) == bool(instance.headroom)
        ranked = list(pool.ranking)
        assert [each.key for each in ranked] == sorted(each.key for each in ranked)
        assert set(ranked) == {e for e in pool.instances.values() if e.closed_because is None}
        assert sum(pool.closed.values()) == len(pool.instances) - len(ranked)

    @invariant()
    def heads_and_nominations_agree(self):
        if not hasattr(self, "world"):
            return
        pool = self.world.scheduler.pools[POOL]
        heads = [pool.queues.head(rank) for rank in range(len(pool.config.classes))]
        nominated = {(each.rank, each.nominee) for each in heads if each and each.nominee}
        assert nominated == {
            (rank, each) for each in pool.instances.values() for rank in each.nominated
        }
        assert all(each.nominee is None for each in pool.queues.waiting() if each not in heads)

    def teardown(self):
        """The same events, the same commands."""
        if hasattr(self, "world"):
            again = Scheduler()
            for event, now, answer in self.world.log:
                assert repr(again.handle(event, Nanos(now))) == answer


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=of_a_hundred(80), stateful_step_count=50, deadline=None
)


crowd = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=9)


@given(
    config=configs,
    crowds=st.lists(crowd, min_size=2, max_size=5),
    drained=st.integers(0, 4),
    block_size=block_sizes,
    after=st.lists(st.sampled_from([SECOND // 10, SECOND, 3 * SECOND]), min_size=1, max_size=8),
    data=st.data(),
)
@settings(max_examples=of_a_hundred(60), deadline=None)
def test_moves_keep_to_their_budget_and_do_not_go_back(
    config, crowds, drained, block_size, after, data
):
    world = World(config, block_size)
    for requests in crowds:
        world.join()
        world.give(f"m-{world.num}", requests)
    names = sorted(world.instances)
    if drained < len(names):
        world.change(names[drained], InstanceState.TERMINATING)
    for pause in after:
        world.tick(pause)
        for move in sorted(world.moves):
            if data.draw(st.booleans(), label=f"move {move} ends"):
                world.end_move(move)
        for name in names:
            for request in sorted(world.instances[name].has):
                if data.draw(st.sampled_from([False, False, True]), label=f"{request} ends"):
                    world.finish(name, request)
            world.give(name, data.draw(crowd, label=f"{name} gets"))


@given(
    late=st.integers(1, 2),
    demands=st.lists(st.integers(1, 25), min_size=60, max_size=60),
    dispatch=st.sampled_from(sorted(DISPATCH)),
)
@settings(max_examples=of_a_hundred(30), deadline=None)
def test_nobody_waits_for_ever(late, demands, dispatch):
    """Urgent requests come faster than they can be served; still the other one gets its turn."""
    classes = tuple(PriorityClass(ClassName(name), rank) for rank, name in enumerate("abc"))
    world = World(PoolConfig(POOL, classes, dispatch, age_after=Nanos(SECOND)))
    for _ in range(2):
        world.join()
        world.report(f"m-{world.num}")
    for _ in range(6):
        world.arrive(0, 320)
    world.arrive(late, 400)
    patient = f"r{world.num}"
    steps = 0
    while patient in world.waiting:
        world.tick(SECOND // 2)
        world.arrive(0, 16 * demands[steps])
        for name, told in sorted(world.instances.items()):
            for request in sorted(told.has)[:1]:
                world.finish(name, request)
            world.report(name)
        steps += 1
    # It has the most urgent rank after `late` seconds; then it waits for those before it alone.
    assert steps < 2 * late + 30


def test_small_requests_do_not_keep_an_instance_busy_before_a_large_one():
    """The large one fits only an instance that has nothing, for the headroom of its class."""
    high = PriorityClass(ClassName("high"), 0, Blocks(30))
    world = World(PoolConfig(POOL, (high, PriorityClass(ClassName("normal"), 10))))
    world.join()
    world.give("m-1", [(1, 4)])
    world.arrive(0, 16 * 19)
    large = f"r{world.num}"
    for _ in range(4):
        world.arrive(1, 16)
        world.finish("m-1", min(world.instances["m-1"].has))
        world.report("m-1")
        if large not in world.waiting:
            return
    raise AssertionError("overtaken for ever")


def test_a_burst_between_two_reports_spreads_evenly():
    world = World(PoolConfig(POOL, (PriorityClass(ClassName("normal"), 0),)))
    for _ in range(4):
        world.join()
        world.report(f"m-{world.num}")
    for _ in range(16):
        world.arrive(0, 40)
    assert [len(each.unreported) for each in world.instances.values()] == [4] * 4
