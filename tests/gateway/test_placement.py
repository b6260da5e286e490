"""Placement at a gateway: what is asked, what answers do, and what happens without any."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llx.core.model import ClassName, InstanceId, PoolName, RequestId, Term, Tokens
from llx.gateway import placement as module
from llx.gateway.placement import Placement, Wanted
from llx.wire import Held, NotPlaced, Place, Placed, Withdraw

A, B = InstanceId("m-0"), InstanceId("m-1")
R = RequestId("r")


class Pool:
    """Takes note of what becomes of its requests."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.down: set[InstanceId] = set()

    def placed(self, request: RequestId, instance: InstanceId) -> bool:
        self.log.append(("placed", request, instance))
        return instance not in self.down

    def bypassed(self, request: RequestId) -> None:
        self.log.append(("bypassed", request))

    def refused(self, request: RequestId, answer: NotPlaced) -> None:
        self.log.append(("refused", request, answer.reason))


class Rig:
    """A placement, its pool, and the scheduler's end of the line."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.placement = Placement()
        self.sent: list[Place | Withdraw] = []
        self.is_there = True
        self.placement.use_line(self.send)

    def send(self, message: Place | Withdraw) -> bool:
        if self.is_there:
            self.sent.append(message)
        return self.is_there

    def ask(self, request: RequestId = R, since: float | None = None) -> int:
        """Returns the number of the ask."""
        came = time.monotonic() if since is None else since
        wanted = Wanted(PoolName("m"), request, ClassName("batch"), Tokens(9), came, "llx-1")
        self.placement.ask(wanted, self.pool)
        last = self.sent[-1] if self.sent else None
        return last.ask if isinstance(last, Place) else 0


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    for request in list(made.placement._asked):
        made.placement.withdraw(request)


Spans = Callable[..., None]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Other times: short ones that are waited for, long ones that a busy machine must not reach."""

    def change(**seconds: float) -> None:
        for name, value in seconds.items():
            monkeypatch.setattr(module, name, value)

    return change


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.005)


async def test_a_request_goes_where_the_scheduler_says(rig: Rig) -> None:
    ask = rig.ask(since=time.monotonic() - 2)
    [place] = rig.sent
    assert isinstance(place, Place)
    assert (place.pool, place.request, place.priority_class) == ("m", R, "batch")
    assert (place.num_tokens, place.name) == (9, "llx-1")
    assert place.waited >= 2_000_000_000
    rig.placement.hear(Placed(Term(1), R, ask, B))
    assert rig.pool.log == [("placed", R, B)]
    assert R not in rig.placement


async def test_what_is_held_waits_and_keeps_its_place_by_the_time_it_has_waited(
    rig: Rig, spans: Spans
) -> None:
    spans(_RENEW_S=0.02, _SILENT_S=1000.0)
    ask = rig.ask()
    rig.placement.hear(Held(Term(1), R, ask, 1))
    await until(lambda: len(rig.sent) > 1)
    assert rig.pool.log == []
    again = rig.sent[-1]
    assert isinstance(again, Place)
    assert again.ask == ask
    assert again.waited > 10_000_000
    rig.placement.hear(Held(Term(1), R, ask, 1))
    rig.placement.hear(Placed(Term(1), R, ask, A))
    assert rig.pool.log == [("placed", R, A)]
    assert Withdraw(R) not in rig.sent


@pytest.mark.parametrize(
    ("left_s", "least", "most"), [(None, None, None), (30.0, 20, 30), (-1.0, 0, 0)]
)
async def test_how_long_it_may_still_wait_is_told_with_every_ask(
    rig: Rig, left_s: float | None, least: int | None, most: int | None
) -> None:
    now = time.monotonic()
    until = None if left_s is None else now + left_s
    wanted = Wanted(PoolName("m"), R, ClassName("batch"), Tokens(9), now, "llx-1", until=until)
    rig.placement.ask(wanted, rig.pool)
    rig.placement.reclass(R, ClassName("normal"))
    assert len(rig.sent) == 2
    for each in rig.sent:
        assert isinstance(each, Place)
        if least is None or most is None:
            assert each.patience is None, "its client has not said"
        else:
            assert each.patience is not None
            assert least * 10**9 <= each.patience <= most * 10**9


