"""Whatever goes wrong: one owner, each token once and in order, all blocks back, every end reached.

`check_owners` and `check_end` of the model world hold the properties; here is what it is put to.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.migration_world import Fate, World
from tests.example_counts import of_a_hundred

few = settings(
    max_examples=of_a_hundred(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
NAMES = "ABC"
REQUESTS = ("r", "s", "t")

fates = st.dictionaries(st.integers(0, 90), st.sampled_from(Fate), max_size=12)
moments = st.tuples(st.integers(0, 90), st.booleans())
"""Around which message something is done, and whether after it."""
moves = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(REQUESTS), st.sampled_from(NAMES)),
    min_size=1,
    max_size=6,
)
"""When (in steps), what and where to."""
pairs = st.sampled_from([("A", "B"), ("A", "C"), ("B", "C")])
setbacks = st.one_of(
    st.tuples(st.sampled_from(["cut", "break_copies"]), pairs),
    st.tuples(st.just("preempt"), st.tuples(st.sampled_from(NAMES), st.sampled_from(REQUESTS))),
    st.tuples(st.just("cancel_move"), st.tuples(st.integers(0, 5))),
)
"""What an operator or a network does to migrations; no stream may suffer."""
disasters = st.one_of(
    st.tuples(st.just("kill"), st.tuples(st.sampled_from([*NAMES, "gateway"]))),
    st.tuples(st.just("cut"), st.tuples(st.just("gateway"), st.sampled_from(NAMES))),
    st.tuples(st.just("cancel"), st.tuples(st.sampled_from(REQUESTS))),
    setbacks,
)
options = st.fixed_dictionaries(
    {
        "copy_s": st.sampled_from([0.001, 0.025, 0.06]),
        "num_blocks": st.sampled_from([48, 26, 18]),
        "cached_tokens": st.sampled_from([0, 5, 99]),
        "not_ready": st.integers(0, 2),
        "is_blocking": st.booleans(),
        "aborts_if_diverging": st.booleans(),
        "max_stages": st.sampled_from([1, 8]),
    }
)


def requests_of(prompts):
    return {name: (tuple(range(size)), 24) for name, size in zip(REQUESTS, prompts, strict=False)}


prompts = st.lists(st.integers(1, 12), min_size=1, max_size=3)


def make_world(prompts, moves, deeds=(), **options):
    world = World(requests_of(prompts), names=NAMES, **options)
    for number, request in enumerate(world.requests):
        world.start(request, NAMES[number % 2])
    for number, (step, request, target) in enumerate(moves):
        world.after(
            step * 0.01,
            lambda number=number, request=request, target=target: world.move(
                f"m{number}", request, target
            ),
        )
    for (number, is_after), (what, args) in deeds:
        world.at(
            number,
            lambda what=what, args=args: do(world, what, *args),
            is_after=is_after,
        )
    return world


def do(world, what, *args):
    match what:
        case "preempt":
            name, request = args
            world.instances[name].engine.preempt(request)
        case "cancel_move":
            for instance in world.instances.values():
                instance.cancel(f"m{args[0]}")
        case "cancel":
            world.gateway.cancel(args[0]) if args[0] in world.requests else None
        case _:
            getattr(world, what)(*args)


@few
@given(prompts, moves, fates, st.lists(st.tuples(moments, setbacks), max_size=4), options)
def test_no_stream_suffers_from_what_befalls_its_moves(prompts, moves, fates, deeds, options):
    world = make_world(prompts, moves, deeds, fates=fates, **options)
    world.run()
    world.check_end()
    assert {client.end for client in world.gateway.clients.values()} == {"finished"}


@few
@given(
    prompts,
    moves,
    fates,
    st.lists(st.tuples(moments, disasters), max_size=4),
    options,
    st.booleans(),
)
def test_disasters_end_streams_at_worst(prompts, moves, fates, deeds, options, is_rough):
    world = make_world(prompts, moves, deeds, fates=fates, is_rough=is_rough, **options)
    world.run()
    world.check_end()


@few
@given(prompts, moves, options.filter(lambda each: each["num_blocks"] == 48))
def test_nothing_but_the_end_of_a_request_stops_a_move_in_good_weather(prompts, moves, options):
    world = make_world(prompts, moves, **options)
    world.run()
    world.check_end()
    for instance in world.instances.values():
        for leaving in instance.leaving.values():
            machine = leaving.machine
            assert machine.state.value in {"moved", "gone"} or machine.reason.startswith(
                ("it grows as fast", "the id is taken")
            ), machine.reason


def test_what_the_target_has_in_its_prefix_cache_is_not_copied():
    world = World({"r": (tuple(range(9)), 12)}, cached_tokens=99)
    world.start("r")
    world.after(0.05, lambda: world.move("m", "r", "B"))
    world.run()
    world.check_end()
    assert world.outcome("m") == "moved"
    (reserved,) = (each.message for each in world.sent if each.kind == "Reserved")
    copied = {b for each in world.sent if each.kind == "Stage" for b in each.message.blocks}
    assert copied
    assert reserved.num_reused_tokens == 8
    assert copied.isdisjoint(reserved.blocks[:4])


def test_a_waiting_request_moves_without_kv():
    world = World({"r": ((1, 2, 3, 4), 20), "s": (tuple(range(15)), 8)}, num_blocks=12)
    world.start("r")
    world.after(0.1, lambda: world.start("s"))
    world.after(0.11, lambda: world.order("m", "s", "A", "B"))
    world.run()
    world.check_end()
    assert world.outcome("m") == "moved"
    (commit,) = (each.message for each in world.sent if each.kind == "Commit")
    assert (commit.outputs, commit.num_computed) == ([], 0)


def test_several_requests_at_once_pass_each_other():
    world = World({name: ((1, 2, number), 30) for number, name in enumerate("rstuvw")})
    for number, name in enumerate(world.requests):
        world.start(name, "AB"[number % 2])
        world.after(0.06, lambda name=name, n=number: world.move(f"m-{name}", name, "BA"[n % 2]))
    world.run()
    world.check_end()
    assert {world.outcome(f"m-{name}") for name in world.requests} == {"moved"}
    assert world.gateway.num_moves == len(world.requests)


def test_ping_pong():
    world = World({"r": ((1, 2, 3), 60)})
    world.start("r")
    for number in range(12):
        world.after(0.06 * (number + 1), lambda n=number: world.move(f"m{n}", "r", "BA"[n % 2]))
    world.run()
    world.check_end()
    assert [world.outcome(f"m{number}") for number in range(9)] == ["moved"] * 9
    assert world.gateway.clients["r"].end == "finished"
