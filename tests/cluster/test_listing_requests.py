"""What instances answer when they are asked for their requests."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.cluster.requests.listing import list_oldest, list_requests
from llx.errors import RemoteError, UnreachableError
from llx.wire import RequestView, oldest_of


def view(id_: str, name: str = "", state: str = "running", arrival: float = 1.0) -> RequestView:
    return RequestView(id_, name, 1, 10, state, 5, 9, 1, 4096, arrival)


class Loads:
    """Instances by name: their answers, or what is wrong with them."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def call(self, instance: str, method: str, payload: Any, _timeout: float) -> Any:
        assert (method, [bytes(each) for each in payload]) == ("llx_requests", [b"\x90"])
        answer = self.answers[instance.replace("-", "_")]
        if isinstance(answer, Exception):
            raise answer
        data = answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer)
        return [memoryview(data)]


async def test_all_are_asked_and_who_does_not_answer_is_told() -> None:
    loads: Any = Loads(
        m_0=[view("a"), view("b")],
        m_1=UnreachableError("instance m-1 is not connected"),
        m_2=RemoteError("m-2: 'llx_requests' is not an admitted utility"),
        m_3=TimeoutError(),
        m_4=b"\xc1",
    )
    found = await list_requests(loads, ["m-0", "m-1", "m-2", "m-3", "m-4"])
    assert [(each.request, each.instance) for each in found.requests] == [
        ("a", "m-0"), ("b", "m-0"),
    ]  # fmt: skip
    assert found.not_asked[:3] == [
        "m-1: instance m-1 is not connected",
        "m-2: m-2: 'llx_requests' is not an admitted utility",
        "m-3: no answer in 3 s",
    ]
    assert found.not_asked[3].startswith("m-4: its answer makes no sense")


@pytest.mark.parametrize("order", [["m-0", "m-1"], ["m-1", "m-0"]])
async def test_what_is_listed_at_both_ends_is_where_it_goes(order: list[str]) -> None:
    loads: Any = Loads(m_0=[view("a", state="leaving")], m_1=[view("a")])
    (found,) = (await list_requests(loads, order)).requests
    assert (found.instance, found.view.state) == ("m-1", "running")


class Ages:
    """Instances that list requests by age; `asked`: who was asked for how many."""

    def __init__(self, views: dict[str, list[RequestView]]) -> None:
        self.views = views
        self.asked: list[tuple[str, int]] = []

    async def call(self, instance: str, method: str, payload: Any, _timeout: float) -> Any:
        assert method == "llx_oldest_requests"
        (count,) = msgspec.msgpack.decode(payload[0])
        self.asked.append((instance, count))
        return [msgspec.msgpack.encode(oldest_of(self.views[instance], count))]


AGES = st.dictionaries(
    st.sampled_from([f"m-{number}" for number in range(12)]),
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=40),
    min_size=1,
)


@given(AGES, st.integers(0, 30))
def test_the_oldest_are_the_first_of_all_whoever_has_them(
    ages: dict[str, list[tuple[int, bool]]], count: int
) -> None:
    """Some are listed at both ends of a move."""
    views: dict[str, list[RequestView]] = {name: [] for name in ages}
    names = list(ages)
    for place, (name, arrivals) in enumerate(ages.items()):
        for number, (arrival, leaves) in enumerate(arrivals):
            request = f"{name}/{number}"
            views[name].append(view(request, arrival=arrival, state="leaving"))
            if not leaves or len(names) == 1:
                views[name][-1] = view(request, arrival=arrival)
            else:
                target = names[(place + 1) % len(names)]
                views[target].append(view(request, arrival=arrival))
    loads: Any = Ages(views)
    found = asyncio.run(list_oldest(loads, names, count))
    all_arrivals = sorted(each for arrivals in ages.values() for each, _ in arrivals)
    assert sorted(each.view.arrival for each in found.requests)[:count] == all_arrivals[:count]
    ids = [each.request for each in found.requests]
    assert len(set(ids)) == len(ids)
    if all(not leaves for arrivals in ages.values() for _, leaves in arrivals):
        assert len(found.requests) + found.num_more == len(all_arrivals)


async def test_a_page_is_not_fetched_with_all_that_a_large_cluster_has() -> None:
    each = 100
    views = {
        f"m-{number}": [view(f"{number}/{k}", arrival=1000 * k + number) for k in range(each)]
        for number in range(200)
    }
    loads: Any = Ages(views)
    found = await list_oldest(loads, list(views), 200)
    assert len(loads.asked) == 200
    assert sum(count for _, count in loads.asked) == 200 * 8
    assert found.num_more == 200 * (each - 8)


async def test_who_has_most_of_the_oldest_is_asked_again() -> None:
    views = {"m-0": [view(f"old/{k}", arrival=k) for k in range(60)]}
    views |= {f"m-{number}": [view(f"{number}", arrival=1000)] for number in range(1, 20)}
    loads: Any = Ages(views)
    found = await list_oldest(loads, list(views), 50)
    assert loads.asked[20:] == [("m-0", 50)]
    assert sorted(each.view.arrival for each in found.requests)[:50] == list(range(50))
    assert len(found.requests) + found.num_more == 79


async def test_what_an_instance_has_told_is_kept_if_it_does_not_answer_again() -> None:
    views = {"m-0": [view(f"old/{k}", arrival=k) for k in range(60)]}
    views |= {f"m-{number}": [view(f"{number}", arrival=1000)] for number in range(1, 20)}
    ages = Ages(views)

    class Mute:
        async def call(self, instance: str, *words: Any) -> Any:
            if any(name == instance for name, _ in ages.asked):
                raise TimeoutError
            return await ages.call(instance, *words)

    loads: Any = Mute()
    found = await list_oldest(loads, list(views), 50)
    assert len([each for each in found.requests if each.instance == "m-0"]) > 10
    assert len(found.requests) + found.num_more == 79