async def test_another_class_is_told_at_once_and_again_with_every_renewal(
    rig: Rig, spans: Spans
) -> None:
    spans(_RENEW_S=0.02, _SILENT_S=1000.0)
    ask = rig.ask()
    rig.placement.hear(Held(Term(1), R, ask, 1))
    rig.placement.reclass(R, ClassName("urgent"))
    told = rig.sent[-1]
    assert isinstance(told, Place)
    assert (told.ask, told.priority_class) == (ask, "urgent")
    await until(lambda: rig.sent[-1] is not told)
    assert [each.priority_class for each in rig.sent[1:] if isinstance(each, Place)][-1] == "urgent"
    rig.placement.reclass(RequestId("gone"), ClassName("urgent"))
    rig.placement.hear(Placed(Term(1), R, ask, A))
    assert rig.pool.log == [("placed", R, A)]


async def test_a_new_scheduler_hears_how_long_what_was_held_is_in_its_class(rig: Rig) -> None:
    def told() -> tuple[bool, int | None]:
        last = rig.sent[-1]
        assert isinstance(last, Place)
        return last.waited >= 60e9, None if last.held is None else last.held // 10**9

    ask = rig.ask(since=time.monotonic() - 60)
    assert told() == (True, None)
    rig.placement.hear(Held(Term(1), R, ask, 1))
    rig.placement.hear_term(Term(2))
    assert told() == (True, 60)
    rig.placement.reclass(R, ClassName("urgent"))
    rig.placement.hear(Held(Term(2), R, ask, 1))
    rig.placement.hear_term(Term(3))
    assert told() == (True, 0)


async def test_without_an_answer_in_time_it_is_bypassed_and_withdrawn(
    rig: Rig, spans: Spans
) -> None:
    spans(FIRST_ANSWER_S=0.02, _AWAY_S=60.0)
    ask = rig.ask()
    await until(lambda: rig.pool.log)
    assert rig.pool.log == [("bypassed", R)]
    assert rig.sent[-1] == Withdraw(R)
    rig.ask(RequestId("s"))
    assert rig.pool.log[-1] == ("bypassed", RequestId("s")), "others need not wait for it"
    rig.placement.hear(Placed(Term(1), R, ask, A))
    assert rig.pool.log[-1] == ("bypassed", RequestId("s")), "too late"
    assert rig.sent[-1] == Withdraw(R)
    rig.ask(RequestId("t"))
    assert rig.sent[-1].request == "t", "it answers, so it is there again"


async def test_without_a_line_nobody_waits(rig: Rig) -> None:
    rig.is_there = False
    rig.ask()
    assert rig.pool.log == [("bypassed", R)]
    rig.is_there = True
    rig.ask(RequestId("s"))
    assert rig.pool.log == [("bypassed", R)]


async def test_what_is_held_is_given_up_when_the_scheduler_falls_silent(
    rig: Rig, spans: Spans
) -> None:
    spans(_RENEW_S=0.02, _SILENT_S=0.1)
    ask = rig.ask()
    heard_at = time.monotonic()
    rig.placement.hear(Held(Term(1), R, ask, 1))
    rig.is_there = False
    await until(lambda: rig.pool.log)
    assert time.monotonic() - heard_at >= 0.1, "it might have been back soon"
    assert rig.pool.log == [("bypassed", R)]


async def test_in_a_long_queue_it_is_asked_for_again_more_seldom(rig: Rig, spans: Spans) -> None:
    spans(_RENEW_S=0.02, _RENEWALS_PER_S=1000.0, _SILENT_S=1000.0)
    ask = rig.ask()
    rig.placement.hear(Held(Term(1), R, ask, 400))
    began = time.monotonic()
    await until(lambda: len(rig.sent) > 1)
    assert time.monotonic() - began >= 0.39
    rig.placement.hear(Held(Term(1), R, ask, 1))
    await until(lambda: len(rig.sent) > 3)
    assert rig.pool.log == []


