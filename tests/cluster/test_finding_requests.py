"""Finding a request by any of its ids."""

import pytest

from llx.cluster.requests.finding import RequestIndex, find
from llx.cluster.requests.listing import Listing, Located
from llx.core.model import InstanceId
from llx.errors import ConflictError, NotFoundError
from llx.wire import RequestView


def view(id_: str, name: str = "", state: str = "running", arrival: float = 1.0) -> RequestView:
    return RequestView(id_, name, 1, 10, state, 5, 9, 1, 4096, arrival)


def listing(*views: RequestView) -> Listing:
    return Listing([Located(each, InstanceId("m-0")) for each in views])


ALL = listing(
    view("cmpl-mine-0-0123abcd", "llx-a"),
    view("0_chatcmpl-two-89abcdef", "llx-b"),
    view("1_chatcmpl-two-89abcdef", "llx-b"),
    view("chatcmpl-same-00000001", "llx-c"),
    view("chatcmpl-same-00000002", "llx-d"),
    view("cmpl-batch-0-0123abcd", "llx-e"),
    view("cmpl-batch-1-0123abcd", "llx-e"),
    view("chatcmpl-a.b-00000003", "llx-f"),
)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("cmpl-mine-0-0123abcd", ["cmpl-mine-0-0123abcd"]),
        ("llx-a", ["cmpl-mine-0-0123abcd"]),
        ("mine", ["cmpl-mine-0-0123abcd"]),
        ("mine-0", ["cmpl-mine-0-0123abcd"]),
        ("mine-0-0123abcd", ["cmpl-mine-0-0123abcd"]),
        ("0_chatcmpl-two-89abcdef", ["0_chatcmpl-two-89abcdef"]),
        ("two", ["0_chatcmpl-two-89abcdef", "1_chatcmpl-two-89abcdef"]),
        ("llx-b", ["0_chatcmpl-two-89abcdef", "1_chatcmpl-two-89abcdef"]),
        ("batch", ["cmpl-batch-0-0123abcd", "cmpl-batch-1-0123abcd"]),
        ("a.b", ["chatcmpl-a.b-00000003"]),
        ("llx-c", ["chatcmpl-same-00000001"]),
    ],
)
def test_found_by(given: str, ids: list[str]) -> None:
    assert [each.view.id for each in find(ALL, given)] == ids


@pytest.mark.parametrize("given", ["", "min", "m.ne", "mine-0-0123abcd-x", "llx-", "cmpl", "axb"])
def test_parts_of_an_id_are_none(given: str) -> None:
    with pytest.raises(NotFoundError, match="it has ended, or never was"):
        find(ALL, given)


def test_an_id_of_several_requests_is_ambiguous() -> None:
    with pytest.raises(ConflictError, match='2 requests carry the id "same": llx-c, llx-d'):
        find(ALL, "same")
    many = listing(*(view(f"chatcmpl-s-0000000{n}", f"llx-{n}") for n in range(9)))
    with pytest.raises(ConflictError, match="llx-4 and 4 more"):
        find(many, "s")


def test_who_was_not_asked_is_named() -> None:
    with pytest.raises(NotFoundError) as caught:
        find(Listing([], ["m-1: no answer in 3 s"]), "x")
    assert caught.value.detail == "not asked: m-1: no answer in 3 s"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("batch-1-01", "llx req ls; did you mean cmpl-batch-1-0123abcd?"),
        ("chatcmpl-same-00000003", "llx req ls; did you mean chatcmpl-same-00000002 or chatcm"),
        ("llx", "llx req ls"),
        ("", "llx req ls"),
    ],
)
def test_what_may_be_meant_is_named(given: str, remedy: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        find(ALL, given)
    assert caught.value.remedy.startswith(remedy)
    assert caught.value.remedy.count(" or ") <= 2


def test_of_many_only_those_that_begin_alike_are_compared_with() -> None:
    given = "chatcmpl-same-0000"
    near = view("hatcmpl-same-0000")
    others = [view(f"chatcmpl-{n:04}") for n in range(999)]
    with pytest.raises(NotFoundError) as caught:
        find(listing(near, *others[:9]), given)
    assert " hatcmpl-same-0000" in caught.value.remedy
    with pytest.raises(NotFoundError) as caught:
        find(listing(near, *others), given)
    assert "did you mean chatcmpl-" in caught.value.remedy
    assert " hatcmpl-same-0000" not in caught.value.remedy


def test_what_may_be_meant_is_not_looked_for_unless_wanted() -> None:
    with pytest.raises(NotFoundError) as caught:
        RequestIndex(ALL).find("batch-1-01", suggests=False)
    assert caught.value.remedy == "llx req ls"
