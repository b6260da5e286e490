"""Which requests a report tells of."""

from llx.agent.taken import _MOST, Taken
from llx.core.model import RequestId


def ids(*names: str) -> list[RequestId]:
    return [RequestId(each) for each in names]


def test_each_is_told_once() -> None:
    taken = Taken()
    assert taken.extend(ids("a")) == 1
    assert taken.extend(ids("b", "c")) == 3
    assert taken.between(0, 1) == ids("a")
    assert taken.between(1, 3) == ids("b", "c")
    assert taken.between(3, 3) == []


def test_who_is_far_behind_hears_of_the_last_alone() -> None:
    taken = Taken()
    upto = taken.extend(RequestId(str(each)) for each in range(_MOST + 10))
    told = taken.between(5, upto)
    assert len(told) == _MOST
    assert (told[0], told[-1]) == ("10", str(_MOST + 9))
    assert taken.between(0, 12) == ids("10", "11")
