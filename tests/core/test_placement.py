"""Placement: what is kept, who goes where, and why not; properties over made-up clusters."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llx.core.model import HostName, PoolName
from llx.core.placement import HostRoom, Wanted, place_gateways, place_instances


def room(name: str, gpus: int | None = None, cores: int = 8, closed: str = "") -> HostRoom:
    return HostRoom(HostName(name), gpus, cores, closed)


def wants(count: int, gpus: int = 1, pool: str = "m") -> list[Wanted]:
    return [Wanted(f"{pool}-{i}", PoolName(pool), gpus) for i in range(count)]


def kept(**where: str) -> dict[str, HostName]:
    return {name.replace("_", "-"): HostName(host) for name, host in where.items()}


def test_instances_spread_over_equal_hosts_in_listed_order() -> None:
    found = place_instances(wants(5), {}, [room("a"), room("b"), room("c")])
    assert found.hosts == {"m-0": "a", "m-1": "b", "m-2": "c", "m-3": "a", "m-4": "b"}


def test_a_host_with_more_cores_gets_more() -> None:
    found = place_instances(wants(6), {}, [room("a", cores=4), room("b", cores=8)])
    assert sorted(found.hosts.values()) == ["a"] * 2 + ["b"] * 4


def test_most_free_gpus_first_and_none_given_twice() -> None:
    rooms = [room("a", gpus=2), room("b", gpus=4)]
    found = place_instances(wants(3, gpus=2), {}, rooms)
    assert found.hosts == {"m-0": "b", "m-1": "a", "m-2": "b"}
    full = place_instances(wants(4, gpus=2), {}, rooms)
    assert full.reasons == {"m-3": "needs 2 free GPU(s) on one host; free: a: 0, b: 0"}


def test_gpus_on_two_hosts_are_not_one_host() -> None:
    found = place_instances(wants(1, gpus=4), {}, [room("a", gpus=2), room("b", gpus=2)])
    assert found.reasons == {"m-0": "needs 4 free GPU(s) on one host; free: a: 2, b: 2"}


def test_an_avoided_host_is_avoided_by_whoever_does_so_alone() -> None:
    shy, other = wants(2)
    shy = replace(shy, avoids=frozenset({HostName("a")}))
    rooms = [room("a", gpus=2), room("b", gpus=1)]
    assert place_instances([shy, other], {}, rooms).hosts == {"m-0": "b", "m-1": "a"}
    assert place_instances([shy], kept(m_0="a"), rooms).hosts == {"m-0": "a"}, "what is kept stays"
    assert place_instances([shy], {}, rooms[:1]).reasons == {"m-0": "no other host takes it"}


def test_what_runs_stays_even_on_a_closed_or_unknown_host() -> None:
    rooms = [room("a", closed="is cordoned"), room("b")]
    found = place_instances(wants(3), kept(m_0="a", m_1="gone"), rooms)
    assert found.hosts == {"m-0": "a", "m-1": "gone", "m-2": "b"}


def test_nowhere_to_go_names_every_closed_host() -> None:
    rooms = [room("a", closed="is cordoned"), room("b", closed="is lost")]
    assert place_instances(wants(1), {}, rooms).reasons == {
        "m-0": "no host takes instances (a is cordoned, b is lost)"
    }


def test_instances_of_one_pool_prefer_different_hosts() -> None:
    rooms = [room("a"), room("b")]
    here = kept(x_0="a", y_0="b")
    both = [*wants(1, pool="x"), *wants(2, pool="y")]
    assert place_instances(both, here, rooms).hosts["y-1"] == "a"


def test_gateways_stand_on_different_hosts_the_head_first() -> None:
    rooms = [room("head"), room("b"), room("c")]
    assert place_gateways(["g-0", "g-1"], {}, rooms).hosts == {"g-0": "head", "g-1": "b"}
    again = place_gateways(["g-0", "g-1"], kept(g_1="head"), rooms)
    assert again.hosts == {"g-1": "head", "g-0": "b"}
    short = place_gateways(["g-0", "g-1"], {}, [room("head"), room("b", closed="is lost")])
    assert short.reasons == {"g-1": "no host without a gateway is left (b is lost)"}


ROOMS = st.lists(
    st.tuples(st.none() | st.integers(0, 8), st.integers(1, 16), st.booleans()),
    min_size=1,
    max_size=6,
)


@given(ROOMS, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=12), st.data())
def test_no_gpu_is_given_twice_and_nobody_is_left_out_who_fits(rooms, sizes, data) -> None:
    hosts = [
        room(f"h{i}", gpus, cores, "is lost" if closed else "")
        for i, (gpus, cores, closed) in enumerate(rooms)
    ]
    wanted = [Wanted(f"i{k}", PoolName(f"p{pool}"), n) for k, (n, pool) in enumerate(sizes)]
    names = [each.host for each in hosts]
    here: dict[str, HostName] = {}
    used = dict.fromkeys(names, 0)
    for each in wanted:
        host = data.draw(st.sampled_from([None, *hosts]))
        if host is None:
            continue
        if host.num_gpus is None or used[host.host] + each.num_gpus <= host.num_gpus:
            here[each.name] = host.host
            used[host.host] += each.num_gpus
    found = place_instances(wanted, here, hosts)
    assert set(found.hosts) | set(found.reasons) == {each.name for each in wanted}
    assert not set(found.hosts) & set(found.reasons)
    assert found.hosts.items() >= here.items()
    taken = dict.fromkeys(names, 0)
    for each in wanted:
        if each.name in found.hosts:
            taken[found.hosts[each.name]] += each.num_gpus
    for host in hosts:
        assert host.num_gpus is None or taken[host.host] <= host.num_gpus
        if host.closed_because:
            assert all(found.hosts[n] != host.host or n in here for n in found.hosts)
    by_name = {each.name: each for each in wanted}
    for name in found.reasons:
        for host in hosts:
            if not host.closed_because:
                assert host.num_gpus is not None
                assert by_name[name].num_gpus > host.num_gpus - taken[host.host]
    assert place_instances(wanted, here, hosts) == found
    assert place_instances(wanted, found.hosts, hosts).hosts == found.hosts


@given(st.integers(1, 6), st.integers(1, 20))
def test_equal_hosts_differ_by_one_at_most(num_hosts: int, count: int) -> None:
    found = place_instances(wants(count), {}, [room(f"h{i}") for i in range(num_hosts)])
    counts = [list(found.hosts.values()).count(HostName(f"h{i}")) for i in range(num_hosts)]
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 6), st.data())
def test_no_two_gateways_share_a_host(closed: list[bool], count: int, data) -> None:
    rooms = [room(f"h{i}", closed="x" if each else "") for i, each in enumerate(closed)]
    names = [f"g{i}" for i in range(count)]
    shuffled = data.draw(st.permutations([each.host for each in rooms]))
    where = dict(zip(names[: data.draw(st.integers(0, count))], shuffled, strict=False))
    found = place_gateways(names, where, rooms)
    assert len(set(found.hosts.values())) == len(found.hosts)
    assert found.hosts.items() >= where.items()
    num_open = sum(not each.closed_because for each in rooms if each.host not in where.values())
    assert len(found.hosts) == len(where) + min(num_open, count - len(where))