async def test_a_scheduler_that_says_nothing_at_all_is_given_up_however_long_the_queue(
    rig: Rig, spans: Spans
) -> None:
    spans(_RENEW_S=0.02, _RENEWALS_PER_S=1000.0, _SILENT_S=0.1)
    ask = rig.ask()
    rig.placement.hear(Held(Term(1), R, ask, 150))
    other = RequestId("other")
    rig.ask(other)
    rig.placement.hear(NotPlaced(Term(1), other, rig.sent[-1].ask, "full", 0.0))
    await until(lambda: ("bypassed", R) in rig.pool.log)
    assert rig.sent[-1] == Withdraw(R)


async def test_a_new_scheduler_is_asked_for_all_that_waits(rig: Rig) -> None:
    first, second = rig.ask(), rig.ask(RequestId("s"))
    rig.placement.hear(Held(Term(1), R, first, 1))
    rig.placement.hear(Held(Term(1), RequestId("s"), second, 2))
    rig.sent.clear()
    rig.placement.hear_term(Term(2))
    assert [(each.request, each.ask) for each in rig.sent] == [(R, first), ("s", second)]
    rig.placement.hear(Placed(Term(1), R, first, A))
    assert rig.pool.log == [], "the word of an older scheduler"
    rig.placement.hear(Placed(Term(2), R, first, B))
    assert rig.pool.log == [("placed", R, B)]


async def test_a_new_term_is_heard_of_by_an_answer_too(rig: Rig) -> None:
    first, second = rig.ask(), rig.ask(RequestId("s"))
    rig.placement.hear(Held(Term(1), RequestId("s"), second, 1))
    rig.sent.clear()
    rig.placement.hear(Placed(Term(2), R, first, A))
    assert rig.pool.log == [("placed", R, A)]
    assert [each.request for each in rig.sent] == ["s"]


async def test_an_answer_to_an_earlier_ask_is_not_taken_for_the_present_one(rig: Rig) -> None:
    first = rig.ask()
    rig.placement.withdraw(R)
    assert rig.sent[-1] == Withdraw(R)
    second = rig.ask()
    rig.placement.hear(Placed(Term(1), R, first, A))
    assert rig.pool.log == []
    assert rig.sent[-1] != Withdraw(R), "that would withdraw the present one"
    rig.placement.hear(Placed(Term(1), R, second, B))
    assert rig.pool.log == [("placed", R, B)]


async def test_one_placed_where_it_cannot_go_is_asked_for_again_and_bypassed_in_the_end(
    rig: Rig, spans: Spans
) -> None:
    spans(_MISSED_S=0.01, FIRST_ANSWER_S=60.0)
    rig.pool.down.add(A)
    ask = rig.ask()
    for number in range(3):
        rig.placement.hear(Placed(Term(1), R, ask, A))
        assert rig.sent[-1] == Withdraw(R)
        if number < 2:
            await until(lambda: isinstance(rig.sent[-1], Place))
            place = rig.sent[-1]
            assert isinstance(place, Place)
            assert place.ask != ask
            ask = place.ask
    assert rig.pool.log == [("placed", R, A)] * 3 + [("bypassed", R)]


async def test_a_refusal_is_passed_on(rig: Rig) -> None:
    ask = rig.ask()
    rig.placement.hear(NotPlaced(Term(1), R, ask, "queue full", 3.0))
    assert rig.pool.log == [("refused", R, "queue full")]
    assert len(rig.placement) == 0


async def test_an_answer_that_this_process_was_too_busy_to_read_counts(
    rig: Rig, spans: Spans
) -> None:
    spans(FIRST_ANSWER_S=0.02)
    ask = rig.ask()
    asyncio.get_running_loop().call_later(0.03, rig.placement.hear, Placed(Term(1), R, ask, A))
    time.sleep(0.15)  # noqa: ASYNC251 - the stall
    await asyncio.sleep(0.03)
    assert rig.pool.log == [("placed", R, A)]
