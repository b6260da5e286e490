"""The source's own choice of the request that moves."""

from typing import Any

from llx.agent.llumlet.picking import Picking
from llx.core.model import Nanos, RequestId
from llx.wire import ByRule, RequestView

ANY = ByRule("lowest-class", None, None, 100, Nanos(2_000_000_000))


def view(id_: str, *, blocks: int = 2, priority: int = 10, **more: Any) -> RequestView:
    state = more.pop("state", "running")
    return RequestView(id_, "", 1, priority, state, 5, 16 * blocks, blocks, 4096, 1.0, **more)


def pick(rule: ByRule, *views: RequestView, leaving: tuple[str, ...] = ()) -> str:
    found = Picking().pick(rule, views, [RequestId(each) for each in leaving])
    return found if isinstance(found, str) else found.request


def test_the_rule_picks_among_those_that_can_move() -> None:
    views = (
        view("urgent", priority=0),
        view("pinned", priority=20, pinned="it has images"),
        view("cut", priority=20, state="leaving"),
        view("queued", priority=20),
        view("goes", priority=15),
    )
    assert pick(ANY, *views, leaving=("queued",)) == "goes"


def test_what_has_just_come_rests() -> None:
    picking = Picking()
    picking.note_arrival(RequestId("new"))
    rule = ByRule("longest", None, None, 100, Nanos(60_000_000_000))
    views = [view("new", blocks=9), view("old")]
    found = picking.pick(rule, views, ())
    assert not isinstance(found, str)
    assert found.request == "old"
    later = ByRule("longest", None, None, 100, Nanos(0))
    found = picking.pick(later, views, ())
    assert not isinstance(found, str)
    assert found.request == "new"


def test_limits_of_class_and_room_hold() -> None:
    rule = ByRule("longest", 15, 3, 6, Nanos(0))
    views = (
        view("too urgent", blocks=4, priority=10),
        view("too large", blocks=7, priority=20),
        view("too small", blocks=2, priority=20),
        view("enough", blocks=5, priority=20),
    )
    assert pick(rule, *views) == "enough"


def test_none_that_may_go_is_said_in_words() -> None:
    assert pick(ANY, view("a", pinned="x")) == "none of 1 may: 0 can move, 0 rest"
    assert pick(ByRule("nicest", None, None, 9, Nanos(0)), view("a")) == "no choice 'nicest'"
