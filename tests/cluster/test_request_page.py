"""Filters and pages of requests."""

import pytest

from llx.cluster.requests.page import Facts, RequestFilter


def request(key: str, **more: object) -> Facts:
    values = {
        "id": f"cmpl-{key}-0", "name": f"llx-{key}", "instance": "m-0", "model": "m",
        "priority": 10, "priority_class": "normal", "state": "running", "pinned": "", **more,
    }  # fmt: skip
    return Facts(**values)


ALL = [
    request("a"),
    request("b", instance="m-1", state="waiting"),
    request("c", priority=0, priority_class="urgent", pinned="has an image"),
    request("d", model="n", instance="n-0", priority=7, priority_class=""),
]


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (RequestFilter(), "abcd"),
        (RequestFilter(instance="m-0"), "ac"),
        (RequestFilter(instance="m"), ""),
        (RequestFilter(model="m", state="running"), "ac"),
        (RequestFilter(priority_class="urgent"), "c"),
        (RequestFilter(priority_class="7"), "d"),
        (RequestFilter(is_pinned=True), "c"),
        (RequestFilter(is_pinned=False, model="m"), "ab"),
        (RequestFilter(match="LLX-B"), "b"),
        (RequestFilter(match="urg"), "c"),
        (RequestFilter(match="nobody"), ""),
    ],
)
def test_who_is_let_through(wanted: RequestFilter, keys: str) -> None:
    assert "".join(each.name[-1] for each in ALL if wanted.lets_through(each)) == keys
    assert wanted.is_open == (wanted == RequestFilter())


@pytest.mark.parametrize(
    ("offset", "limit", "keys"),
    [(0, 2, "ac"), (2, 2, "d"), (1, None, "cd"), (9, 2, ""), (0, 0, "")],
)
def test_pages(offset: int, limit: int | None, keys: str) -> None:
    found = [each for each in ALL if RequestFilter(state="running").lets_through(each)]
    page = RequestFilter(state="running", offset=offset, limit=limit).cut(found)
    assert "".join(each.name[-1] for each in page) == keys
