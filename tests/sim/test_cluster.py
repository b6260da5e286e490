"""Small clusters under pressure.

`Cluster.run` itself checks that every request and every move has ended, and that no block is lost.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.core.engine_state import EngineConfig, StepTime
from llx.core.model import Blocks, InstanceId, Nanos, Tokens
from llx.core.scheduler.commands import AddInstances, Emptied, Terminate
from llx.core.scheduler.config import Scaling
from llx.core.scheduler.events import InstanceChanged, InstanceJoined
from llx.core.scheduler.freeness import Freeness
from llx.sim.cluster import Cluster
from llx.sim.kernel import Kernel
from llx.sim.links import LinkConfig, Links
from llx.sim.presets import POLICIES, paper_cluster
from llx.sim.workload import HIGH, NORMAL, SimRequest, generated
from tests.example_counts import of_a_hundred

pytestmark = pytest.mark.sim

SMALL = EngineConfig(
    num_blocks=Blocks(30),
    block_size=Tokens(4),
    max_num_seqs=6,
    max_num_batched_tokens=Tokens(120),
    max_model_len=Tokens(120),
    step_time=StepTime(10_000_000, 100_000, 300_000, 5_000_000),
    watermark=Blocks(1),
)


def small(policy, *, is_prefill_first=False, num_instances=3, **rest):
    cluster = paper_cluster(policy, num_instances)
    engine = replace(SMALL, is_prefill_first=is_prefill_first)
    if not is_prefill_first:
        engine = replace(engine, max_num_batched_tokens=Tokens(16))
    pool = replace(
        cluster.pool,
        step_tokens=engine.max_num_batched_tokens,
        max_requests=engine.max_num_seqs,
    )
    return replace(cluster, engine=engine, pool=pool, block_bytes=1_000_000, **rest)


@st.composite
def workloads(draw):
    count = draw(st.integers(1, 25))
    at, out = 0, []
    for _ in range(count):
        at += draw(st.sampled_from([0, 1_000_000, 15_000_000, 300_000_000]))
        kind = draw(st.sampled_from([NORMAL, NORMAL, HIGH]))
        lengths = draw(st.tuples(st.integers(1, 40), st.integers(1, 75)))
        out.append(SimRequest(Nanos(at), *lengths, kind))
    return out


def result(config, requests):
    return Cluster(config, iter(requests)).run(0)


@st.composite
def configurations(draw, policy):
    """Clusters of every size and pace, each with too little memory for what comes."""
    config = small(
        policy,
        is_prefill_first=draw(st.booleans()),
        num_instances=draw(st.integers(1, 4)),
        report_every=Nanos(draw(st.sampled_from([3_000_000, 20_000_000, 100_000_000]))),
        round_every=Nanos(draw(st.sampled_from([10_000_000, 200_000_000]))),
        moves_waiting=draw(st.booleans()),
    )
    block_size = draw(st.sampled_from([2, 4, 16]))
    engine = replace(
        config.engine,
        block_size=Tokens(block_size),
        num_blocks=Blocks(120 // block_size + draw(st.integers(1, 6))),
        max_num_seqs=draw(st.integers(1, 8)),
        watermark=Blocks(draw(st.integers(0, 2))),
        step_time=replace(
            SMALL.step_time,
            context_ktoken_ns=draw(st.sampled_from([0, 777, 5_000_000])),
            weights_ns=draw(st.sampled_from([0, 2_000_000])),
            token_ns=draw(st.sampled_from([0, 400_000])),
        ),
    )
    headroom = Blocks(draw(st.sampled_from([0, 5])))
    classes = [replace(config.pool.classes[0], headroom=headroom), *config.pool.classes[1:]]
    pool = replace(config.pool, classes=tuple(classes), max_requests=engine.max_num_seqs)
    return replace(config, engine=engine, pool=pool)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=of_a_hundred(25), deadline=None)
@given(data=st.data(), requests=workloads())
def test_a_leap_shows_in_nothing(policy, data, requests):
    config = data.draw(configurations(policy))
    one, other = (result(replace(config, leaps=leaps), requests) for leaps in (False, True))
    assert other.num_events <= one.num_events
    assert replace(one, num_events=0) == replace(other, num_events=0)


@settings(max_examples=of_a_hundred(25), deadline=None)
@given(requests=workloads(), threshold=st.integers(2, 12))
def test_moves_lose_nothing(requests, threshold):
    config = small("llumnix")
    low = Freeness(float(threshold))
    rules = replace(config.pool.rescheduling, low=low, high=low, max_out=3, max_in=3)
    pool = replace(config.pool, rescheduling=rules)
    seen = result(replace(config, pool=pool, round_every=Nanos(20_000_000)), requests)
    assert seen.overall.num_requests == len(requests)
    assert not seen.overall.num_refused


def test_the_same_seed_is_the_same_run():
    runs = [result(paper_cluster("llx", 2), generated("s-s", 5.0, 60, seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].trace_hash != runs[2].trace_hash


def test_a_crowded_cluster_moves_and_keeps_its_streams_going():
    config = paper_cluster("llumnix-10", 3)
    seen = result(config, generated("m-m", 3.0, 250, 1))
    assert seen.num_moves > 5, seen
    assert 0 < seen.downtime.p50 < 0.3
    assert (
        seen.num_preemptions
        < result(paper_cluster("round-robin", 3), generated("m-m", 3.0, 250, 1)).num_preemptions
    )


def test_urgent_requests_go_first():
    requests = generated("m-m", 30.0, 400, 2, high_share=0.1)
    seen = result(paper_cluster("llx", 2), requests)
    assert 2 * seen.classes["high"].prefill.mean < seen.classes["normal"].prefill.mean


def test_instances_come_and_go():
    scaling = Scaling(
        "band", 1, 4, Freeness(10.0), Freeness(60.0), Nanos(10**9), Nanos(2 * 10**9)
    )  # fmt: skip
    config = paper_cluster("llx", 1)
    config = replace(config, pool=replace(config.pool, scaling=scaling))
    burst = generated("s-s", 12.0, 150, 3)
    late = [replace(each, arrival=Nanos(each.arrival + 200 * 10**9)) for each in burst[:20]]
    seen = result(config, [*burst, *late])
    assert 1 < seen.mean_instances < 4


def test_whoever_is_being_emptied_is_used_again():
    """Two have a long request each; one is to go, does not move its own, and load comes back."""
    scaling = Scaling(
        "band", 1, 2, Freeness(10.0), Freeness(60.0), Nanos(10**9), Nanos(2 * 10**9)
    )  # fmt: skip
    config = paper_cluster("llx", 2)
    rescheduling = replace(config.pool.rescheduling, steps=())
    config = replace(config, pool=replace(config.pool, scaling=scaling, rescheduling=rescheduling))
    long = [SimRequest(Nanos(each), Tokens(100), Tokens(2000)) for each in range(2)]
    burst = generated("m-m", 12.0, 100, 3)
    late = [replace(each, arrival=Nanos(each.arrival + 10 * 10**9)) for each in burst]
    told = []

    def observe(event, now, commands):
        told.extend([event, *commands])

    Cluster(config, iter([*long, *late]), observe=observe).run(0)
    kinds = (Terminate, AddInstances, InstanceChanged, Emptied)
    course = [type(each) for each in told if isinstance(each, kinds)]
    assert course[:3] == [Terminate, AddInstances, InstanceChanged]
    assert sum(isinstance(each, InstanceJoined) for each in told) == 2


def test_moves_make_one_room_of_two():
    """Two instances, each with less than half of its blocks free; one prompt that needs half."""
    second = 10**9
    long = [SimRequest(Nanos(each), Tokens(3300), Tokens(400)) for each in range(4)]
    wide = SimRequest(Nanos(4 * second), Tokens(6144), Tokens(2))
    config = paper_cluster("llx", 2)
    seen = {}
    for steps in (("make_room",), ()):
        rules = replace(config.pool.rescheduling, steps=steps)
        pool = replace(config.pool, rescheduling=rules)
        seen[steps] = result(replace(config, pool=pool), [*long, wide])
    moving, staying = seen["make_room",], seen[()]
    assert (moving.num_moves, staying.num_moves) == (1, 0)
    assert 0 < moving.fragmented < staying.fragmented / 2
    assert moving.overall.prefill.p99 < staying.overall.prefill.p99 - 5


def test_copies_take_turns_on_both_ways():
    kernel = Kernel()
    links = Links(kernel, LinkConfig(1_000, Nanos(7), Nanos(3)))
    a, b, c = (InstanceId(each) for each in "abc")
    second = 1_000_000_000
    assert links.copy(a, b, 1_000) == second + 7
    assert links.copy(a, c, 1_000) == 2 * second + 7
    assert links.copy(c, b, 1_000) == 2 * second + 7
    assert links.copy(b, a, 0) == 3


def test_a_gateways_time_is_in_the_first_token_alone():
    def of(gateway):
        config = small("llx", num_instances=1)
        config = replace(config, link=replace(config.link, gateway=Nanos(gateway)))
        cluster = Cluster(config, iter([SimRequest(Nanos(0), 5, 8, NORMAL)]))
        cluster.run(0)
        (record,) = cluster.records
        return record.first_at - record.request.arrival, record.ended_at - record.first_at

    (first, rest), (later, same) = of(0), of(30_000_000)
    assert (later - first, same) == (30_000_000, rest)
